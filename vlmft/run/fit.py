"""Training: the Trainer, the module, where a resumed run starts, and the best checkpoint's weights at the end."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from vlmft.config.check import ConfigError
from vlmft.config.schema import TrainConfig
from vlmft.metrics import metric_named
from vlmft.metrics.mean_score import MeanScore
from vlmft.run.build import Built
from vlmft.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    FolderCheckpointIO,
    latest_whole,
    read_checkpoint,
)
from vlmft.training.interruption import StopRequest
from vlmft.training.metrics_file import read_metrics
from vlmft.training.module import SKIPPED_FILE, VLMModule
from vlmft.training.progress import progress_bar
from vlmft.training.ranks import WindowRanks, gathered, leave_ranks, n_ranks, rank
from vlmft.training.tracking import MetricsFile, Wandb, replay


def total_steps(config: TrainConfig, n_windows: int) -> int:
    """Optimiser steps of the whole run, without asking Lightning: its own estimate drops a loader's state."""
    limit = config.trainer.limit_train_batches
    if limit is not None:
        n_windows = int(min(n_windows, limit)) if limit >= 1 else math.floor(n_windows * limit)
    epochs = config.trainer.max_epochs
    if epochs == config.trainer.max_steps == -1:
        raise ConfigError("trainer.max_epochs: Expected an end of training, got -1 without trainer.max_steps; set one")
    steps = n_windows * epochs if epochs is not None and epochs >= 0 else config.trainer.max_steps
    return min(steps, config.trainer.max_steps) if config.trainer.max_steps >= 0 else steps


def validation(built: Built, config: TrainConfig, stop: StopRequest) -> Callable[[Sequence[str]], Mapping[str, float]]:
    """Row ids -> logged values: the dataset's own metric on generated answers."""
    data, answerer = built.data, built.answerer(config.evaluation, poll=stop.check)
    if config.trainer.devices > 1:
        answerer.poll = lambda: None  # a rank that stopped here would leave the others waiting
    prefix = f"val/{config.data.name}"

    def validate(row_ids: Sequence[str]) -> Mapping[str, float]:
        samples = {sample.id: sample for sample in data.samples(row_ids)}
        score = MeanScore(metric_named(data.metric_name)).to(built.device)  # sums itself over the ranks
        numbers = itertools.count()
        for answers in answerer.batches(
            data.questions(list(samples)), skip=lambda ids: next(numbers) % n_ranks() != rank()
        ):
            score.update([a.text for a in answers.values()], [samples[row_id].references for row_id in answers])
        result = score.compute()
        return {
            f"{prefix}/{data.metric_name}": result["value"],
            f"{prefix}/n": float(result["num"]),
            f"{prefix}/unparsed": float(result["unparsed"]),
        }

    return validate


def make_trainer(config: TrainConfig, folder: Path, loggers: Sequence[Logger], checkpoints: Checkpoints) -> L.Trainer:
    """Lightning's Trainer with our checkpoint format; everything it does to gradients is ours."""
    settings = config.trainer
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        limit_train_batches=_count_or_share(settings.limit_train_batches),
        limit_val_batches=_count_or_share(settings.limit_val_batches) if checkpoints.monitor is not None else 0,
        val_check_interval=_count_or_share(settings.val_check_interval),
        # An interval counted in windows goes on over the ends of epochs.
        check_val_every_n_epoch=None if (settings.val_check_interval or 0) >= 1 else settings.check_val_every_n_epoch,
        num_sanity_val_steps=settings.num_sanity_val_steps,
        log_every_n_steps=settings.log_every_n_steps,
        fast_dev_run=settings.fast_dev_run,
        deterministic="warn" if settings.deterministic else None,
        logger=list(loggers),
        strategy=WindowRanks() if settings.devices > 1 else "auto",
        callbacks=[checkpoints, progress_bar()],
        plugins=[FolderCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
    )


def _count_or_share(value: float | None) -> int | float | None:
    """Lightning tells a count from a share by its type."""
    return int(value) if value is not None and value >= 1 else value


def fit(
    config: TrainConfig, built: Built, folder: Path, loggers: Sequence[Logger], stop: StopRequest
) -> tuple[Checkpoints, VLMModule]:
    """Trains, from the last whole checkpoint where there is one, then puts the best one's weights into the model."""
    monitor = f"val/{config.data.name}/{built.data.metric_name}" if built.data.ids["val"] else None
    if monitor is None:
        print("  val has no rows: nothing is validated, a checkpoint is saved after each epoch, the last is taken")
    checkpoints = Checkpoints(folder / "checkpoints", monitor, config.train.early_stopping_patience, stop)
    assert config.train.lr is not None
    module = VLMModule(
        built.family,
        built.model,
        config.model.train,
        config.train,
        config.train.lr,
        total_steps(config, len(built.data.train_dataloader())),
        validation(built, config, stop),
        folder / SKIPPED_FILE,
    )
    for logger in loggers:
        if isinstance(logger, Wandb) and monitor is not None:
            logger.keep_best(monitor)
    start = resume_point(folder, loggers)
    trainer = make_trainer(config, folder, loggers, checkpoints)
    trainer.fit(module, datamodule=built.data, ckpt_path=str(start) if start is not None else None, weights_only=True)
    for bad in gathered(built.data.ledger.bad)[1:]:
        built.data.ledger.take_over(bad)
    leave_ranks()
    chosen = checkpoints.chosen() if not config.trainer.fast_dev_run else None
    if chosen is not None:
        module.load_state_dict(_whole(chosen)["state_dict"])
    elif not config.trainer.fast_dev_run:
        print("the last checkpoint could not be saved; the adapter is that of the last window", file=sys.stderr)
    built.model.eval()
    return checkpoints, module


def _whole(chosen: Path) -> dict[str, Any]:
    try:
        return read_checkpoint(chosen)
    except CheckpointError as error:  # another one in its place would be another result
        raise ConfigError(f"the best checkpoint is lost: {error}; remove {chosen.parents[1]} and train anew") from error


def resume_point(folder: Path, loggers: Sequence[Logger]) -> Path | None:
    """The last whole checkpoint, said aloud; metrics.jsonl is cut back to it, and what is left goes to the others."""
    start, damaged = latest_whole(folder / "checkpoints")
    for sentence in damaged:
        print(f"  {sentence}")
    if start is not None:
        print(f"  going on from {start.name}")
    step = int(start.name.removeprefix("step-")) if start is not None else 0
    metrics = next((logger for logger in loggers if isinstance(logger, MetricsFile)), None)
    if metrics is not None:
        metrics.cut_back(step)
        if (folder / SKIPPED_FILE).exists():
            MetricsFile(folder / SKIPPED_FILE).cut_back(step)
        for line, logger in itertools.product(read_metrics(metrics.path), loggers):
            if logger is not metrics:
                replay(line, logger)
    return start
