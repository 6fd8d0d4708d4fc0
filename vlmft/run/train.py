"""python train.py: compose, build, check, fit, test, report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger

from vlmft.config.processes import follows
from vlmft.config.schema import Scale, TrainConfig, Tuning
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import LEDGER_FILE, Ledger
from vlmft.evaluation.evaluate import Evaluation, evaluate_arms
from vlmft.models.lora import trainable, tuned_parts
from vlmft.models.ranks import gathered, of_rank_0, rank
from vlmft.report import write_report_files
from vlmft.report.console import print_evaluation, say, wandb_words
from vlmft.run.build import Built, Plan, resolved, with_chosen_tokens
from vlmft.run.fit import fit, with_batch_limits
from vlmft.run.folder import (
    ADAPTER,
    CONFIG_FILE,
    SUMMARY_FILE,
    find_folder,
    folder_of,
    opened,
    plain,
    report_folder,
    rounding_note,
)
from vlmft.run.preflight import preflight
from vlmft.run.present import print_inferred, print_phases, where
from vlmft.run.quiet import apply_extras, quiet_follower, quiet_libraries
from vlmft.run.ready import Checked, build_for, check, is_tested, keep_data
from vlmft.run.results import SMOKE, Phases, Summary, log_predictions, report
from vlmft.run.rows import note_trained_rows
from vlmft.run.stored_answers import reusable
from vlmft.run.threads import use_threads
from vlmft.run.weights import save_adapter
from vlmft.training.interruption import Interrupted, StopRequest, stop_request
from vlmft.training.metrics_file import METRICS_FILE
from vlmft.training.ranks import check_together, cluster_plugins, is_shared_out, n_processes, start_ranks
from vlmft.training.targets import require_targets
from vlmft.training.tracking import MetricsFile, Wandb, lightning_loggers, require_loggers

GO_ON = "the same command with resume=true goes on"
TINY = "package:tiny"
TINY_KNOWS = (
    "model=tiny has seen drawn scenes alone: it shows that a run works on these files, and learns little of photos or "
    "charts; model=smolvlm256m is the smallest that knows them"
)


def train(config: TrainConfig, dataset: Dataset | None = None) -> Path:
    """One run from settings to report; returns its folder, which is made once model, data and preflight have passed.

    `config` stays as it is.

    Raises:
        ConfigError: the settings or a preflight check say that this run cannot be what it is meant to be.
        BadRowError: as the ledger says; it is then all that there is of the run.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; what was done is stored.
    """
    quiet_libraries()
    apply_extras(config)
    plan = resolved(with_batch_limits(config))
    use_threads(plan.config.trainer.threads)
    require_loggers(config.logger)
    require_targets(config)
    if n_processes(config.trainer) > 1:
        cluster_plugins()  # before anything is made
    if follows():
        return _follow(plan.config, dataset)
    folder, finished = find_folder(plan.config)
    report_folder(folder)
    _print_plan(plan, folder, finished=finished)
    if finished:
        return folder
    config = plan.config
    ledger = Ledger(None, config.data.on_bad_row, config.data.bad_row_ceiling)
    with stop_request(GO_ON) as stop, opened(config, ledger) as make:
        clock = Phases()
        with ledger.kept_if_refused(folder / LEDGER_FILE):
            built = build_for(config, dataset, ledger, clock)
            config = of_rank_0(with_chosen_tokens(config, built))
            checked = check(config, built, folder, clock, stop)
        make(config)
        run = Run(_connected(config, built), folder, clock, stop)
        with tracked(config, folder) as loggers, built.family.cache or contextlib.nullcontext():
            keep_data(checked, folder)
            summary, before = _fit(run, built, loggers)
            evaluation = _test(run, built, before)
            _report(run, built, checked, summary, evaluation, loggers)
    return folder


@dataclass(frozen=True)
class Run:
    """What a run is to do, where it writes, and what stops it."""

    config: TrainConfig
    folder: Path
    clock: Phases
    stop: StopRequest


def _print_plan(plan: Plan, folder: Path, *, finished: bool) -> None:
    print(f"{plan.config.model.name} on {plan.config.data.name}, run folder {folder}")
    if plan.config.scale == Scale.smoke:
        print(f"  {SMOKE}")
    if finished:
        print(f"  finished already: {folder / SUMMARY_FILE}")
    else:
        print_inferred(plan.inferred, verbose=plan.config.verbose)
        if plan.config.model.path == TINY and plan.config.data.path is not None:
            say(f"  {TINY_KNOWS}")
        if note := rounding_note(plan.config):
            say(f"  {note}")


def _follow(config: TrainConfig, dataset: Dataset | None) -> Path:
    """What a rank other than 0 does: its share of training and answers. It prints nothing and writes features alone."""
    quiet_follower(config.trainer)
    built = build_for(config, dataset, None, Phases())
    if is_shared_out(config.trainer):
        config = of_rank_0(config)
        if config.preflight:
            preflight(built, config)  # the layers are called by all ranks together
    with stop_request(GO_ON) as stop, built.family.cache or contextlib.nullcontext():
        run = Run(_connected(config, built), folder_of(config), Phases(), stop)
        _, before = _fit(run, built, [])
        _test(run, built, before)
    return run.folder


def _connected(config: TrainConfig, built: Built) -> TrainConfig:
    """The settings of rank 0, whose free memory may have chosen other numbers, once all ranks are connected."""
    start_ranks(config.trainer, built.device)
    return of_rank_0(config)


@contextlib.contextmanager
def tracked(config: TrainConfig, folder: Path) -> Iterator[list[Logger]]:
    """The loggers of the settings; at the end W&B gets the exit code, and the adapter where that is set."""
    loggers: list[Logger] = [MetricsFile(folder / METRICS_FILE)]
    loggers += lightning_loggers(config.logger, folder, plain(config))
    tracker = None
    if config.logger.wandb and not config.trainer.fast_dev_run:
        run_name = f"{config.model.name}-{config.data.name}-{folder.name}"
        tracker = Wandb(config.logger, folder, run_name, plain(config), "train")
        print(f"  wandb      {tracker.where}", flush=True)
        loggers.append(tracker)
    exit_code = 1
    try:
        yield loggers
        if tracker is not None and config.logger.log_adapter:
            tracker.log_folder(folder / ADAPTER, "model")
        exit_code = 0
    except Interrupted as error:
        exit_code = error.exit_code
        raise
    finally:
        if tracker is not None:
            tracker.close(exit_code)
            print(f"  wandb      {wandb_words(tracker.where)} ({tracker.seconds:.1f} s spent waiting for it)")


def _fit(run: Run, built: Built, loggers: Sequence[Logger]) -> tuple[Summary, Evaluation | None]:
    """Trains, and stores the adapter of the best checkpoint; the arms that training overwrites are answered before."""
    config, before = run.config, None
    untuned = [arm for arm in config.evaluation.arms if arm.partition("@")[0] in ("untuned", "fewshot")]
    if is_tested(config, built) and untuned and tuned_parts(config.model.train, Tuning.full):
        # full training overwrites the untuned model: its arms are answered before
        before = _answered(run, built, untuned, adapters=())
    check_together(run.stop)
    summary = Summary(config.model.name, config.data.name, config.scale.name, phases=run.clock.phases)
    summary.trained_parameters = sum(parameter.numel() for parameter in trainable(built.model).values())
    with run.clock("train"):
        L.seed_everything(config.seed + rank(), verbose=False)
        checkpoints, module = fit(config, built, run.folder, loggers, run.stop)
    for logger in loggers:
        if isinstance(logger, Wandb) and checkpoints.best_value is not None:
            logger.log_summary({"val/best": checkpoints.best_value})
    if not follows():
        save_adapter(built, run.folder / ADAPTER)
    summary.steps, summary.skipped_windows = module.steps, module.skipped_windows
    summary.best_checkpoint, summary.best_value = checkpoints.best, checkpoints.best_value
    summary.adapter_sha256 = built.adapter_sha256()
    return summary, before


def _answered(
    run: Run, built: Built, arms: Sequence[str], adapters: Sequence[str] = ("tuned",), before: Evaluation | None = None
) -> Evaluation:
    settings = run.config.evaluation
    answerer, rows = built.answerer(settings, partial(check_together, run.stop)), built.rows("test", settings)
    reuse = reusable(run.config.cache)
    return evaluate_arms(
        built, answerer, rows, settings, arms, run.folder, adapters=adapters, before=before, reuse=reuse
    )


def _test(run: Run, built: Built, before: Evaluation | None) -> Evaluation | None:
    """Every arm on the test split; None where that has no rows, or is not asked for."""
    if not is_tested(run.config, built):
        return None
    with run.clock("evaluate"):
        settings = run.config.evaluation
        evaluation = _answered(run, built, list(dict.fromkeys([*settings.arms, *settings.servers])), before=before)
        if left_out := sum(gathered(built.data.left_out)):
            evaluation.notes.append(
                f"{left_out:,} training rows were left out as they came, for val or test show the same image or group"
            )
        if not follows():
            note_trained_rows(evaluation, built.data, {}, built.model_config.path)
    return evaluation


def _report(
    run: Run, built: Built, checked: Checked, summary: Summary, evaluation: Evaluation | None, loggers: Sequence[Logger]
) -> None:
    """Prints and stores what was found: summary.json last, because it marks the run as finished."""
    config, folder = run.config, run.folder
    summary.add_data(built.data)
    places = {"adapter": folder / ADAPTER, "metrics": folder / METRICS_FILE, "config": folder / CONFIG_FILE}
    if evaluation is not None:
        summary.add(evaluation)
        print_evaluation(evaluation, verbose=config.verbose or config.evaluation.verbose)
        metrics, n_pictures = folder / METRICS_FILE, config.evaluation.gallery_rows
        content = report(built, config, summary, evaluation, checked.checks, metrics, n_pictures)
        places = {"report": write_report_files(content, folder), "predictions": folder / "predictions", **places}
        log_predictions(evaluation, config.logger.table_rows, loggers)
    summary.write(folder)
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.log_summary(summary.headline_values())
    print_phases(summary.phases)
    where({**places, "summary": folder / SUMMARY_FILE})
