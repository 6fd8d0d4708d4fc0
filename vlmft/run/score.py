"""vlmft score FILE: what a file of predictions is worth, whatever tool wrote it. Seconds, and no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vlmft.config.check import ConfigError
from vlmft.evaluation.compare import mean_interval
from vlmft.evaluation.score import SMALL_N, ArmSummary, ScoredRow, score_answers, summarise, warnings
from vlmft.metrics import CORPUS_METRICS, SUITES, Labels, Table, corpus_metric_named, metric_named, variant
from vlmft.metrics.numerals import whole_number
from vlmft.run.prediction_rows import COLUMNS, PredictionRows, read_rows, with_references
from vlmft.sample import Answer

OF_A_SET = {*CORPUS_METRICS, "macro_f1"}


class Parser(argparse.ArgumentParser):
    """A mistake is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def parser(tool: str, description: str) -> Parser:
    """The options that score and compare share."""
    found = Parser(f"vlmft {tool}", description=description, allow_abbrev=False)
    uses = ", ".join(COLUMNS)
    found.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="USE=COLUMN,...",
        help=f"which column is what, for all files; or give it once per file, in their order; uses: {uses}",
    )
    found.add_argument("--references", type=Path, metavar="FILE", help="references of the same ids, from another file")
    found.add_argument("--by-order", action="store_true", help="rows belong together by their order, not by id")
    found.add_argument("--metric", help="see vlmft/metrics; default: the run's own, or count_accuracy, exact_match")
    found.add_argument("--classes", type=Path, metavar="FILE", help='JSON: {"label": ["another spelling", ...], ...}')
    found.add_argument("--json", action="store_true", help="print one JSON object")
    return found


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

    @property
    def is_share(self) -> bool:
        """Every score lies in 0..1, so that a percentage can be meant."""
        return all(0 <= value <= 1 for value in self.values.values())

    @property
    def suspicious(self) -> bool:
        """Every prediction is a reference, character by character, on enough rows that no model does it."""
        return self.summary is not None and self.summary.verbatim == self.summary.n >= SMALL_N

    @property
    def remarks(self) -> list[str]:
        if self.summary is None:
            return []
        if not self.suspicious:
            return [f"warning: {sentence}" for sentence in warnings(self.summary)]
        return [
            f"suspicious: all {self.summary.n} predictions of {self.summary.arm} equal a reference character by "
            "character; before believing it, look for the answers in the prompts"
        ]


def read_labels(path: Path | None) -> Labels | None:
    """The class list of --classes: label -> aliases. Raises ConfigError for another shape."""
    if path is None:
        return None
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(classes, list):
            classes = {label: [] for label in classes}
        if not isinstance(classes, dict) or not all(isinstance(aliases, list) for aliases in classes.values()):
            raise ValueError('Expected {"label": ["alias", ...], ...} or a list of labels')
        return Labels(classes)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"--classes {path}: {error}") from error


def columns_of_each(options: argparse.Namespace, n_files: int) -> list[str]:
    """The --columns of each file. Raises ConfigError unless there are none, one for all, or one for each."""
    said: list[str] = options.columns or [""]
    if len(said) not in (1, n_files):
        raise ConfigError(f"--columns: Expected it once, or once for each of {n_files} files, got it {len(said)} times")
    return said if len(said) == n_files else said * n_files


def read_file(path: Path, columns: str, options: argparse.Namespace) -> PredictionRows:
    """The rows of one file with their references; raises ConfigError."""
    named = {}
    for part in filter(None, columns.split(",")):
        use, _, column = part.partition("=")
        if use.strip() not in COLUMNS or not column:
            raise ConfigError(f"--columns: Expected USE=COLUMN with a use of {', '.join(COLUMNS)}, got {part!r}")
        named[use.strip()] = column.strip()
    # with --references the column of that name is looked for in the other file
    own = {use: column for use, column in named.items() if use != "reference" or options.references is None}
    rows = read_rows(path, own, by_order=options.by_order)
    return with_references(rows, options.references, named, by_order=options.by_order)


def metrics_of(rows: PredictionRows, said: str | None) -> list[str]:
    """What to score by: what was said, a suite spelled out; else the run's metric, else what the references allow."""
    if said is not None:
        return [one for name in said.split(",") for one in SUITES.get(name, (name,))]
    if rows.scores is not None:
        return []
    if rows.metric is not None:
        return [rows.metric]
    assert rows.references is not None
    counts = all(whole_number(text) is not None for references in rows.references for text in references)
    return ["count_accuracy" if counts else "exact_match"]


def scored(rows: PredictionRows, metric: str | None, labels: Labels | None) -> Scored:
    """The rows under a metric, or their own scores where there is none. Raises ConfigError."""
    if metric is None:
        assert rows.scores is not None
        name = f"score in column {rows.columns['score']}"
        return Scored(rows, name, dict(zip(rows.ids, rows.scores, strict=True)), None)
    if rows.references is None or not rows.predictions:
        raise ConfigError(f"{rows.path}: Expected predictions and references for {metric}, got scores alone")
    finishes = ["length" if cut else "stop" for cut in rows.cut]
    answers = {
        row_id: Answer(text, finish, 0)  # type: ignore[arg-type]
        for row_id, text, finish in zip(rows.ids, rows.predictions, finishes, strict=True)
    }
    references = dict(zip(rows.ids, rows.references, strict=True))
    try:
        found: Mapping[str, ScoredRow] = score_answers(answers, references, metric_named(metric, labels))
    except ValueError as error:
        raise ConfigError(f"--metric {metric}: {error}") from error
    values = {row_id: row.score.value for row_id, row in found.items()}
    return Scored(rows, variant(metric), values, summarise(str(rows.path), found, references, metric))


def table_of(rows: PredictionRows, metric: str, labels: Labels | None) -> Table:
    """The table of a metric of a whole set. Raises ConfigError."""
    if rows.references is None or not rows.predictions:
        raise ConfigError(f"{rows.path}: Expected predictions and references for {metric}, got scores alone")
    try:
        return corpus_metric_named(metric, labels)(list(zip(rows.predictions, rows.references, strict=True)))
    except ValueError as error:
        raise ConfigError(f"--metric {metric}: {error}") from error


def run_score(arguments: Sequence[str]) -> None:
    """The tool: prints what `--metric` asks for."""
    found = parser("score", "What a file of predictions (CSV, TSV, JSON, JSONL) is worth.")
    found.add_argument("file", type=Path)
    options = found.parse_args(arguments)
    (columns,) = columns_of_each(options, 1)
    rows, labels = read_file(options.file, columns, options), read_labels(options.classes)
    names = metrics_of(rows, options.metric)
    if names == ["count_accuracy"]:
        names.append("counting")
    each = (
        [scored(rows, name, labels) for name in names if name not in OF_A_SET] if names else [scored(rows, None, None)]
    )
    tables = {name: table_of(rows, name, labels) for name in names if name in OF_A_SET}
    if options.json:
        print(json.dumps(_content(rows, each, tables), indent=2, ensure_ascii=False, allow_nan=False))
        return
    print(f"{rows.path}: {len(rows.ids)} rows; {', '.join(f'{use} = {name}' for use, name in rows.columns.items())}")
    for one in each:
        _print_scored(one)
    for name, table in tables.items():
        _print_table(name, table)


def _content(rows: PredictionRows, each: Sequence[Scored], tables: Mapping[str, Table]) -> dict[str, Any]:
    return {
        "file": str(rows.path),
        "columns": rows.columns,
        "n": len(rows.ids),
        "scores": [scored_content(one) for one in each],
        "tables": {variant(name): table.to_dict() for name, table in tables.items()},
    }


def scored_content(one: Scored) -> dict[str, Any]:
    """JSON-ready: value, interval, parse failures, most frequent answer, remarks."""
    interval, method = mean_interval(one.values, one.rows.row_groups)
    told = one.summary.to_dict() if one.summary is not None else {}
    for name in ("arm", "metric", "interval", "answers_per_second"):
        told.pop(name, None)
    head = {"metric": one.metric, "n": len(one.values), "value": sum(one.values.values()) / len(one.values)}
    verdicts = {"suspicious": one.suspicious, "remarks": one.remarks}
    return {**told, **head, "interval": list(interval), "interval_method": method, **verdicts}


def shown(value: float, is_share: bool, sign: str = "") -> str:
    """A share as a percentage, without its sign; any other score as a plain number."""
    return f"{100 * value:{sign}.2f}" if is_share else f"{value:{sign}.6g}"


def _print_scored(one: Scored) -> None:
    told = scored_content(one)
    value, low, high = (shown(number, one.is_share) for number in (told["value"], *told["interval"]))
    unit = " %" if one.is_share else ""
    print(f"{one.metric}: {value}{unit} (95 % interval {low} to {high}, {told['interval_method']})")
    if one.summary is not None:
        summary = one.summary
        answer = "none" if summary.top_answer is None else repr(summary.top_answer[:40])
        print(f"  not parsed {summary.parse_failures} ({100 * summary.parse_failures / summary.n:.1f} %)")
        print(
            f"  most frequent answer {answer}: {100 * summary.top_share:.1f} %, most frequent reference: "
            f"{100 * summary.majority_share:.1f} %"
        )
    for remark in one.remarks:
        print(f"  {remark}")


def _print_table(name: str, table: Table) -> None:
    print(variant(name))
    for key, value in table.values.items():
        print(f"  {key:<12}{'withheld' if value is None else f'{value:.4f}'}")
    for title, lines in table.lists.items():
        print(f"  {title.replace('_', ' ')}:")
        for line in lines:
            cells = (
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()
            )
            print(f"    {', '.join(cells)}")
    for note in table.notes:
        print(f"  note: {note}")
