"""vlmft trace and the command around it, what is inferred, and the small things of a run."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmft.config.check import ConfigError
from vlmft.config.entry import conf_dir
from vlmft.config.schema import TrainConfig
from vlmft.config.tool_schema import TraceConfig
from vlmft.config.tools import compose_tool
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.evaluation.prompts import blanked
from vlmft.run.build import build, pick_device, resolved
from vlmft.run.present import print_inferred
from vlmft.sample import Message, Prompt
from vlmft.tools import cli
from vlmft.tools.trace import trace
from vlmft.training import memory

STAGES = [
    "0 index",
    "1 read",
    "2 render",
    "3 encode",
    "4 collate",
    "5 see",
    "6 forward",
    "7 learn",
    "8 answer",
    "9 score",
]
GENERATED = ("shapes", "shapes_pretrain")


def traced(*overrides: str, colour: bool = False) -> None:
    trace(compose_tool("trace", TraceConfig, ["model=tiny_qwen2vl", *overrides]), colour=colour)


def test_the_generated_datasets_are_those_without_a_path() -> None:
    names = {path.stem for path in (conf_dir() / "data").glob("*.yaml")}
    assert len(names) >= 3 and set(GENERATED) < names


@pytest.mark.parametrize("data", GENERATED)
def test_trace_prints_all_stages(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    traced(f"data={data}", "index=2")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == STAGES
    assert "\033[" not in "".join(lines)
    (tokens,) = [line for line in lines if line.startswith("  tokens: ")]
    assert "[<|im_end|>]" in tokens and "<|image_pad|>x" in tokens  # supervised in brackets, image tokens as one


def test_trace_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    traced("data=shapes", "data.options.val_rows=9", "json=true", "split=val", "index=1")
    stages = json.loads(capsys.readouterr().out)
    assert list(stages) == STAGES
    assert stages["0 index"] == {"split": "val", "rows": 9, "id": "shapes/A/val/000001"}
    answer = stages["2 render"]["answer"].strip("'")
    tokens = stages["3 encode"]["tokens"]
    assert "".join(text * count for text, supervised, count in tokens if supervised) == f"{answer}<|im_end|>"
    assert stages["3 encode"]["supervised tokens"] == len(stages["7 learn"]["loss of each supervised token"])
    assert stages["9 score"]["references"] == [answer]


def test_trace_colours_what_is_learnt(capsys: pytest.CaptureFixture[str]) -> None:
    traced("data=shapes", colour=True)
    assert "\033[32m<|im_end|>\033[0m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("index=30", "data.options.train_rows=30"), "index: Expected 0 to 29, the rows of train, got 30"),
        (("split=tset",), "split: Expected train, val or test, got 'tset'"),
        (("index=-1",), "index: "),
    ],
)
def test_trace_of_what_is_not_there(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        traced("data=shapes", *arguments)


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["vlmft", *arguments])
    cli.main()


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",), ("help",)])
def test_usage(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called(monkeypatch, *arguments)
    shown = capsys.readouterr().out
    assert shown == cli.usage()
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)


def test_an_unknown_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        called(monkeypatch, "trase", "data=shapes")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and "'trase'" in error and error.count("\n") == 1


def test_the_command_traces(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called(monkeypatch, "trace", "model=tiny_qwen2vl", "data=shapes", "--json")
    assert list(json.loads(capsys.readouterr().out)) == STAGES
    with pytest.raises(SystemExit) as stopped:
        called(monkeypatch, "trace", "model=tiny_qwen2vl", "indx=3")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "indx" in error and error.count("\n") == 1


@pytest.mark.slow
def test_python_m_vlmft() -> None:
    command = [sys.executable, "-m", "vlmft", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert found.stdout == cli.usage()


# --- what the user left open


def test_everything_inferred_is_said(compose: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    config = compose("model=tiny_qwen2vl", "data=shapes", "trainer=cpu")
    plan = resolved(config)
    found, config = plan.inferred, plan.config
    assert {item.key: item.value for item in found} == {
        "train.lr": 0.0015,
        "trainer.max_epochs": config.data.default_epochs,
        "train.rows_per_batch": config.train.rows_per_step,
        "device": "cpu",
        "trainer.precision": "32-true",
        "trainer.threads": int(os.environ["OMP_NUM_THREADS"]),
    }
    assert all(item.origin for item in found)
    assert (config.train.lr, config.trainer.max_epochs) == (0.0015, config.data.default_epochs)
    assert config.train.rows_per_batch == config.train.rows_per_step
    print_inferred(found)
    printed = capsys.readouterr().out
    assert "  chosen for you: train.lr=0.0015, trainer.max_epochs=" in printed and "(from OMP_NUM_THREADS)" in printed
    print_inferred(found, verbose=True)
    assert "  train.lr = 0.0015  (from model.default_lr of tiny_qwen2vl)" in capsys.readouterr().out.splitlines()
    assert [item.key for item in resolved(config).inferred] == ["device"]  # the rest is settled now


def test_what_was_said_is_not_inferred(compose: Callable[..., Any]) -> None:
    said = ("train.lr=1e-4", "trainer.max_epochs=1", "train.rows_per_batch=2", "trainer.threads=1")
    said += ("trainer.precision=bf16-mixed",)
    config = compose("model=tiny_qwen2vl", "data=shapes", "trainer=cpu", *said)
    assert [item.key for item in resolved(config).inferred] == ["device"]
    assert (config.train.lr, config.trainer.precision) == (1e-4, "bf16-mixed")


def test_steps_mean_no_epochs(compose: Callable[..., Any]) -> None:
    config = resolved(compose("model=tiny_qwen2vl", "data=shapes", "trainer.max_steps=7")).config
    assert (config.trainer.max_epochs, config.trainer.max_steps) == (-1, 7)


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=r"trainer\.accelerator: Expected auto, cpu.*got 'gpu'"):
        pick_device(TrainerConfig(accelerator="gpu"))
    assert pick_device(TrainerConfig(accelerator="auto")).type in ("cpu", "mps")


def test_datasets_take_what_they_name(compose: Callable[..., TrainConfig], tmp_path: Path) -> None:
    def build_with(override: str) -> None:  # make_built would take what an earlier test has built
        config = compose("model=tiny_qwen2vl", override)
        build(config.model, config.data, config.trainer, seed=0)

    with pytest.raises(ConfigError, match=r"data\.path: Shapes is generated and takes none"):
        build_with(f"data.path={tmp_path}")
    with pytest.raises(ConfigError, match=r"data\.options: Expected image_size >="):
        build_with("data.options.image_size=2")
    with pytest.raises(ConfigError, match=r"data\.metric: .*did you mean 'count_accuracy'"):
        build_with("data.metric=count_acuracy")


# --- small things


def test_blanked_prompts_keep_all_but_the_pictures(make_built: Callable[..., Any]) -> None:
    _, built = make_built("model.quantization.mode=none")
    (sample,) = built.data.samples(built.data.ids["test"][:1])
    prompt = Prompt((Message("system", ("Be brief.",)), *sample.prompt.messages))
    black = blanked(prompt)
    assert [(m.role, m.text) for m in black.messages] == [(m.role, m.text) for m in prompt.messages]
    (before,), (after,) = prompt.images, black.images
    assert after.pixels.shape == before.pixels.shape and not after.pixels.any() and before.pixels.any()


def test_keep_freed_pages_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.keep_freed_pages()
    memory.keep_freed_pages()
    blocks = [bytearray(8 << 20) for _ in range(8)]
    assert all(not any(block[:: 1 << 20]) for block in blocks)
    total = torch.ones(1 << 20).sum() + torch.ones(1 << 21)[: 1 << 20].sum()
    assert float(total) == 2 << 20
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("looked for glibc where there is none"))
    memory.keep_freed_pages()


def test_peak_memory_is_in_bytes() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("only Linux says what is resident now")
    resident = int(statm.read_text().split()[1]) * 4096
    # The kernel brings its two counters up to date at different times: 64 MiB are allowed for that.
    assert resident - (64 << 20) <= memory.peak_memory_bytes() < 100 * resident
