"""python train.py: infer, build, preflight, fit, keep the best, evaluate untuned and tuned, report."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger

from vlmft.config.check import ConfigError
from vlmft.config.schema import Scale, TrainConfig, Tuning
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import LEDGER_FILE, Ledger
from vlmft.models.lora import tuned_parts
from vlmft.run.build import Built, infer
from vlmft.run.card import keep_card
from vlmft.run.evaluate import Evaluation, adapter_sha256, evaluate_arms
from vlmft.run.fit import fit
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
from vlmft.run.trained_on import tell_trained_rows
from vlmft.training.interruption import Interrupted, StopRequest, stop_request
from vlmft.training.metrics_file import METRICS_FILE
from vlmft.training.ranks import follows, local_rank
from vlmft.training.tracking import MetricsFile, Wandb, lightning_loggers, require_tensorboard


def train(config: TrainConfig, dataset: Dataset | None = None) -> Path:
    """One run from settings to report; returns its folder, which is made when model, data and preflight are well.

    Raises:
        ConfigError: the settings or a preflight check say that this run cannot be what it is meant to be.
        BadRowError: as the ledger says; it is then all that there is of the run.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; what was done is stored.
    """
    (give_back_freed_pages if config.train.gradient_checkpointing else keep_freed_pages)()
    quiet_libraries()
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
