"""python evaluate.py: a run's own config and adapter again, or an untuned model."""

from __future__ import annotations

from pathlib import Path

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig, EvaluateConfig, ModelConfig, TrainConfig, Tuning
from vlmft.models.lora import load_adapter, tuned_parts
from vlmft.run.build import Built, build
from vlmft.run.evaluate import NO_ADAPTER, Evaluation, adapter_sha256, evaluate_arms
from vlmft.run.folder import SUMMARY_FILE, plain, read_run
from vlmft.run.manifest import MANIFEST_FILE, require_same_rows
from vlmft.run.memory import keep_freed_pages, peak_memory_bytes
from vlmft.run.present import duration, print_arms, where
from vlmft.run.quiet import quiet_libraries
from vlmft.run.results import ADAPTER, Phases, Summary, differing_fingerprint, log_predictions, report, write_results
from vlmft.sample import Split
from vlmft.training.interruption import stop_request
from vlmft.training.metrics_file import METRICS_FILE
from vlmft.training.tracking import Wandb, stored_run


def reevaluate(config: EvaluateConfig) -> Path:
    """Evaluates and reports; returns the folder of this evaluation.

    Raises:
        ConfigError: no such run, an adapter of another prompt, processor or base, or an arm that cannot be had.
    """
    keep_freed_pages()
    quiet_libraries()
    run = read_run(config.run) if config.run is not None else None
    model, data = (run.model, run.data) if run is not None else (config.model, config.data)
    assert model is not None and data is not None  # checked() has seen to it
    if run is not None and (full := tuned_parts(run.model.train, Tuning.full)):
        raise ConfigError(
            f"run: Expected a run of adapters alone, got one that trained {', '.join(full)} in full; its own report "
            f"has both arms. A whole model is evaluated alone: model.path={config.run}/{ADAPTER} model.init=pretrained"
        )
    data.options = {**data.options, **config.data_options}
    folder = evaluation_folder(config, model, data)
    summary = Summary(model.name, data.name)
    clock = Phases(summary)
    with clock("load"):
        seed = run.seed if run is not None else config.seed
        built = build(model, data, config.trainer, seed=seed, ledger_path=folder / "bad_rows.jsonl", adapters=False)
        notes = _with_adapter(built, Path(config.run), config) if config.run is not None else []
    if run is not None and not config.data_options:
        require_same_rows(Path(str(config.run)) / MANIFEST_FILE, built.data)
    arms = config.evaluation.arms if run is not None else ["untuned"]
    settings = run.evaluation if run is not None else config.evaluation
    with clock("evaluate"), stop_request("the same command goes on after the answers that are stored") as stop:
        split: Split = config.split  # type: ignore[assignment]  # checked() has seen to it
        found = evaluate_arms(built, settings, arms, split, folder, fresh=config.fresh, poll=stop.check)
    found.notes = notes + found.notes
    summary.rows = {split: len(ids) for split, ids in built.data.ids.items()}
    summary.bad_rows = len(built.data.ledger.bad)
    summary.adapter_sha256 = adapter_sha256(built) if run is not None else NO_ADAPTER
    summary.add(found)
    metrics = Path(config.run) / METRICS_FILE if config.run is not None else folder / METRICS_FILE
    content = report(built, run or config, summary, found, [], metrics, settings.gallery_rows)
    path = write_results(content, folder)
    summary.write(folder)
    tracked = _tracked(config, run, folder, found, summary) if config.logger.wandb else None
    if config.json:
        print((folder / SUMMARY_FILE).read_text(encoding="utf-8"), end="")
        return folder
    print_arms(found.arms, found.comparisons, found.notes)
    if found.canary is not None:
        print(f"leak canary {found.canary.sentence}")
    print("; ".join(f"{name} {duration(phase.seconds)}" for name, phase in summary.phases.items()), end="; ")
    print(f"peak memory {peak_memory_bytes() / 2**30:.2f} GiB")
    places = {"report": path, "predictions": folder / "predictions", "summary": folder / SUMMARY_FILE}
    where({**places, "wandb": tracked} if tracked is not None else places)
    return folder


def _tracked(config: EvaluateConfig, run: TrainConfig | None, folder: Path, found: Evaluation, summary: Summary) -> str:
    """Logs the evaluation to a W&B run in the group of its training run, whose id is in its config; says where."""
    trained = stored_run(Path(config.run)) if config.run is not None else None
    settings = {**plain(config), "training_run": trained and trained["id"], "training": plain(run)}
    name = f"{summary.model}-{summary.data}-{Path(config.run or 'untuned').name}"
    group = trained["group"] if trained is not None else name
    tracker = Wandb(config.logger, folder, f"{name}-{folder.name}", settings, "evaluate", group)
    log_predictions(found, config.logger.table_rows, [tracker])
    tracker.log_summary(summary.headline_values())
    tracker.close(0)
    return f"{tracker.where} ({tracker.seconds:.1f} s spent waiting for it)"


def evaluation_folder(config: EvaluateConfig, model: ModelConfig, data: DataConfig) -> Path:
    """<run>/evaluations/<split and what differs>, or outputs/<model>-<data>/untuned-<split> without a run."""
    name = "-".join([config.split, *(f"{key}={value}" for key, value in sorted(config.data_options.items()))])
    if config.run is not None:
        folder = Path(config.run) / "evaluations" / name
    else:
        folder = Path(config.output_root) / f"{model.name}-{data.name}" / f"untuned-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _with_adapter(built: Built, run: Path, config: EvaluateConfig) -> list[str]:
    """Puts the run's adapter on the model after its fingerprint has been compared; returns notes for the table."""
    adapter = run / ADAPTER
    differing = differing_fingerprint(adapter, built.fingerprint)
    if differing and not config.allow_fingerprint_mismatch:
        raise ConfigError(
            f"run: the adapter was trained under another {', '.join(differing)} than this evaluation has; "
            "restore it, or set allow_fingerprint_mismatch=true and read the table with that in mind"
        )
    built.model = load_adapter(built.base, str(adapter))
    built.model.eval()
    return [f"the adapter was trained under another {', '.join(differing)}"] if differing else []
