"""python train.py: infer, build, preflight, fit, keep the best, evaluate untuned and tuned, report."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from vlmft.config.check import ConfigError
from vlmft.config.schema import Scale, TrainConfig, Tuning
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import LEDGER_FILE, Ledger
from vlmft.metrics import metric_named
from vlmft.metrics.mean_score import MeanScore
from vlmft.models.lora import tuned_parts
from vlmft.run.build import Built, infer
from vlmft.run.card import keep_card
from vlmft.run.evaluate import Evaluation, adapter_sha256, evaluate_arms
from vlmft.run.folder import (
    ADAPTER,
    CONFIG_FILE,
    SUMMARY_FILE,
    find_folder,
    folder_of,
    make_folder,
    plain,
    tell_folder,
)
from vlmft.run.lock import locked
from vlmft.run.manifest import MANIFEST_FILE, keep_manifest
from vlmft.run.memory import give_back_freed_pages, keep_freed_pages
from vlmft.run.preflight import Check
from vlmft.run.present import (
    print_evaluation,
    print_inferred,
    print_phases,
    where,
)
from vlmft.run.quiet import quiet_libraries
from vlmft.run.ready import Ready, built_for, made_ready
from vlmft.run.results import SMOKE, Summary, log_predictions, report, save_adapter, write_results
from vlmft.run.smoke import make_small
from vlmft.run.trained_on import tell_trained_rows
from vlmft.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    FolderCheckpointIO,
    latest_whole,
    read_checkpoint,
)
from vlmft.training.interruption import Interrupted, StopRequest, stop_request
from vlmft.training.metrics_file import METRICS_FILE, read_metrics
from vlmft.training.module import SKIPPED_FILE, VLMModule
from vlmft.training.progress import progress_bar
from vlmft.training.ranks import WindowRanks, follows, gathered, leave_ranks, local_rank, n_ranks, rank
from vlmft.training.tracking import MetricsFile, Wandb, lightning_loggers, replay, require_tensorboard


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


def train(config: TrainConfig, dataset: Dataset | None = None) -> Path:
    """One run from settings to report; returns its folder, which is made when model, data and preflight are well.

    Raises:
        ConfigError: the settings or a preflight check say that this run cannot be what it is meant to be.
        BadRowError: as the ledger says; it is then all that there is of the run.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; what was done is stored.
    """
    (give_back_freed_pages if config.train.gradient_checkpointing else keep_freed_pages)()
    quiet_libraries()
    if config.scale == Scale.smoke:
        make_small(config)
    inferred = infer(config)
    require_tensorboard(config.logger)
    if follows():
        return _follow(config, dataset)
    folder, finished = find_folder(config)
    tell_folder(folder)
    print(f"{config.model.name} on {config.data.name}, run folder {folder}")
    if config.scale == Scale.smoke:
        print(f"  {SMOKE}")
    if finished:
        print(f"  finished already: {folder / SUMMARY_FILE}")
        return folder
    print_inferred(inferred)
    with contextlib.ExitStack() as held:
        stop = held.enter_context(stop_request("the same command with resume=true goes on"))
        new = not (folder / CONFIG_FILE).exists()
        if not new:
            held.enter_context(locked(folder))
        ledger = Ledger(None, config.data.on_bad_row, config.data.bad_row_ceiling)
        with ledger.kept_if_refused(folder / LEDGER_FILE):
            ready = made_ready(config, folder, dataset, ledger, stop)
        if new:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
            find_folder(config)  # once more: another process may have made it meanwhile
            make_folder(config)
        ledger.keep(folder / LEDGER_FILE, anew=new)
        _tracked(config, folder, ready, stop)
    return folder


def _follow(config: TrainConfig, dataset: Dataset | None) -> Path:
    """What a rank other than 0 does: its share of the training. It prints and writes nothing."""
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of this process
    if config.trainer.devices == 1:
        raise ConfigError(
            "trainer.devices: Expected the number of processes that were started, got 1 in one of a higher rank; set "
            "it, or unset LOCAL_RANK, NODE_RANK and GROUP_RANK"
        )
    folder = folder_of(config)
    built = built_for(config, dataset, None)
    L.seed_everything(config.seed + local_rank(), verbose=False)
    with stop_request() as stop, contextlib.suppress(Interrupted):
        fit(config, built, folder, [], stop)
    return folder


def _tracked(config: TrainConfig, folder: Path, ready: Ready, stop: StopRequest) -> None:
    loggers: list[Logger] = [MetricsFile(folder / METRICS_FILE), *lightning_loggers(config.logger, folder)]
    tracker = None
    if config.logger.wandb and not config.trainer.fast_dev_run:
        run_name = f"{config.model.name}-{config.data.name}-{folder.name}"
        tracker = Wandb(config.logger, folder, run_name, plain(config), "train")
        print(f"  wandb      {tracker.where}", flush=True)
        loggers.append(tracker)
    exit_code = 1
    try:
        _run(config, folder, ready, loggers, stop)
        if tracker is not None and config.logger.log_adapter:
            tracker.log_folder(folder / ADAPTER, "model")
        exit_code = 0
    except Interrupted as error:
        exit_code = error.exit_code
        raise
    finally:
        if tracker is not None:
            tracker.log_summary(ready.summary.headline_values())
            tracker.close(exit_code)
            print(f"  wandb      {tracker.where} ({tracker.seconds:.1f} s spent waiting for it)")


def _run(config: TrainConfig, folder: Path, ready: Ready, loggers: Sequence[Logger], stop: StopRequest) -> None:
    built, summary, clock = ready.built, ready.summary, ready.clock
    if (sheet := keep_card(ready.card, built.data, folder)) is not None:
        print(f"  near-duplicates: look at them in {sheet}")
    if not config.trainer.fast_dev_run:  # its test rows are cut
        keep_manifest(folder / MANIFEST_FILE, built.data)
    before = None
    untuned = [arm for arm in config.evaluation.arms if arm.partition("@")[0] in ("untuned", "fewshot")]
    if ready.tested and untuned and tuned_parts(config.model.train, Tuning.full):
        # full training overwrites the untuned model: its arms are answered before
        before = evaluate_arms(built, config.evaluation, untuned, "test", folder, adapters=(), poll=stop.check)
    stop.check()
    with clock("train"):
        L.seed_everything(config.seed, verbose=False)
        checkpoints, module = fit(config, built, folder, loggers, stop)
    summary.steps, summary.skipped_windows = module.steps, module.skipped_windows
    summary.best_checkpoint, summary.best_value = checkpoints.best, checkpoints.best_value
    save_adapter(built, folder / ADAPTER)
    summary.adapter_sha256 = adapter_sha256(built)
    places = {"adapter": folder / ADAPTER, "metrics": folder / METRICS_FILE, "config": folder / CONFIG_FILE}
    if ready.tested:
        with clock("evaluate"):
            found, shown = _test(config, built, folder, summary, ready.checks, before, stop)
            places = {**shown, **places}
        log_predictions(found, config.logger.table_rows, loggers)
    summary.bad_rows = len(built.data.ledger.bad)
    summary.write(folder)
    print_phases(summary.phases)
    where({**places, "summary": folder / SUMMARY_FILE})


def _test(
    config: TrainConfig,
    built: Built,
    folder: Path,
    summary: Summary,
    checks: Sequence[Check],
    before: Evaluation | None,
    stop: StopRequest,
) -> tuple[Evaluation, dict[str, Path]]:
    """Evaluates the arms on the test split, prints the table, writes the report; returns also where things lie."""
    arms = config.evaluation.arms
    found = evaluate_arms(built, config.evaluation, arms, "test", folder, before=before, poll=stop.check)
    tell_trained_rows(found, built.data, config.data, {}, config.model.path)
    summary.add(found)
    print_evaluation(found, verbose=config.evaluation.verbose)
    content = report(built, config, summary, found, checks, folder / METRICS_FILE, config.evaluation.gallery_rows)
    return found, {"report": write_results(content, folder), "predictions": folder / "predictions"}
