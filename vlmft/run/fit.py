"""Training: the Trainer, the module, where a resumed run starts, and the best checkpoint's weights at the end."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from vlmft.config.check import ConfigError
from vlmft.config.schema import OWN_CHECKPOINTS, TrainConfig
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.models.ranks import gathered
from vlmft.run.build import Built
from vlmft.run.module import make_module
from vlmft.training.callbacks import StepCheckpoint, StopWhenAsked, early_stopping
from vlmft.training.checkpoint import CheckpointError, FolderCheckpointIO, latest_whole, read_checkpoint, steps_in
from vlmft.training.interruption import StopRequest
from vlmft.training.metrics_file import read_metrics
from vlmft.training.module import SKIPPED_FILE, VLMModule
from vlmft.training.progress import ShowSamples, TrainingProgress
from vlmft.training.ranks import WindowRanks, check_together, cluster_plugins, is_shared_out, n_processes
from vlmft.training.targets import made
from vlmft.training.tracking import MetricsFile, Wandb, replay

OWN_METRIC = "metric"
"""As a callback's `monitor`: the metric by which the best checkpoint is chosen, whatever the data's is."""


def with_batch_limits(config: TrainConfig) -> TrainConfig:
    """The settings with `data.limit_*` as `trainer.overfit_batches` and `trainer.limit_test_batches` ask for.

    Lightning would cut an epoch to its first windows, which are of other rows in each epoch; and the test split is not
    tested by its Trainer.
    """
    rows: dict[str, float | None] = {}
    if overfit := _count_or_share(config.trainer.overfit_batches):
        rows["limit_train"] = rows["limit_val"] = _rows(overfit, config.train.rows_per_step)
    if test := _count_or_share(config.trainer.limit_test_batches):
        rows["limit_test"] = _rows(test, config.evaluation.rows_per_batch)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **rows))  # type: ignore[arg-type]


def _rows(batches: float, rows_per_batch: int) -> float | None:
    """As data.limit_train has it: a count, a share below 1, or null for all."""
    return batches * rows_per_batch if isinstance(batches, int) else (batches if batches < 1 else None)


def make_trainer(
    config: TrainConfig, folder: Path, loggers: Sequence[Logger], monitor: str | None, callbacks: Sequence[L.Callback]
) -> L.Trainer:
    """Lightning's Trainer with our checkpoint format; everything it does to gradients is ours."""
    settings = config.trainer
    plugins = [made(f"trainer.plugins.{i}", plugin) for i, plugin in enumerate(settings.plugins)]
    own_cluster = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    interval = _count_or_share(settings.val_check_interval)
    arguments = {name: getattr(settings, name) for name in signature(L.Trainer).parameters if hasattr(settings, name)}
    arguments |= {name: _count_or_share(arguments[name]) for name in arguments if name.startswith("limit_")}
    arguments |= {
        "strategy": strategy_of(settings),
        "overfit_batches": 0,  # data.limit_train and data.limit_val do it: a window has other rows in each epoch
        "val_check_interval": interval,
        # An interval counted in windows goes on over the ends of epochs.
        "check_val_every_n_epoch": None if isinstance(interval, int) else settings.check_val_every_n_epoch,
        "deterministic": "warn" if settings.deterministic else None,
        "profiler": profiler_of(settings, folder),
        "logger": list(loggers),
        "callbacks": list(callbacks),
        "plugins": [FolderCheckpointIO(), *plugins, *([] if own_cluster else cluster_plugins())],
    }
    if monitor is None:
        arguments["limit_val_batches"] = 0
    if is_shared_out(settings):
        arguments["inference_mode"] = False  # `fully_shard` takes none
    if settings.barebones:  # Lightning refuses what it switches off
        arguments |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        arguments |= dict.fromkeys(("num_sanity_val_steps", "log_every_n_steps"))
    # Trap: where operations have to be deterministic, torch also fills every new tensor, which only hides what reads
    # memory that nothing was written to.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return L.Trainer(use_distributed_sampler=False, default_root_dir=str(folder), **arguments)


def _count_or_share(value: float | None) -> int | float | None:
    """Lightning distinguishes a count from a share by its type; stored settings may have 3.0 for a count."""
    return int(value) if value is not None and value > 1 else value


def strategy_of(settings: TrainerConfig) -> Any:
    """One process a device whose gradients are summed once a window, or the user's own."""
    if isinstance(settings.strategy, Mapping):
        return made("trainer.strategy", settings.strategy)
    return WindowRanks() if n_processes(settings) > 1 else "auto"


def profiler_of(settings: TrainerConfig, folder: Path) -> Profiler | None:
    """Lightning's, writing into the run folder, or the user's own."""
    if isinstance(settings.profiler, Mapping):
        profiler: Profiler = made("trainer.profiler", settings.profiler)
        return profiler
    known = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if settings.profiler is None else known[settings.profiler](dirpath=folder, filename="profile")


def make_callbacks(
    config: TrainConfig, monitor: str | None, stop: StopRequest, checkpoint: StepCheckpoint
) -> list[L.Callback]:
    """The user's callbacks, then those that every run has.

    Raises:
        ConfigError: one is no callback, needs a metric that is not there, or is asked for twice.
    """
    callbacks: list[L.Callback] = []
    for name, settings in config.callbacks.items():
        if settings is None:
            continue
        callback = made(f"callbacks.{name}", settings)
        if not isinstance(callback, L.Callback):
            raise ConfigError(f"callbacks.{name}: Expected a lightning.Callback, got a {type(callback).__name__}")
        if getattr(callback, "monitor", None) == OWN_METRIC:
            if monitor is None:
                raise ConfigError(f"callbacks.{name}: needs a validation split, which this data has not; leave it out")
            callback.monitor = monitor  # type: ignore[attr-defined]
        callbacks.append(callback)
    patience = config.train.early_stopping_patience
    if patience is not None and monitor is not None:
        if any(isinstance(callback, EarlyStopping) for callback in callbacks):
            raise ConfigError("train.early_stopping_patience: Expected it or an EarlyStopping of callbacks, got both")
        callbacks.append(early_stopping(monitor, patience))
    shows = config.trainer.enable_progress_bar and not config.trainer.barebones
    if shows and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(TrainingProgress(monitor))
    if config.logger.samples and not config.trainer.barebones:
        callbacks.append(ShowSamples(config.logger.samples))
    callbacks.append(StopWhenAsked(stop, checkpoint))
    if config.trainer.enable_checkpointing and not config.trainer.barebones:
        callbacks.append(checkpoint)
    return callbacks


def fit(
    config: TrainConfig, built: Built, folder: Path, loggers: Sequence[Logger], stop: StopRequest
) -> tuple[StepCheckpoint, VLMModule]:
    """Trains, from the last whole checkpoint where there is one, then puts the best one's weights into the model."""
    monitor = f"val/{config.data.name}/{built.data.metric_name}" if built.data.ids["val"] else None
    if monitor is None:
        print("  val has no rows: nothing is validated, a checkpoint is saved after each epoch, the last is taken")
    start = resume_point(folder, loggers, config.ckpt_path)
    checkpoints = StepCheckpoint(
        folder / "checkpoints", monitor, anew=start is not None and start.parent != folder / "checkpoints"
    )
    callbacks = make_callbacks(config, monitor, stop, checkpoints)
    module = make_module(built, config, partial(check_together, stop), folder / SKIPPED_FILE)
    for logger in loggers:
        if isinstance(logger, Wandb) and monitor is not None:
            logger.keep_best(monitor)
    if checkpoints.anew:
        _require_fitting(module, str(start))
    try:
        trainer = make_trainer(config, folder, loggers, monitor, callbacks)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {error}") from error
    trainer.fit(module, datamodule=built.data, ckpt_path=str(start) if start is not None else None, weights_only=True)
    for bad in gathered(built.data.ledger.bad)[1:]:
        built.data.ledger.take_over(bad)
    check_together(stop)
    chosen = checkpoints.chosen() if not config.trainer.fast_dev_run else None
    if chosen is not None:
        module.load_state_dict(_whole(chosen)["state_dict"])
    elif not config.trainer.fast_dev_run and config.trainer.enable_checkpointing:
        print("the last checkpoint could not be saved; the adapter is that of the last window", file=sys.stderr)
    built.model.eval()
    return checkpoints, module


def _whole(chosen: Path) -> dict[str, Any]:
    try:
        return read_checkpoint(chosen)
    except CheckpointError as error:  # another one in its place would be another result
        raise ConfigError(
            f"the best checkpoint is lost: {error}; remove {chosen.parents[1]} and train again"
        ) from error


def _require_fitting(module: VLMModule, start: str) -> None:
    try:
        module.load_state_dict(read_checkpoint(Path(start))["state_dict"])
    except RuntimeError as error:
        raise ConfigError(f"ckpt_path: {error} ({start})") from error


def resume_point(folder: Path, loggers: Sequence[Logger], ckpt_path: str | None = None) -> Path | None:
    """The checkpoint to go on from, printed: the run's own last whole one, its best, or where it has none, another's.

    metrics.jsonl is cut back to it, and what is left goes to the other loggers.

    Raises:
        ConfigError: the folder that `ckpt_path` names is no whole checkpoint.
    """
    start, damaged = latest_whole(folder / "checkpoints")
    for sentence in damaged:
        print(f"  {sentence}")
    if start is not None and ckpt_path == "best":
        start = _best_alone(start)
    step = int(start.name.removeprefix("step-")) if start is not None else 0
    if start is None and ckpt_path not in (None, *OWN_CHECKPOINTS):
        start = Path(str(ckpt_path))
        step = _whole_step(start)
    if start is not None:
        print(f"  going on from {start.name}")
    metrics = next((logger for logger in loggers if isinstance(logger, MetricsFile)), None)
    if metrics is not None:
        metrics.cut_back(step)
        if (folder / SKIPPED_FILE).exists():
            MetricsFile(folder / SKIPPED_FILE).cut_back(step)
        for line, logger in itertools.product(read_metrics(metrics.path), loggers):
            if logger is not metrics:
                replay(line, logger)
    return start


def _whole_step(start: Path) -> int:
    try:
        return int(read_checkpoint(start)["global_step"])
    except CheckpointError as error:
        raise ConfigError(f"ckpt_path: {error}") from error


def _best_alone(last: Path) -> Path:
    """The best checkpoint by what the last one says; those after it, from which training would go on, are removed."""
    state = read_checkpoint(last)["callbacks"]
    best = next((each["best"] for key, each in state.items() if key.startswith("StepCheckpoint")), None)
    if best is None or not (last.parent / best).is_dir():
        raise ConfigError("ckpt_path: Expected a best checkpoint, but nothing has been validated yet; take last")
    for name in steps_in(last.parent):
        if name > best:
            shutil.rmtree(last.parent / name)
    return last.parent / str(best)
