"""scale=smoke: what it puts in the place of what, and each published experiment from end to end with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from benchmarks.smoke.models import FAMILIES
from benchmarks.smoke.stand_ins import make_small
from vlmft.config.check import ConfigError
from vlmft.config.entry import conf_dir, run_entry
from vlmft.config.schema import Init, TrainConfig
from vlmft.run.folder import config_hash, folder_of
from vlmft.run.results import SMOKE

EXPERIMENTS = sorted({file.stem for file in (conf_dir() / "experiment").glob("*.yaml")} - {"pretrain_tiny"})


@pytest.fixture
def small(compose: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., TrainConfig]:
    """small("key=value", ...): the settings that a smoke run goes on with."""

    def made(*overrides: str) -> TrainConfig:
        return make_small(compose("scale=smoke", f"output_root={tmp_path}/out", *overrides))

    return made


def test_stand_ins_are_written_once(small: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = small("experiment=sports_idefics")
    assert (config.model.name, config.data.name) == ("idefics9b", "sports")
    assert (config.model.path, config.data.path) == (f"{tmp_path}/out/smoke/idefics9b", f"{tmp_path}/out/smoke/sports")
    assert config.model.init == Init.random and not config.logger.wandb
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert len(written) > 40
    assert small("experiment=sports_idefics") == config
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()} == written


MODEL_TYPES = {
    "smolvlm256m": "idefics3",
    "smolvlm": "idefics3",
    "qwen2vl": "qwen2_vl",
    "qwen25vl": "qwen2_5_vl",
    "idefics9b": "idefics",
    "moondream2": "moondream1",
}
"""As in the vendors' config.json, by which transformers finds classes and processor."""


def test_models_are_of_the_same_family(tmp_path: Path) -> None:
    assert FAMILIES.keys() == MODEL_TYPES.keys()
    for name, model_type in MODEL_TYPES.items():
        FAMILIES[name](tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))["model_type"] == model_type


def test_what_lies_on_this_machine_stays(small: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    config = small("data=characters", f"data.path={tmp_path}/mine", "logger.mode=offline")
    assert (config.model.path, config.model.init) == ("package:tiny", Init.pretrained)
    assert config.data.path == f"{tmp_path}/mine" and config.logger.wandb
    assert small("data=shapes").data.path is None, "made by code anyway"
    assert not (tmp_path / "out").exists()


def test_sizes_only_shrink(small: Callable[..., TrainConfig]) -> None:
    config = small(
        "data=shapes", "data.limit_train=5", "train.rows_per_batch=2", "data.val_rows=3", "data.test_rows=0.1"
    )
    assert (config.data.limit_train, config.data.limit_val, config.train.rows_per_batch) == (5, 8, 2)
    assert (config.data.val_rows, config.data.test_rows) == (0.2, 0.1)
    assert (config.trainer.max_steps, config.trainer.max_epochs, config.train.warmup_steps) == (-1, None, None)
    assert small("data=shapes", "trainer.max_steps=200").trainer.max_steps == 4
    assert small("data=shapes", "data.val_rows=0").data.val_rows == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("model=auto", "model.path=some/model"), r"Expected model=smolvlm256m or .*, got 'auto'; or set model\.path"),
        (("data=chartqa",), r"Expected data=clevr_count or .*, got 'chartqa'; or set data\.path to a folder"),
    ],
)
def test_what_has_no_stand_in(
    overrides: tuple[str, ...], sentence: str, small: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        small(*overrides)
    assert not (tmp_path / "out").exists()


def test_the_folder_says_it(compose: Callable[..., TrainConfig]) -> None:
    full, smoke = (compose(f"scale={scale}") for scale in ("full", "smoke"))
    assert folder_of(smoke).name == f"smoke-{config_hash(full)}" != folder_of(full).name
    assert folder_of(compose("scale=smoke", "name=mine")).name == "smoke-mine"


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Any, list[str]], str]:
    """command(train, ["key=value", ...]) is train.py with these arguments: what it printed; its mistakes are raised."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def called(entry: Any, arguments: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", [f"{entry.__name__}.py", *arguments])
        run_entry(entry.main)
        return capsys.readouterr().out

    return called


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment(name: str, command: Callable[[Any, list[str]], str], tmp_path: Path) -> None:
    arguments = [f"experiment={name}", "scale=smoke", f"output_root={tmp_path}", "name=run", "verbose=true"]
    said = command(train, arguments)
    (folder,) = tmp_path.glob("*/smoke-run")
    assert SMOKE in said and "FAIL" not in said and "overlap: none" in said
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["scale"] == "smoke" and summary["sentence"].startswith(SMOKE) and summary["notes"][0] == SMOKE
    one_image = "moondream2" in name  # which cannot be shown examples, and says so
    assert any(note.startswith("fewshot: not run: ") for note in summary["notes"]) == one_image
    arms = ["untuned", "tuned"] if one_image else ["untuned", "fewshot", "tuned"]
    assert [arm["arm"] for arm in summary["arms"]] == arms and summary["arms"][0]["n"] >= 5
    assert (summary["bad_rows"], summary["skipped_windows"], summary["leak_canary"]["ok"]) == (0, 0, True)
    assert SMOKE in (folder / "report.html").read_text(encoding="utf-8")
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    assert {split: found["n"] for split, found in splits.items()} == summary["rows"]
    ids = [row_id for found in splits.values() for row_id in found.get("ids", [])]
    assert len(ids) == len(set(ids)) and len(ids) in (0, sum(summary["rows"].values()))
    assert all(learnt(folder / "adapter"))
    assert "finished already" in command(train, [*arguments, "resume=true"])
    again = command(evaluate, [f"run={folder}"]) if name != "pjn_charts_moondream2" else SMOKE  # trained in full
    assert SMOKE in again


def learnt(adapter: Path) -> list[bool]:
    """Of each matrix B, which starts at zero, whether it moved; of a model trained in full, whether it is there."""
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        return [(adapter / "model.safetensors").is_file()]
    found = [bool(torch.count_nonzero(tensor)) for key, tensor in load_file(file).items() if ".lora_B." in key]
    assert found
    return found
