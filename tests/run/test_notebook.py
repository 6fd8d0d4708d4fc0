"""The module and its DataModule with a Trainer that somebody else made; docs/notebook.md is run as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import vlmft
from tests.small_runs import SMALL, Run
from vlmft.config.check import ConfigError
from vlmft.data.datamodule import VLMDataModule
from vlmft.training.checkpoint import read_checkpoint
from vlmft.training.module import VLMModule

pytestmark = pytest.mark.slow  # whole runs

PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"
SMALLER = {"limit_train=256": "limit_train=32", "limit_val=32": "limit_val=4", "limit_test=64": "limit_test=8"}


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


def run_page(change: Callable[[str], str] = lambda text: text) -> dict[str, Any]:
    """Every cell, one after another; what they leave behind."""
    names: dict[str, Any] = {}
    for block in blocks():
        exec(compile(change(block), str(PAGE), "exec"), names)
    return names


def smaller(text: str) -> str:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return text


def test_the_page_is_short() -> None:
    first, *others = blocks()
    assert len(others) == 2
    assert len([line for line in first.splitlines() if line]) <= 10
    assert all(large in first for large in SMALLER)


def test_the_page_runs_on_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page(smaller)
    assert names["trainer"].global_step == 4
    assert names["result"].n == len(names["tuned"]) == len(names["untuned"]) == 8
    assert f"{names['result'].second_value:.1%}, " in capsys.readouterr().out


def test_the_page_as_it_stands_makes_the_model_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_page()["result"]
    assert result.n == 64
    assert result.verdict == "better"


def trainer(folder: Path, **settings: Any) -> L.Trainer:
    """Lightning's own settings, but for what it prints and where it writes."""
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(
        **{"enable_checkpointing": False, "default_root_dir": folder, "accelerator": "cpu", **quiet, **settings}
    )


def pair(*overrides: str) -> tuple[VLMModule, VLMDataModule]:
    return vlmft.from_config(vlmft.compose(*SMALL, *overrides))


@pytest.fixture(scope="module")
def small() -> tuple[VLMModule, VLMDataModule]:
    """For tests that do not train."""
    return pair()


def texts(fitted: L.Trainer, module: VLMModule, data: VLMDataModule) -> dict[str, str]:
    batches = fitted.predict(module, datamodule=data)
    assert batches is not None
    return {row["id"]: row["text"] for batch in batches for row in batch}


def stored(run: Run, arm: str) -> dict[str, str]:
    return {row["id"]: row["text"] for row in map(json.loads, run.predictions(arm).splitlines())}


def test_a_trainer_of_somebody_else_does_what_train_py_does(trained: Run, tmp_path: Path) -> None:
    module, data = pair()
    fitted = trainer(tmp_path, max_epochs=2)
    with module.model.disable_adapter():
        assert texts(fitted, module, data) == stored(trained, "untuned")
    L.seed_everything(0, verbose=False)
    fitted.fit(module, datamodule=data)
    logged = {name: float(value) for name, value in fitted.callback_metrics.items() if name.startswith("val/")}
    (*_, line) = (line for line in trained.metrics if "val/loss" in line)
    assert logged == {name: value for name, value in line.items() if name.startswith("val/")}
    assert "val/shapes/count_accuracy" in logged
    checkpoints = trained.folder / "checkpoints"
    last = read_checkpoint(sorted(checkpoints.glob("step-*"))[-1])["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in module.state_dict().items())
    module.load_state_dict(read_checkpoint(checkpoints / trained.summary["best_checkpoint"])["state_dict"])
    assert texts(fitted, module, data) == stored(trained, "tuned")
    (tested,) = fitted.test(module, datamodule=data, verbose=False)
    (value,) = (arm["value"] for arm in trained.summary["arms"] if arm["arm"] == "tuned")
    assert tested["test/shapes/count_accuracy"] == pytest.approx(value)
    assert tested["test/shapes/n"] == 24


def test_validation_and_other_splits(small: Any, tmp_path: Path) -> None:
    module, data = small
    (found,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert found.keys() == {"val/loss"} | {f"val/shapes/{name}" for name in ("count_accuracy", "n", "unparsed")}
    assert found["val/shapes/n"] == 16
    data.predict_split = "val"
    try:
        assert list(texts(trainer(tmp_path), module, data)) == list(data.ids["val"])
    finally:
        data.predict_split = "test"


def test_no_precision_of_a_trainer_moves_an_answer(small: Any, tmp_path: Path) -> None:
    module, data = small
    generated = []
    inner = module.answerer.family.generate
    module.answerer.family.generate = lambda *inputs: (
        generated.append(torch.is_autocast_enabled("cpu")) or inner(*inputs)
    )
    try:
        mixed = texts(trainer(tmp_path, precision="bf16-mixed"), module, data)
    finally:
        del module.answerer.family.generate
    assert generated and not any(generated)
    assert mixed == texts(trainer(tmp_path), module, data)


def test_a_checkpoint_of_lightnings_own_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    """In the middle of an epoch of four windows, at its end, and in the next one; dropout shows the random numbers."""
    overrides = ("model.lora.dropout=0.3", "model.quantization.mode=none", "data.max_new_tokens=1")
    module, data = pair(*overrides)
    saved = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    L.seed_everything(1, verbose=False)
    trainer(tmp_path, max_steps=6, callbacks=[saved], enable_checkpointing=True).fit(module, datamodule=data)
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    assert data.state_dict() == {"epoch": 1, "windows": 2}
    for step in (3, 4, 5):
        other, other_data = pair(*overrides)
        L.seed_everything(2, verbose=False)
        resumed = trainer(tmp_path, max_steps=6)
        resumed.fit(other, datamodule=other_data, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        assert resumed.global_step == 6
        assert all(torch.equal(value, whole[name]) for name, value in other.state_dict().items()), step


def test_overfitting_sees_the_same_rows_in_each_epoch(tmp_path: Path) -> None:
    module, data = pair("model.quantization.mode=none", "data.max_new_tokens=1")
    windows: list[list[str]] = []

    class Windows(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            windows.append(module.window_ids)

    trainer(tmp_path, max_epochs=3, overfit_batches=1, callbacks=[Windows()]).fit(module, datamodule=data)
    assert windows == [list(data.ids["train"][:8])] * 3
    windows.clear()
    trainer(tmp_path, max_epochs=2, limit_train_batches=1, callbacks=[Windows()]).fit(module, datamodule=data)
    assert windows[0] != windows[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"accumulate_grad_batches": 4}, r"accumulate_grad_batches=4\): .*train\.rows_per_step"),
        ({"gradient_clip_val": 0.5}, r"gradient_clip_val=0\.5\): .*train\.max_gradient_norm"),
        ({"max_epochs": -1}, r"trainer\.max_epochs: Expected an end of training"),
    ],
)
def test_a_trainer_that_would_do_a_windows_work_is_refused(
    settings: dict[str, Any], sentence: str, small: Any, tmp_path: Path
) -> None:
    module, data = small
    with pytest.raises(ConfigError, match=sentence):
        trainer(tmp_path, **{"max_epochs": 1, **settings}).fit(module, datamodule=data)


def test_several_devices_need_a_strategy_that_does_not_average(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = small
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    with pytest.raises(ConfigError, match=r"SingleDeviceStrategy\): Expected WindowRanks\(\)"):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)


def test_loaders_without_the_datamodule_are_refused(small: Any, tmp_path: Path) -> None:
    module, data = small
    with pytest.raises(ConfigError, match="Expected datamodule="):
        trainer(tmp_path, max_epochs=1).fit(module, data.train_dataloader())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model=tinny", "model=tinny: no such choice; did you mean"),
        ("train.rows_per_stp=1", r"train\.rows_per_stp: .*did you mean"),
    ],
)
def test_a_mistake_in_compose_names_the_nearest(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        vlmft.compose(override)
