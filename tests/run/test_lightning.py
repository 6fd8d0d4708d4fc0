"""What Lightning and Hydra users expect: the Trainer's arguments, callbacks, loggers, ckpt_path, debug presets."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from vlmft.config.check import ConfigError
from vlmft.models.family import GenericFamily
from vlmft.run.evaluate import evaluate
from vlmft.run.train import train
from vlmft.training.checkpoint import steps_in
from vlmft.training.module import VLMModule

pytestmark = pytest.mark.slow  # whole runs

SETTINGS = (
    "model=tiny_qwen2vl", "model.quantization.mode=none", "model.lora.dropout=0.1", "data.limit_train=24",
    "data.limit_val=8", "data.limit_test=8", "data.max_new_tokens=1", "train.rows_per_step=4", "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1", "evaluation.canary_rows=0", "preflight=false", "test=false", "logger=none",
)  # fmt: skip
"""Twelve windows, a validation after the sixth and the twelfth."""
ADAPTER = "adapter/adapter_model.safetensors"

PLUGIN = """
import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import SingleDeviceStrategy

seen = []

class Mine(L.Callback):
    def __init__(self, every: int = 1) -> None:
        self.every = every

    def on_train_end(self, trainer, pl_module):
        seen.append((self.every, type(trainer.strategy).__name__, trainer.global_step))

class OnCpu(SingleDeviceStrategy):
    def __init__(self) -> None:
        super().__init__(device="cpu")

class Log(Logger):
    name, version = "log", "0"

    def log_hyperparams(self, params, *args, **kwargs):
        seen.append(("settings", params["seed"]))

    def log_metrics(self, metrics, step=None):
        seen.append(("metrics", step, "train/loss" in metrics))
"""


@pytest.fixture
def run(compose: Any, tmp_path: Path) -> Callable[..., Path]:
    """run("key=value", ...): a short training below tmp_path; returns its folder."""
    return lambda *overrides: train(compose(*SETTINGS, f"output_root={tmp_path}", *overrides))


@pytest.fixture(scope="module")
def whole(compose: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with no more settings, which nobody stopped. Not to be changed."""
    return train(compose(*SETTINGS, f"output_root={tmp_path_factory.mktemp('whole')}"))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A user's own vlmft_plugins/mine.py; what it was called with."""
    (tmp_path / "vlmft_plugins").mkdir()
    (tmp_path / "vlmft_plugins/mine.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import vlmft_plugins.mine  # type: ignore[import-not-found]

    yield vlmft_plugins.mine.seen
    for name in ("vlmft_plugins.mine", "vlmft_plugins"):
        sys.modules.pop(name, None)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def stopped_at(window: int, run: Callable[..., Path], *overrides: str) -> None:
    """A run that gets SIGTERM when this window begins."""
    before = VLMModule.on_train_batch_start

    def signalling(self: VLMModule, batch: object, batch_idx: int) -> None:
        before(self, batch, batch_idx)
        if self.trainer.global_step == window:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VLMModule, "on_train_batch_start", signalling)
        with pytest.raises(SystemExit):
            run(*overrides)


def test_a_user_s_own_callback_logger_and_strategy(run: Callable[..., Path], plugin: list[Any]) -> None:
    run(
        "callbacks.mine._target_=vlmft_plugins.mine.Mine",
        "callbacks.mine.every=5",
        "logger.lightning.own._target_=vlmft_plugins.mine:Log",
        "trainer.strategy._target_=vlmft_plugins.mine.OnCpu",
        "trainer.max_steps=3",
    )
    assert plugin[0] == ("settings", 0) and plugin[-1] == (5, "OnCpu", 3)
    assert [step for what, step, *loss in plugin[1:-1] if what == "metrics" and loss == [True]] == [0, 1, 2]


def test_several_callbacks_and_loggers_at_once(run: Callable[..., Path]) -> None:
    folder = run("callbacks=[lr_monitor,device_stats,timer]", "logger=[csv,tensorboard]", "trainer.profiler=simple")
    text = (folder / "csv" / "metrics.csv").read_text()
    assert "lr-AdamW" in text and "DeviceStatsMonitor" in text and "train/loss" in text
    assert (
        list((folder / "tensorboard").glob("events*"))
        and "run_training_batch" in next(folder.glob("*profile*")).read_text()
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["callbacks.x._target_=lightning.pytorch.callbacks.Timr"], r"callbacks\.x\._target_: .*cannot be imported"),
        (["callbacks=timer", "callbacks.timer.durations=1"], r"timer\.durations: Timer has no such argument; did you "
         "mean 'duration'"),
        (["callbacks=timer", "callbacks.timer.duration=soon"], r"callbacks\.timer: .*not a valid duration"),
        (["callbacks.x._target_=lightning.pytorch.callbacks.EMAWeightAveraging"], "callbacks=weight_averaging"),
        (["callbacks.x._target_=lightning.pytorch.callbacks.GradientAccumulationScheduler"], "train.rows_per_step"),
        (["callbacks.x._target_=pathlib.Path"], r"callbacks\.x: Expected a lightning.Callback, got a PosixPath"),
        (["callbacks=early_stopping", "train.early_stopping_patience=2"], "early_stopping_patience: Expected it or"),
        (["logger.lightning.adapter._target_=lightning.pytorch.loggers.CSVLogger"], r"adapter: Expected a name for"),
        (["trainer.fast_dev_run=true", "trainer.barebones=true"], "trainer: .*barebones"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(overrides: list[str], said: str, run: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=said):
        run(*overrides)


def test_early_stopping_by_the_callback_is_that_of_the_shorthand(run: Callable[..., Path]) -> None:
    early = ("trainer.val_check_interval=2", "trainer.max_epochs=10", "train.lr=1e-9")
    by_callback = run(*early, "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "name=callback")
    by_setting = run(*early, "train.early_stopping_patience=1", "name=setting")
    steps = [steps_in(folder / "checkpoints")[-1] for folder in (by_callback, by_setting)]
    assert steps[0] == steps[1] < "step-0000060"


def test_averaged_weights(run: Callable[..., Path], whole: Path) -> None:
    plain = load_file(whole / ADAPTER)
    at_once = load_file(run("name=once", "callbacks=weight_averaging", "callbacks.weight_averaging.decay=0") / ADAPTER)
    mean = ("callbacks=weight_averaging", "callbacks.weight_averaging.decay=null")
    of_all = run("name=whole", *mean)
    averaged = load_file(of_all / ADAPTER)
    assert all(at_once[name].equal(value) for name, value in plain.items())
    assert any(not averaged[name].equal(value) for name, value in plain.items())
    stopped_at(8, run, "name=cut", *mean)
    cut = run("name=cut", *mean, "resume=true")
    assert (cut / ADAPTER).read_bytes() == (of_all / ADAPTER).read_bytes()
    assert losses(cut) == losses(of_all)  # training itself goes on with the weights of the last window


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.barebones=true"],
        [
            "trainer.enable_checkpointing=false",
            "trainer.enable_progress_bar=false",
            "trainer.enable_model_summary=true",
            "trainer.max_time.hours=1",
            "trainer.benchmark=false",
            "trainer.inference_mode=false",
            "trainer.num_sanity_val_steps=1",
            "trainer.profiler._target_=lightning.pytorch.profilers.PassThroughProfiler",
        ],
        [
            "trainer.strategy=ddp",
            "trainer.reload_dataloaders_every_n_epochs=1",
            "trainer.profiler=advanced",
            "trainer.max_time=00:00:10:00",
            "trainer.min_steps=1",
            "trainer.min_epochs=1",
            "trainer.limit_train_batches=1.0",
            "trainer.limit_val_batches=1",
            "trainer.limit_predict_batches=1",
        ],
        [
            "trainer.fast_dev_run=2",
            "trainer.sync_batchnorm=true",
            "trainer.enable_autolog_hparams=false",
            "trainer.detect_anomaly=true",
        ],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_the_trainer_takes(overrides: list[str], run: Callable[..., Path]) -> None:
    folder = run(*overrides)
    expected = 2 if "trainer.fast_dev_run=2" in overrides else 12
    assert json.loads((folder / "summary.json").read_text())["steps"] == expected
    assert (folder / ADAPTER).is_file()


def test_training_ends_at_max_time_with_a_checkpoint(run: Callable[..., Path]) -> None:
    folder = run("trainer.max_time.milliseconds=1", "trainer.max_epochs=50")
    (saved,) = steps_in(folder / "checkpoints")
    assert saved < "step-0000010"


def test_test_batches_are_rows(run: Callable[..., Path]) -> None:
    limited = ("trainer.limit_test_batches=1", "evaluation.rows_per_batch=4", "data.limit_test=null", "test=true")
    folder = run(*limited, "evaluation.arms=[tuned]")
    assert json.loads((folder / "summary.json").read_text())["rows"]["test"] == 4


def test_overfitting_a_few_rows(run: Callable[..., Path]) -> None:
    folder = run("model=tiny", "debug=overfit", "trainer.max_epochs=20", "data.limit_train=null")
    assert folder.parent.name == "debug"
    found = losses(folder)
    assert len(found) == 20 and found[-1] < 0.1 * found[0]
    assert json.loads((folder / "summary.json").read_text())["rows"]["train"] == 4


@pytest.mark.parametrize("preset", ["default", "fdr", "profiler"])
def test_debug_presets(preset: str, run: Callable[..., Path]) -> None:
    folder = run(f"debug={preset}", "trainer.max_epochs=1", "data.limit_train=8")
    assert folder.parent.name == "debug" and json.loads((folder / "summary.json").read_text())["steps"] <= 8
    assert bool(list(folder.glob("*profile*"))) == (preset == "profiler")


# --- checkpoints to go on from


def test_going_on_from_another_run_s_checkpoint(run: Callable[..., Path], whole: Path, capsys: Any) -> None:
    start = whole / "checkpoints" / "step-0000006"
    branch = run("name=branch", f"ckpt_path={start}", "trainer.val_check_interval=2")
    assert "going on from step-0000006" in capsys.readouterr().out
    assert steps_in(branch / "checkpoints")[-1] == "step-0000012" and len(losses(branch)) == 6
    assert losses(branch) == losses(whole)[6:]
    with pytest.raises(ConfigError, match="ckpt_path: Expected the checkpoint of the same trained parameters"):
        run("name=other", f"ckpt_path={start}", "model.lora.r=4")
    with pytest.raises(ConfigError, match=r"ckpt_path: .*is not a whole checkpoint"):
        run("name=none", f"ckpt_path={whole}")


@pytest.mark.parametrize(("ckpt_path", "start"), [("last", "step-0000009"), ("best", "step-0000006")])
def test_going_on_from_the_last_or_the_best(
    ckpt_path: str, start: str, run: Callable[..., Path], whole: Path, capsys: Any
) -> None:
    stopped_at(8, run, "name=cut")
    capsys.readouterr()
    cut = run("name=cut", f"ckpt_path={ckpt_path}")
    assert f"going on from {start}" in capsys.readouterr().out
    assert (cut / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes() and losses(cut) == losses(whole)


# --- a run that goes on with other settings of the machine


def test_a_run_goes_on_with_smaller_batches(
    run: Callable[..., Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(8, run)
    capsys.readouterr()
    sizes, forward = set[int](), GenericFamily.forward

    def measured(self: Any, model: Any, batch: Any, features: Any, keep: Any) -> Any:
        sizes.add(len(batch.row_ids))
        return forward(self, model, batch, features, keep)

    monkeypatch.setattr(GenericFamily, "forward", measured)
    folder = run("resume=true", "train.rows_per_batch=2", "trainer.memory_gib=64", "tags=[again]")
    said = capsys.readouterr().out
    assert "train.rows_per_batch is 2 instead of 4: the result may differ by rounding" in said
    assert "going on from step-0000009" in said and max(sizes) == 2
    assert json.loads((folder / "summary.json").read_text())["steps"] == 12


def test_another_precision_does_not_start_from_zero_unasked(run: Callable[..., Path], tmp_path: Path) -> None:
    stopped_at(8, run)
    other = ("resume=true", "trainer.precision=bf16-mixed", "trainer.max_steps=1")
    with pytest.raises(ConfigError, match=r"trainer\.precision: resume=true finds no run .*go on with it by "
                       r"trainer\.precision=32-true, or start a new one with resume=false"):  # fmt: skip
        run(*other[:2])
    assert len(list((tmp_path / "tiny_qwen2vl-shapes").iterdir())) == 1
    run(*other)  # another length is another run


def test_tags_and_extras_change_no_result(run: Callable[..., Path], capsys: Any) -> None:
    folder = run("tags=[a,b]", "task_name=study", "extras.print_config=true", "trainer.max_steps=1")
    assert "rows_per_step: 4" in capsys.readouterr().out and folder.parent.name == "study"
    assert folder.name == run("trainer.max_steps=1").name


def test_a_stored_run_s_callbacks_are_not_made(
    run: Callable[..., Path], compose_evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run("trainer.max_steps=1")
    (tmp_path / "canary_module.py").write_text("raise SystemExit('foreign code has run')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert "callbacks: {}\n" in text and "strategy: auto\n" in text
    text = text.replace("callbacks: {}", "callbacks: {x: {_target_: canary_module.Canary}}")
    text = text.replace("strategy: auto", "strategy: {_target_: canary_module.Canary}")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    evaluated = evaluate(compose_evaluate(f"run={folder}", "evaluation.arms=[tuned]"))
    assert (evaluated / "summary.json").is_file() and "canary_module" not in sys.modules
