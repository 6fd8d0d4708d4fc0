"""vlmft score FILE: what a file of predictions is worth, whatever tool wrote it. Seconds, and no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import ScoreConfig
from vlmft.evaluation.compare import rows_sentence
from vlmft.evaluation.numbers import console, percent
from vlmft.metrics import Table, variant
from vlmft.predictions.extracted import EXTRACTIONS, extracted, extractions_of
from vlmft.predictions.other_scores import Beside, other_figures
from vlmft.predictions.rows import PredictionRows
from vlmft.predictions.scoring import (
    OF_A_SET,
    Scored,
    metrics_of,
    read_file,
    read_labels,
    readings_of,
    scored,
    scored_content,
    table_of,
    units_of,
)

USUAL_FORMS = ("CSV in UTF-8", "TSV in UTF-8", "JSON Lines", "a JSON list")


def score(config: ScoreConfig) -> None:
    """Prints what `metric` asks for. Raises ConfigError."""
    (reading,) = readings_of(config, 1)
    rows, labels = read_file(Path(config.file), reading, config.references), read_labels(config.classes)
    if config.by is not None and rows.first.by is None:
        raise ConfigError(f"{rows.path}: --by: Expected a column called {config.by!r}, got none; name one of the file")
    names = metrics_of(rows, config.metric, config.extract)
    if names == ["count_accuracy"]:
        names.append("counting")
    of_rows: list[str | None] = [name for name in names if name not in OF_A_SET] if names else [None]
    each = [scored(rows, name, labels, config.extract) for name in of_rows]
    of_tables = extracted(rows, config.extract).rows if config.extract in EXTRACTIONS else rows
    tables = {name: table_of(of_tables, name, labels) for name in names if name in OF_A_SET}
    if not each and config.extract == "auto":  # a row metric says what comes out
        offers = [f"{one.sentence}; --extract {one.how} scores that alone" for one in extractions_of(rows, names[0])]
        rows = replace(rows, notes=[*rows.notes, *offers])
    more = [
        other_figures(one, name, labels, offers=config.extract == "auto")
        for one, name in zip(each, of_rows, strict=True)
    ]
    if config.json:
        print(json.dumps(_content(rows, each, more, tables), indent=2, ensure_ascii=False, allow_nan=False))
        return
    groups, kind = units_of(rows)
    n_rows = rows_sentence(len(rows.rows), len(set(groups.values())), kind)
    print(f"{rows.path}: {n_rows}; {', '.join(f'{use} = {name}' for use, name in rows.columns.items())}")
    print_notes(rows)
    for one, other in zip(each, more, strict=True):
        _print_scored(one, other)
    for name, table in tables.items():
        _print_table(name, table)


def print_notes(rows: PredictionRows) -> None:
    """What a reader must know of how the file was read; the usual forms are not mentioned."""
    if rows.form not in USUAL_FORMS:
        print(f"  read as {rows.form}")
    for note in rows.notes:
        print(f"  note: {note}")


def _content(
    rows: PredictionRows, each: Sequence[Scored], more: Sequence[Sequence[Beside]], tables: Mapping[str, Table]
) -> dict[str, Any]:
    scores = [
        {**scored_content(one), "other_scores": [asdict(other) for other in others]}
        for one, others in zip(each, more, strict=True)
    ]
    return {
        "file": str(rows.path),
        "form": rows.form,
        "columns": rows.columns,
        "n": len(rows.rows),
        "notes": rows.notes,
        "scores": scores,
        "tables": {variant(name): table.to_dict() for name, table in tables.items()},
    }


def _print_scored(one: Scored, more: Sequence[Beside]) -> None:
    content, unit = scored_content(one), one.unit
    interval = console(unit.bounds(content["interval"]))
    print(f"{one.metric}: {one.figure} (95 % interval {interval}, {content['interval_method']})")
    if one.summary is not None:
        summary = one.summary
        answer = "none" if summary.top_answer is None else repr(summary.top_answer[:40])
        print(f"  not parsed {summary.parse_failures} ({percent(summary.parse_failures / summary.n)})")
        print(
            f"  most frequent answer {answer}: {percent(summary.top_share)}, most frequent reference: "
            f"{percent(summary.majority_share)}"
        )
    for other in more:
        print(f"  {other.sentence}")
    for remark in one.remarks:
        print(f"  {remark}")
    if one.rows.first.by is not None:
        print(f"  by {one.rows.by_name}:")
        for name, part in content["values"].items():
            measured = console(f"{unit.value(part['value'])} ({unit.bounds(part['interval'])})")
            print(f"    {name}: {measured}, {part['n']} rows")


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
