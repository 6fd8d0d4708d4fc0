"""What a run leaves behind: adapter, summary.json, report.html, report.md. Defines the keys of summary.json."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import PIL.Image
import psutil  # type: ignore[import-untyped]
import torch
from lightning.pytorch.loggers import Logger

from vlmft.config.progress import duration
from vlmft.config.schema import Scale
from vlmft.config.secrets import redacted
from vlmft.data.datamodule import VLMDataModule
from vlmft.evaluation.evaluate import Evaluation
from vlmft.metrics import metric_named, variant
from vlmft.report import Report, rows_to_picture
from vlmft.report.console import headline, wandb_words
from vlmft.report.measured import curves, remarks_of, report_rows, with_pictures
from vlmft.report.sections import sections_of
from vlmft.run.build import Built
from vlmft.run.card import read_card
from vlmft.run.folder import SUMMARY_FILE, command_line, config_hash, environment, plain, write_json
from vlmft.run.preflight import Check
from vlmft.training.memory import peak_memory_bytes
from vlmft.training.metrics_file import read_metrics
from vlmft.training.tracking import Wandb, stored_run

SMOKE = "Smoke run on a few rows, with random weights where a model would come from the Hub: its numbers mean nothing"


@dataclass
class Phase:
    """One stretch of a run."""

    seconds: float
    peak_memory_bytes: int
    """Largest resident memory of the process up to the end of this phase."""
    peak_device_memory_bytes: int | None = None
    """Largest GPU memory in this phase; null on CPU."""


@dataclass
class Summary:
    """summary.json, key by key."""

    model: str
    data: str
    scale: str = "full"
    """`smoke` where a small random model replaced the real one: none of the numbers below means anything."""
    metric: str | None = None
    """Name of the metric that all values below are of; null where nothing was tested."""
    split: str | None = None
    sentence: str | None = None
    """The result in words."""
    arms: list[dict[str, Any]] = field(default_factory=list)
    """Per arm: n, n_groups (independent units, such as images), value, interval and its method, parse failures, cut
    answers, most frequent answer, majority share, speed."""
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    """Per pair: n, n_groups, difference, its interval and the method, p value and its test, p_holm for all pairs, rows
    only one arm got right, verdict by p_holm."""
    leak_canary: dict[str, Any] | None = None
    """n, ids whose prediction moved, ids whose prompt showed the sentinel, ok."""
    batch_invariance: dict[str, Any] | None = None
    """n, rows_per_batch, ids answered differently when they are asked alone."""
    format_and_skill: dict[str, Any] | None = None
    """The gain, split into what another prompt also gives the untuned model, and the rest, with its interval."""
    best_of_several: dict[str, Any] | None = None
    """Where the table has several tuned arms: the best one's value, and that of a choice on half of the rows."""
    prompt_matrix: dict[str, dict[str, float]] = field(default_factory=dict)
    """Prompt -> arm -> value."""
    metric_variant: str | None = None
    """The metric with the variant and version that this program has of it."""
    notes: list[str] = field(default_factory=list)
    """What to know before the numbers, then what to know beside them."""
    alarms: list[str] = field(default_factory=list)
    """What makes the numbers meaningless: answers that occur in the prompts, test rows that were trained on."""
    coordinates: str | None = None
    """How the model writes boxes and points, where it was asked for them; answers here are in pixels."""
    without_looking: dict[str, Any] | None = None
    """`readable_answers`, `baselines` and `controls`: what scores without images reach."""
    servers: dict[str, Any] = field(default_factory=dict)
    """Arm behind a server -> the model asked for, rows by the model and host that answered, dates, tokens, cost, leak
    canary of its requests."""
    fields: dict[str, Any] | None = None
    """Of answers that are JSON: each field's score by arm and paired difference, all fields together, the schema."""
    grading: dict[str, Any] | None = None
    """How people and judges have rated the answers (vlmft grade, vlmft judge); null before anyone has judged."""
    best_checkpoint: str | None = None
    best_value: float | None = None
    """Validation metric of the best checkpoint."""
    steps: int = 0
    """Optimiser steps taken."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows per split, as used."""
    bad_rows: int = 0
    """Rows in the ledger: looked at and not used."""
    skipped_windows: int = 0
    """Windows whose step was not taken."""
    trained_parameters: int = 0
    adapter_sha256: str | None = None
    phases: dict[str, Phase] = field(default_factory=dict)
    """load, preflight, train, evaluate: seconds and peak memory."""
    environment: dict[str, str] = field(default_factory=dict)
    command: str = ""

    def add(self, evaluation: Evaluation) -> None:
        """Copies the results of an evaluation; a smoke run's notes and sentence begin with what it is."""
        smoke = self.scale == Scale.smoke.name
        if smoke:
            evaluation.cautions.insert(0, SMOKE)
        self.metric = next(iter(evaluation.arms.values())).metric
        self.split = evaluation.split
        self.arms = [arm.to_dict() for arm in evaluation.arms.values()]
        self.comparisons = [found.to_dict() for found in evaluation.comparisons]
        self.leak_canary = evaluation.canary.to_dict() if evaluation.canary else None
        self.batch_invariance = asdict(evaluation.invariance) if evaluation.invariance else None
        self.format_and_skill = evaluation.gains.to_dict() if evaluation.gains else None
        self.prompt_matrix, self.metric_variant = evaluation.matrix, variant(self.metric)
        self.best_of_several = evaluation.best.to_dict() if evaluation.best else None
        self.notes, self.alarms = [*evaluation.cautions, *evaluation.notes], list(evaluation.alarms)
        self.fields = evaluation.fields.to_dict() if evaluation.fields else None
        self.coordinates = evaluation.coordinates
        self.without_looking = evaluation.blind.to_dict() if evaluation.blind else None
        self.servers = {name: served.to_dict() for name, served in evaluation.servers.items()}
        found = headline(self.model, self.data, evaluation.arms, evaluation.comparisons)
        found = " ".join([*(f"{alarm[:1].upper()}{alarm[1:]}." for alarm in self.alarms), found])
        self.sentence = f"{SMOKE}. {found}" if smoke else found

    def add_data(self, data: VLMDataModule) -> None:
        """Copies the numbers of rows."""
        self.rows = {split: len(ids) for split, ids in data.ids.items()}
        self.bad_rows = len(data.ledger.bad)

    def headline_values(self) -> dict[str, float]:
        """For the tracker: the best validation, one number per arm, and the paired difference."""
        best = {"val/best": self.best_value} if self.best_value is not None else {}
        values = {f"{self.split}/{self.data}/{self.metric}/{arm['arm']}": arm["value"] for arm in self.arms}
        pairs = {f"{self.split}/difference/{c['first']}-{c['second']}": c["difference"] for c in self.comparisons}
        return {**best, **values, **pairs}

    def write(self, folder: Path) -> None:
        self.environment, self.command = environment(), command_line()
        write_json(folder / SUMMARY_FILE, asdict(self))


class Phases:
    """Times the phases of a run: `with clock("train"): ...`."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            device = torch.cuda.max_memory_allocated() if gpu else None
            self.phases[name] = Phase(round(seconds, 2), peak_memory_bytes(), device)


def report(
    built: Built,
    config: Any,
    summary: Summary,
    evaluation: Evaluation,
    checks: Sequence[Check],
    metrics: Path,
    gallery_rows: int,
    page_folder: Path | None = None,
) -> Report:
    """The report's content, from what the run measured; it lies beside the run's metrics if not in `page_folder`."""
    rows = report_rows(evaluation, metric_named(built.data.metric_name))
    check_lines = {check.name: ("" if check.ok else "FAILED: ") + check.sentence for check in checks}
    of_answers: dict[str, Any] = {"leak canary": evaluation.canary, "batch size": evaluation.invariance}
    of_answers |= {f"leak canary of {name}": served.canary for name, served in evaluation.servers.items()}
    check_lines |= {name: found.sentence for name, found in of_answers.items() if found is not None}
    remarks = remarks_of(evaluation)
    content = Report(
        title=f"{summary.model} on {summary.data}",
        sentence=summary.sentence or "",
        arms=tuple(summary.arms),
        comparisons=tuple(summary.comparisons),
        warnings=(*evaluation.alarms, *(note for note in summary.notes if note not in remarks)),
        alarms=tuple(evaluation.alarms),
        remarks=remarks,
        curves=curves(read_metrics(metrics)),
        split_sizes=summary.rows,
        rows=tuple(rows),
        checks=check_lines,
        settings=redacted(plain(config)),
        versions=environment(),
        command=command_line(),
        sections=tuple(sections_of(evaluation)),
        fingerprints={
            "settings": config_hash(config),
            **built.fingerprint,
            "adapter_sha256": summary.adapter_sha256 or "none",
            "metric": variant(built.data.metric_name),
        },
        card=read_card(metrics.parent, page_folder or metrics.parent),
        run=_facts(built, summary, metrics.parent, page_folder),
    )
    pictured = set(rows_to_picture(rows, content.view, gallery_rows)) if content.view else set()
    return dataclasses.replace(content, rows=with_pictures(rows, evaluation.samples, pictured))


def _facts(built: Built, summary: Summary, run: Path, page: Path | None) -> dict[str, str]:
    """When, how long, on what and where; `page`: the folder of an evaluation after its training."""
    tracked, whose = stored_run(run), "" if page is None else " of the training"
    seconds = {name: one.seconds for name, one in summary.phases.items()}
    total = sum(seconds.values())
    longest = ", ".join(f"{name} {duration(some)}" for name, some in seconds.items() if some > total / 10)
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Duration": f"{duration(total)} ({longest})",
        "Hardware": hardware(built.device),
        "Folder": str(page or run),
        **({f"W&B{whose}": wandb_words(tracked["where"])} if tracked is not None else {}),
    }


def hardware(device: torch.device) -> str:
    """Such as "NVIDIA H100, 79 GiB" or "CPU, 2 cores, 8 GiB"."""
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    return f"{device.type.upper()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


TABLE_PIXELS = 256


def log_predictions(evaluation: Evaluation, n_rows: int, loggers: Sequence[Logger]) -> None:
    """Puts the first rows into a W&B table: the same ones each time."""
    trackers = [logger for logger in loggers if isinstance(logger, Wandb)]
    if not trackers:
        return
    samples = evaluation.samples[:n_rows]
    pictures = max((len(sample.prompt.images) for sample in samples), default=0)
    columns = ["id", *(f"image {i + 1}" for i in range(pictures)), "question", "references"]
    columns += [f"{arm} {what}" for arm in evaluation.rows for what in ("answer", "score")]
    rows = []
    for sample in samples:
        images: list[PIL.Image.Image | None] = [PIL.Image.fromarray(image.pixels) for image in sample.prompt.images]
        for image in filter(None, images):
            image.thumbnail((TABLE_PIXELS, TABLE_PIXELS))
        images += [None] * (pictures - len(images))
        answers = [
            value for arm in evaluation.rows.values() for value in (arm[sample.id].text, arm[sample.id].score.value)
        ]
        rows.append([sample.id, *images, sample.prompt.messages[-1].text, " | ".join(sample.references), *answers])
    for tracker in trackers if rows else []:
        tracker.log_table(f"{evaluation.split}/predictions", columns, rows)
