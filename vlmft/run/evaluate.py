"""python evaluate.py: a run's own config and adapter again, or an untuned model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.config.processes import follows
from vlmft.config.schema import DataConfig, EvaluateConfig, ModelConfig, TrainConfig, Tuning
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import LEDGER_FILE, Ledger
from vlmft.evaluation.evaluate import Evaluation, evaluate_arms
from vlmft.evaluation.gains import detectable
from vlmft.models.loaded import NO_ADAPTER
from vlmft.models.lora import tuned_parts
from vlmft.models.ranks import of_rank_0
from vlmft.report import write_report_files
from vlmft.report.console import print_evaluation, wandb_words
from vlmft.run.build import Built, build, evaluation_with_tokens, share_out
from vlmft.run.folder import ADAPTER, SUMMARY_FILE, plain
from vlmft.run.present import print_phases, where
from vlmft.run.quiet import quiet_follower, quiet_libraries
from vlmft.run.results import Phases, Summary, log_predictions, report
from vlmft.run.rows import MANIFEST_FILE, note_trained_rows, require_same_rows
from vlmft.run.start import settled
from vlmft.run.stored_answers import reusable
from vlmft.run.threads import use_threads
from vlmft.run.weights import Others, put_others
from vlmft.training.interruption import stop_request
from vlmft.training.memory import keep_freed_pages
from vlmft.training.metrics_file import METRICS_FILE
from vlmft.training.ranks import check_together, start_ranks
from vlmft.training.tracking import Wandb, stored_run


def evaluate(config: EvaluateConfig, dataset: Dataset | None = None) -> Path:
    """Evaluates and reports; returns the folder of this evaluation, which is made once there are rows to ask. A rank
    other than 0 answers its share, prints and writes nothing.

    Raises:
        ConfigError: no such run, an adapter of another prompt, processor or base, or an arm that cannot be had.
    """
    keep_freed_pages()
    quiet_libraries()
    if follows():
        quiet_follower(config.trainer)
    run, model, data = settled(config)
    use_threads(config.trainer.threads or (run.trainer.threads if run is not None else model.default_threads))
    if run is not None and (full := tuned_parts(run.model.train, Tuning.full)):
        raise ConfigError(
            f"run: Expected a run of adapters alone, got one that trained {', '.join(full)} in full; its own report "
            f"has both arms. A whole model is evaluated alone: model.path={config.run}/{ADAPTER} model.init=pretrained"
        )
    folder, clock = evaluation_folder(config, model, data), Phases()
    ledger = Ledger(None, data.on_bad_row, data.bad_row_ceiling)
    ledger_file = None if follows() else folder / LEDGER_FILE
    with clock("load"), ledger.kept_if_refused(ledger_file):
        seed = run.seed if run is not None else config.seed
        built = build(
            model, data, config.trainer, seed=seed, dataset=dataset, ledger=ledger, adapters=False, cache=config.cache
        )
        others = put_others(built, config)
        share_out(built, config.trainer)
        if run is not None and config.data is None and not config.data_options:
            require_same_rows(Path(str(config.run)) / MANIFEST_FILE, built.data)
    start_ranks(config.trainer, built.device)
    settings = of_rank_0(evaluation_with_tokens(_settings(config, run), built, config.trainer))
    advice = "the same command goes on after the answers that are stored"
    features = built.family.cache or contextlib.nullcontext()
    with clock("evaluate"), features, ledger.kept_if_refused(ledger_file), stop_request(advice) as stop:
        evaluation = evaluate_arms(
            built,
            built.answerer(settings, functools.partial(check_together, stop)),
            built.rows(config.split, settings),  # type: ignore[arg-type]  # guaranteed by checked()
            settings,
            _arms(settings, config, others, run),
            folder,
            adapters=others.adapters,
            models=others.models,
            fresh=config.fresh,
            reuse=reusable(config.cache),
        )
    if ledger_file is None:
        return folder
    ledger.keep(ledger_file, anew=True)
    evaluation.notes = others.notes + evaluation.notes
    note_trained_rows(evaluation, built.data, {"tuned": config.run or config.adapter, **config.adapters}, model.path)
    summary = Summary(model.name, data.name, run.scale.name if run is not None else "full", phases=clock.phases)
    summary.adapter_sha256 = built.adapter_sha256() if others.adapters else NO_ADAPTER
    summary.add_data(built.data)
    summary.add(evaluation)
    _report(config, run, settings, built, evaluation, summary, folder)
    return folder


def _report(
    config: EvaluateConfig,
    run: TrainConfig | None,
    settings: EvaluationConfig,
    built: Built,
    evaluation: Evaluation,
    summary: Summary,
    folder: Path,
) -> None:
    """Stores and prints what was found."""
    used: Any = dataclasses.replace(run or config, evaluation=settings)  # type: ignore[type-var]
    metrics = Path(config.run or folder) / METRICS_FILE
    content = report(built, used, summary, evaluation, [], metrics, settings.gallery_rows, folder)
    places: dict[str, Any] = {"report": write_report_files(content, folder), "predictions": folder / "predictions"}
    summary.write(folder)
    places["summary"] = folder / SUMMARY_FILE
    if config.logger.wandb:
        places["wandb"] = _tracked(config, run, folder, evaluation, summary)
    if config.json:
        print((folder / SUMMARY_FILE).read_text(encoding="utf-8"), end="")
        return
    first = next(iter(evaluation.arms.values()))
    print(f"{config.split}: {detectable(first.n, first.n_groups, first.kind)}")
    print_evaluation(evaluation, verbose=settings.verbose)
    print_phases(summary.phases)
    where(places)


def _tracked(
    config: EvaluateConfig, run: TrainConfig | None, folder: Path, evaluation: Evaluation, summary: Summary
) -> str:
    """Logs the evaluation to a W&B run in the group of its training run, whose id is in its config; says where."""
    trained = stored_run(Path(config.run)) if config.run is not None else None
    settings = {**plain(config), "training_run": trained and trained["id"], "training": plain(run)}
    name = f"{summary.model}-{summary.data}-{Path(config.run or 'untuned').name}"
    group = trained["group"] if trained is not None else name
    tracker = Wandb(config.logger, folder, f"{name}-{folder.name}", settings, "evaluate", group)
    log_predictions(evaluation, config.logger.table_rows, [tracker])
    tracker.log_summary(summary.headline_values())
    tracker.close(0)
    return f"{wandb_words(tracker.where)} ({tracker.seconds:.1f} s spent waiting for it)"


def evaluation_folder(config: EvaluateConfig, model: ModelConfig, data: DataConfig) -> Path:
    """<run>/evaluations/<split and what differs>, or outputs/<model>-<data>/untuned-<split> without a run."""
    on = [f"on-{data.name}"] if config.run is not None and config.data is not None else []
    name = "-".join([config.split, *on, *(f"{key}={value}" for key, value in sorted(config.data_options.items()))])
    if config.run is not None:
        return Path(config.run) / "evaluations" / name
    return Path(config.output_root) / f"{model.name}-{data.name}" / f"untuned-{name}"


def _arms(settings: EvaluationConfig, config: EvaluateConfig, others: Others, run: TrainConfig | None) -> list[str]:
    """As set, without `tuned` where there is no such adapter, and without the run's own servers; then every other
    adapter, model and server that was named."""
    left_out = set(run.evaluation.servers) - set(settings.servers) if run is not None else set()
    left_out |= {"tuned"} - set(others.adapters)
    named = [arm for arm in settings.arms if arm.partition("@")[0] not in left_out]
    if not (arms := list(dict.fromkeys([*named, *config.adapters, *settings.servers]))):
        asked = ", ".join(settings.arms)
        raise ConfigError(
            f"evaluation.arms: Expected an adapter to go with it, got {asked} alone; set run= or adapter="
        )
    return arms


def _settings(config: EvaluateConfig, run: TrainConfig | None) -> EvaluationConfig:
    """The run's settings, or train.py's, with what the command changes; servers are those of the command alone: asking
    them can cost money, and sends images and a key to where somebody else's run folder says."""
    before = dataclasses.replace(run.evaluation, servers={}) if run is not None else EvaluationConfig()
    settings: EvaluationConfig = _changed(before, config.evaluation)
    return settings


def _changed(settings: Any, changes: Any) -> Any:
    """`settings` with every value of `changes` that is not null, group by group."""
    given = {f.name: getattr(changes, f.name) for f in dataclasses.fields(changes)}
    values = {
        name: _changed(getattr(settings, name), value) if dataclasses.is_dataclass(value) else value
        for name, value in given.items()
        if value is not None
    }
    return dataclasses.replace(settings, **values)
