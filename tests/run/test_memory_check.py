"""Too little memory is named before weights are loaded, with settings that fit; and what kinds of devices cannot do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmft.config.check import ConfigError
from vlmft.config.schema import TrainConfig
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.models import memory_check
from vlmft.models.load import storage_dtype
from vlmft.models.memory_check import free_bytes
from vlmft.run import build as building
from vlmft.run import ready, weights
from vlmft.run.build import build, pick_precision, resolved
from vlmft.run.folder import folder_of, make_folder, rounding_note
from vlmft.run.results import Phases
from vlmft.run.weights import load_base

CPU, GPU, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
Compose = Callable[..., TrainConfig]
SMALL = (
    *("model=tiny", "data=shapes", "data.options.train_rows=16", "train.rows_per_step=16"),
    *("trainer=cpu", "model.quantization.mode=none"),
)


class LoadedError(Exception):
    """Weights were asked for."""


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> Any:
        raise LoadedError

    monkeypatch.setattr(building, "load_model", load)
    monkeypatch.setattr(weights, "load_model", load)


def problem(config: TrainConfig) -> str:
    """What training says of its memory instead of loading weights; "" where it fits."""
    config = resolved(config).config
    try:
        build(config.model, config.data, config.trainer, seed=0, train=config.train)
    except ConfigError as error:
        return str(error)
    except LoadedError:
        return ""
    raise AssertionError


@pytest.mark.slow
def test_what_is_said_to_fit_fits(compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of the settings, given to the next run, lets it load; half as many rows of what is named would not."""
    assert problem(compose(*SMALL)) == ""
    line = capsys.readouterr().out
    assert re.fullmatch(
        r"  memory: about [\d.]+ GiB \(weights .*, trained .*, 16 rows of \d+ tokens .*\), of .* cpu\n", line
    )
    few = (*SMALL, "trainer.memory_gib=0.104")
    text = problem(compose(*few))
    assert text.startswith("memory: Expected about 0.1") and "\n" not in text and "got 0.10 GiB free on cpu" in text
    found = re.findall(r"(train\.\S+=\S+) \(([\d.]+) MiB\)", text)
    assert [setting for setting, _ in found] == ["train.rows_per_batch=8", "train.gradient_checkpointing=true"]
    for setting, mib in found:
        assert problem(compose(*few, setting)) == "" and float(mib) <= 0.104 * 1024
    assert "rows_per_batch" in problem(compose(*few, "train.rows_per_batch=16"))


def test_a_run_that_has_begun_is_warned_and_a_new_one_refused(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """resume=true may stand before any run; once there is a checkpoint, settings cannot be changed any more."""
    config = compose(*SMALL, "trainer.memory_gib=0.024", "resume=true", f"output_root={tmp_path}")
    config = resolved(config).config
    with pytest.raises(ConfigError, match="memory: Expected about"):
        ready.build_for(config, None, None, Phases())
    (folder_of(config) / "checkpoints" / "step-0000001").mkdir(parents=True)
    with pytest.raises(LoadedError):
        ready.build_for(config, None, None, Phases())
    assert "more than the 25 MiB free on cpu" in capsys.readouterr().out


@pytest.mark.slow
def test_tokens_of_a_batch_are_chosen_by_what_fits(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many rows of the longest length as fit with a margin; where all fit, the limit cuts no window."""
    monkeypatch.setattr(building, "load_model", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(building.lora, "attach", lambda *_: torch.nn.Identity())
    found = {}
    for gib in (0.12, 0.06, 4.0):
        config = resolved(compose(*SMALL, f"trainer.memory_gib={gib}", "train.tokens_per_batch=auto")).config
        built = build(config.model, config.data, config.trainer, seed=0, train=config.train)
        rows, length, mib = re.findall(r"(\d+) rows? of (\d+) tokens ([\d.]+) MiB", capsys.readouterr().out)[0]
        assert built.tokens_per_batch == int(rows) * int(length) and float(mib) < gib * 1024
        found[gib] = int(rows)
    assert 1 <= found[0.06] < found[0.12] < 16 == found[4.0]
    assert problem(compose(*SMALL, "trainer.memory_gib=0.001", "train.tokens_per_batch=auto")).startswith("memory: ")


def test_a_run_that_goes_on_keeps_the_tokens_that_it_began_with(compose: Compose, tmp_path: Path) -> None:
    """However much memory is free now: other batches round otherwise."""
    auto = ("train.tokens_per_batch=auto", "evaluation.tokens_per_batch=auto", f"output_root={tmp_path}")
    config = resolved(compose(*SMALL, *auto)).config
    assert config.train.tokens_per_batch == config.evaluation.tokens_per_batch == "auto"
    train, evaluation = replace(config.train, tokens_per_batch=760), replace(config.evaluation, tokens_per_batch=9_000)
    make_folder(replace(config, train=train, evaluation=evaluation))
    config = resolved(compose(*SMALL, *auto, "resume=true")).config
    assert (config.train.tokens_per_batch, config.evaluation.tokens_per_batch) == (760, 9_000)
    config = resolved(compose(*SMALL, *auto, "resume=true", "train.tokens_per_batch=100")).config
    assert config.train.tokens_per_batch == 100 and "760" in str(rounding_note(config))


@pytest.mark.slow
def test_all_settings_together_and_none_that_would_do(compose: Compose) -> None:
    text = problem(compose(*SMALL, "trainer.memory_gib=0.024"))
    (both,) = re.findall(r"what would fit: (.*) \([\d.]+ MiB\); if", text)
    settings = both.split(" with ")
    assert settings[0] == "train.rows_per_batch=1" and "with train.gradient_checkpointing=true, as no row fits" in text
    assert problem(compose(*SMALL, "trainer.memory_gib=0.024", *settings)) == ""
    text = problem(compose(*SMALL, "trainer.memory_gib=0.001"))
    assert "no setting would do: take a larger device, or a model of about 0.1 M parameters" in text


def test_fewer_visual_tokens_are_computed(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is encoded anew under the lower limit; a model whose images take no less is not offered it."""
    monkeypatch.setattr(memory_check, "VISUAL_TOKENS", (9, 4))
    few = (*SMALL[1:-1], "model=tiny_qwen2vl", "train.gradient_checkpointing=true", "trainer.memory_gib=0.0042")
    (setting,) = re.findall(r"(model\.max_visual_tokens_per_image=\d) \(", problem(compose(*few)))
    assert problem(compose(*few, setting)) == ""
    assert "max_visual_tokens" not in problem(compose(*SMALL, "trainer.memory_gib=0.104"))


def test_weights_alone_for_answers(compose: Compose) -> None:
    config = compose(*SMALL)
    with pytest.raises(LoadedError):
        load_base(config.model, TrainerConfig("cpu"), seed=0)
    with pytest.raises(ConfigError, match=r"memory: Expected about \d+ MiB for the weights, got 10 MiB free on cpu"):
        load_base(config.model, TrainerConfig("cpu", memory_gib=0.01), seed=0)


def test_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the GPU by its driver, of a CPU what the machine and the container leave, shared by a run's processes."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 << 30, 24 << 30))
    assert free_bytes(GPU, TrainerConfig()) == 5 << 30
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory_check, "CGROUP_LIMIT", limit)
    unlimited = free_bytes(CPU, TrainerConfig())
    assert unlimited > 1 << 28
    limit.write_text("max\n")
    assert free_bytes(CPU, TrainerConfig()) > 1 << 28
    used = memory_check.psutil.Process().memory_info().rss
    limit.write_text(str(used + (1 << 26)))
    assert 0 < free_bytes(CPU, TrainerConfig()) < 1 << 27
    limit.unlink()
    assert free_bytes(CPU, TrainerConfig(devices=4)) < unlimited / 2
    assert free_bytes(CPU, TrainerConfig(memory_gib=2.5, devices=4)) == int(2.5 * (1 << 30))


def pretend(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    """A GPU that torch says can hold bf16 tensors, as all of them can."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)
    monkeypatch.setattr(building, "pick_device", lambda trainer: GPU)


@pytest.mark.parametrize(
    ("bf16", "precision", "dtype"), [(True, "bf16-mixed", "bfloat16"), (False, "16-mixed", "float16")]
)
def test_older_gpus_take_fp16(monkeypatch: pytest.MonkeyPatch, bf16: bool, precision: str, dtype: str) -> None:
    """torch counts emulated bf16 as support: on a T4 it is slower than fp32."""
    pretend(monkeypatch, bf16=bf16)
    assert pick_precision(TrainerConfig(), GPU) == precision
    assert storage_dtype(GPU) == getattr(torch, dtype)


def test_apples_gpus_are_fp32(compose: Compose) -> None:
    assert pick_precision(TrainerConfig(), MPS) == "32-true" and storage_dtype(MPS) == torch.float32


@pytest.mark.parametrize(
    ("device", "override", "said"),
    [
        (GPU, "trainer.precision=bf16-mixed", "trainer.precision: this GPU has no bf16, got bf16-mixed; set auto or"),
        (CPU, "trainer.precision=16-mixed", "trainer.precision: CPUs have no fp16 training, got 16-mixed; set auto or"),
        (MPS, "train.optimizer=adamw_8bit", "train.optimizer: bitsandbytes has none for Apple's GPUs, got adamw_8bit"),
    ],
)
def test_what_a_device_cannot(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, device: torch.device, override: str, said: str
) -> None:
    pretend(monkeypatch, bf16=False)
    monkeypatch.setattr(building, "pick_device", lambda trainer: device)
    with pytest.raises(ConfigError) as refused:
        resolved(compose(*SMALL, override))
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
    resolved(compose(*SMALL))


@pytest.mark.slow
def test_checkpointing_is_chosen_where_no_row_fits_without(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not where fewer rows at once would do, not against the settings, and not for a model that has none."""
    chosen: list[bool] = []
    monkeypatch.setattr(building, "load_model", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(building.lora, "attach", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(building.lora, "checkpoint_language", lambda _: chosen.append(True))
    one_row = (*SMALL, "train.rows_per_batch=1")

    def found(*settings: str) -> bool:
        chosen.clear()
        config = resolved(compose(*one_row, *settings)).config
        built = build(config.model, config.data, config.trainer, seed=0, train=config.train)
        assert built.checkpointing == bool(chosen)
        return built.checkpointing

    needed = float(re.findall(r"about ([\d.]+) MiB", (found(), capsys.readouterr().out)[1])[0]) / 1024
    little = f"trainer.memory_gib={needed - 0.002:.4f}"
    assert not found() and found("train.gradient_checkpointing=true") and found(little)
    assert "with train.gradient_checkpointing=true, as no row fits without" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"what would fit: .*train\.gradient_checkpointing=true"):
        found(little, "train.gradient_checkpointing=false")
    with monkeypatch.context() as patched:
        patched.setattr("transformers.Idefics3ForConditionalGeneration.supports_gradient_checkpointing", False)
        with pytest.raises(ConfigError) as refused:
            found(little)
    assert "gradient_checkpointing" not in str(refused.value)
