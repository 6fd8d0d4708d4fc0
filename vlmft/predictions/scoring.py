"""Files of predictions under a metric: what vlmft score, compare and seeds share. Seconds, and no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import FilesConfig
from vlmft.evaluation.compare import arm_interval
from vlmft.evaluation.numbers import Unit, console
from vlmft.evaluation.score import SMALL_N, ArmSummary, ScoredRow, score_answers, summarise, too_few, warnings
from vlmft.metrics import (
    CORPUS_METRICS,
    JSON_METRICS,
    SUITES,
    Labels,
    Table,
    corpus_metric_named,
    metric_named,
    variant,
)
from vlmft.metrics.boxes import are_boxes
from vlmft.metrics.json_match import is_json_container
from vlmft.metrics.numerals import whole_number
from vlmft.predictions.columns import COLUMNS, IMAGES
from vlmft.predictions.extracted import EXTRACTIONS, Extracted, extracted
from vlmft.predictions.rows import PredictionRows, Reading, read_predictions, with_references
from vlmft.sample import Answer

OF_A_SET = {*CORPUS_METRICS, "macro_f1"}
MOST_VALUES = 100
"""Of a column to break figures down by."""


@dataclass(frozen=True)
class Scored:
    """One file under one row metric."""

    rows: PredictionRows
    metric: str
    """Name and variant; the column's name for a file of scores."""
    values: dict[str, float]
    """Row id -> score."""
    summary: ArmSummary | None
    """None for a file of scores: there are no texts to look at."""
    answers: Mapping[str, ScoredRow] = field(default_factory=dict)
    """Row id -> answer and score; empty for a file of scores."""
    extracted: Extracted | None = None
    """How the answers were taken out, where they were."""

    @property
    def name(self) -> str:
        return str(self.rows.path)

    @property
    def value(self) -> float:
        return sum(self.values.values()) / len(self.values)

    @property
    def unit(self) -> Unit:
        """Per cent where every score lies in 0..1, so that one can be meant."""
        return Unit(all(0 <= value <= 1 for value in self.values.values()), is_exact=True)

    @property
    def figure(self) -> str:
        """ "84.68 %"."""
        return console(self.unit.value(self.value))

    @property
    def suspicious(self) -> bool:
        """Every prediction is a reference, character by character, on enough rows that no model does it."""
        return self.summary is not None and self.summary.verbatim == self.summary.n >= SMALL_N

    @property
    def remarks(self) -> list[str]:
        if self.summary is None:
            return []
        if not self.suspicious:
            return [f"warning: {sentence}" for sentence in warnings(self.summary) + too_few(self.summary)]
        return [
            f"suspicious: all {self.summary.n} predictions of {self.summary.arm} equal a reference character by "
            "character; before believing it, look for the answers in the prompts"
        ]


def read_labels(path: str | None) -> Labels | None:
    """The class list of --classes: label -> aliases. Raises ConfigError for another shape."""
    if path is None:
        return None
    try:
        classes = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(classes, list):
            classes = {label: [] for label in classes}
        if not isinstance(classes, dict) or not all(isinstance(aliases, list) for aliases in classes.values()):
            raise ValueError('Expected {"label": ["alias", ...], ...} or a list of labels')
        return Labels(classes)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"--classes {path}: {error}") from error


def readings_of(config: FilesConfig, n_files: int) -> list[Reading]:
    """How each file is to be read. Raises ConfigError unless `columns` is there not at all, once, or once for each."""
    given = config.columns or [""]
    if len(given) not in (1, n_files):
        raise ConfigError(
            f"--columns: Expected it once, or once for each of {n_files} files, got it {len(given)} times"
        )
    shared = Reading(
        by_order=config.by_order,
        rows=config.rows,
        encoding=config.encoding,
        by=config.by,
        alternatives=config.alternatives,
        as_json=reads_json(config.metric),
    )
    return [replace(shared, named=_named(columns)) for columns in (given if len(given) == n_files else given * n_files)]


def _named(columns: str) -> dict[str, str]:
    """USE=COLUMN,... as a mapping."""
    named = {}
    for part in filter(None, columns.split(",")):
        use, _, column = part.partition("=")
        if use.strip() not in COLUMNS or not column:
            raise ConfigError(f"--columns: Expected USE=COLUMN with a use of {', '.join(COLUMNS)}, got {part!r}")
        named[use.strip()] = column.strip()
    return named


def read_file(path: Path, reading: Reading, references: str | None) -> PredictionRows:
    """The rows of one file with their references; raises ConfigError."""
    # with a file of references the column of that name is looked for in it
    own = {use: column for use, column in reading.named.items() if use != "reference" or references is None}
    rows = read_predictions(path, replace(reading, named=own), references_elsewhere=references is not None)
    return with_references(rows, Path(references) if references is not None else None, reading)


def reads_json(metric: str | None) -> bool:
    """Whether answers and references are values of JSON under one of these metrics, or under a suite's."""
    names = {one for name in (metric or "").split(",") for one in SUITES.get(name, (name,))}
    return not names.isdisjoint(JSON_METRICS)


def metrics_of(rows: PredictionRows, metric: str | None, extract: str = "none") -> list[str]:
    """What to score by: the given metrics, a suite spelled out; else the run's; else what the references allow."""
    if metric is not None:
        return [one for name in metric.split(",") for one in SUITES.get(name, (name,))]
    if rows.first.score is not None:
        return []
    if rows.metric is not None:
        return [rows.metric]
    if extract in ("letter", "yes-no"):
        return ["exact_match"]
    texts = [text for several in rows.references.values() for text in several]
    if are_boxes(texts):
        return ["box_f1"]
    if all(map(is_json_container, texts)):
        return ["json_match"]
    return ["count_accuracy" if all(whole_number(text) is not None for text in texts) else "exact_match"]


def scored(
    rows: PredictionRows, metric: str | None, labels: Labels | None, extract: str = "none", *, alone: bool = False
) -> Scored:
    """The rows under a metric, their answers taken out as `extract` says, or their own scores where there is none;
    `alone` as in `summarise`.

    Raises ConfigError.
    """
    if extract in EXTRACTIONS and metric is not None:
        taken = extracted(rows, extract)
        return replace(scored(taken.rows, metric, labels, alone=alone), extracted=taken)
    if metric is None:
        scores = {row.id: row.score for row in rows.rows.values() if row.score is not None}
        return Scored(rows, f"score in column {rows.columns['score']}", scores, None)
    rows.expect_texts(f"for {metric}")
    answers = {
        row.id: Answer(row.prediction or "", "length" if row.is_cut else "stop", 0) for row in rows.rows.values()
    }
    try:
        by_id: Mapping[str, ScoredRow] = score_answers(answers, rows.references, metric_named(metric, labels))
    except ValueError as error:
        raise ConfigError(f"--metric {metric}: {error}") from error
    values = {row_id: row.score.value for row_id, row in by_id.items()}
    groups, kind = units_of(rows)
    summary = summarise(str(rows.path), by_id, rows.references, metric, groups=groups, kind=kind, alone=alone)
    return Scored(rows, variant(metric), values, summary, by_id)


def units_of(rows: PredictionRows) -> tuple[dict[str, str], str]:
    """Row id -> its independent unit, and what the units are: as named, by the hash of the image that a row shows, or
    by a column of the file that names its image."""
    groups = rows.groups
    if "group" in rows.columns or len({*groups.values()}) < len(groups):
        is_known = rows.columns.get("group") in COLUMNS["group"]
        are_images = is_known and all(name.count('"') == 2 for name in groups.values())
        return groups, "images" if are_images else "groups"
    for name in IMAGES:
        cells = {row.id: row.asked.get(name, "") for row in rows.rows.values()}
        if 1 < len({*cells.values()}) < len(cells):
            return {row_id: cell or f"row {row_id}" for row_id, cell in cells.items()}, "images"
    return groups, "groups"


def table_of(rows: PredictionRows, metric: str, labels: Labels | None) -> Table:
    """The table of a metric of a whole set. Raises ConfigError."""
    rows.expect_texts(f"for {metric}")
    try:
        return corpus_metric_named(metric, labels)([(r.prediction or "", r.references) for r in rows.rows.values()])
    except ValueError as error:
        raise ConfigError(f"--metric {metric}: {error}") from error


def scored_content(one: Scored) -> dict[str, Any]:
    """JSON-ready: value, interval, parse failures, most frequent answer, remarks."""
    groups, kind = units_of(one.rows)
    interval, method, n_groups = arm_interval(one.values, groups)
    summary = one.summary.to_dict() if one.summary is not None else {}
    for name in ("arm", "metric", "interval", "answers_per_second"):
        summary.pop(name, None)
    head = {"metric": one.metric, "n": len(one.values), "n_groups": n_groups, "kind": kind, "value": one.value}
    verdicts = {"suspicious": one.suspicious, "remarks": one.remarks}
    content = {**summary, **head, "interval": list(interval), "interval_method": method, **verdicts}
    if one.extracted is not None:
        content |= {"extract": one.extracted.how, "n_extracted": one.extracted.n_found}
    if one.rows.first.by is not None:
        content |= {"by": one.rows.by_name, "values": _by_value(one)}
    return content


def _by_value(one: Scored) -> dict[str, dict[str, Any]]:
    """Value of the column of --by -> n, value and interval of its rows. Raises ConfigError for a column of too many."""
    content, (groups, _) = {}, units_of(one.rows)
    for name, ids in ids_by_value(one.rows).items():
        values = {row_id: one.values[row_id] for row_id in ids}
        interval, _, _ = arm_interval(values, groups)
        content[name] = {"n": len(ids), "value": sum(values.values()) / len(ids), "interval": list(interval)}
    return content


def ids_by_value(rows: PredictionRows) -> dict[str, list[str]]:
    """Value of the column of --by -> its rows. Raises ConfigError for a column that has a value for nearly each row."""
    ids: dict[str, list[str]] = {}
    for row in rows.rows.values():
        ids.setdefault(row.by or "", []).append(row.id)
    if len(ids) > MOST_VALUES:
        raise ConfigError(
            f"{rows.path}: --by: Expected a column of {MOST_VALUES} values at most, got {len(ids)} in "
            f"{rows.by_name!r}; name one that groups the rows"
        )
    return ids
