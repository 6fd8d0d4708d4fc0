"""vlmft compare A B ...: are the others better than A, on the same rows? Seconds, and no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import CompareConfig
from vlmft.evaluation.compare import Adjusted, adjusted, compare
from vlmft.evaluation.gains import best_of_several
from vlmft.evaluation.numbers import Unit, console
from vlmft.evaluation.score import unequal_treatment
from vlmft.predictions.other_scores import others_of
from vlmft.predictions.same_rows import aligned, unrelated
from vlmft.predictions.scoring import (
    OF_A_SET,
    Scored,
    ids_by_value,
    metrics_of,
    read_file,
    read_labels,
    readings_of,
    scored,
    scored_content,
    units_of,
)


def compare_files(config: CompareConfig) -> None:
    """Prints every file against the first, under one metric. Raises ConfigError."""
    paths = [Path(name) for name in config.files]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise ConfigError(f"vlmft compare: Expected two files or more, each once, got {len(paths)}")
    readings = readings_of(config, len(paths))
    files = [read_file(path, one, config.references) for path, one in zip(paths, readings, strict=True)]
    files, notes = aligned(files, by_order=config.by_order)
    if config.by is not None and files[0].first.by is None:
        raise ConfigError(f"--by: Expected a column called {config.by!r} in one of the files, got none; name another")
    metrics: list[str | None] = [*metrics_of(files[0], config.metric, config.extract)] or [None]
    if len(metrics) != 1 or metrics[0] in OF_A_SET:
        raise ConfigError(
            f"--metric: Expected one metric with a score for each row, got {', '.join(map(str, metrics))}"
        )
    labels = read_labels(config.classes)
    each = [scored(rows, metrics[0], labels, config.extract) for rows in files]
    others = others_of(each, metrics[0], labels, offers=config.extract == "auto")
    values = [one.value for one in each]
    changed = {
        other.option: _results(other.each) for other in others if [o.value for o in other.each] not in ([], values)
    }
    results, cautions = _results(each), _cautions(each)
    notes += unrelated(each)
    if config.json:
        arms = [{"file": str(one.rows.path), "form": one.rows.form, **scored_content(one)} for one in each]
        content: dict[str, Any] = {"metric": each[0].metric, "arms": arms}
        content["comparisons"] = [one.to_dict() for one in results]
        content["other_scores"] = [
            {"option": option, "comparisons": [one.to_dict() for one in pairs]} for option, pairs in changed.items()
        ]
        content["by_value"] = by_value_of(each)
        content |= {"cautions": cautions, "notes": notes}
        print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for caution in cautions:
        print(f"caution: {caution}")
    _print(each, results)
    for option, pairs in changed.items():
        print(f"with {option}:")
        for result in pairs:
            pair, unit = result.comparison, _unit_of(each)
            print(console(f"  {unit.value(pair.first_value)} -> {unit.value(pair.second_value)}"))
            print(f"  {result.sentence(unit)}")
    _print_by(each)
    for note in notes:
        print(f"note: {note}")


def _results(each: Sequence[Scored]) -> list[Adjusted]:
    first, *others = each
    groups, kind = units_of(first.rows)
    return adjusted([compare(first.name, first.values, one.name, one.values, groups, kind) for one in others])


def _cautions(each: Sequence[Scored]) -> list[str]:
    """What to know before the figures."""
    first, *others = each
    groups, _ = units_of(first.rows)
    best = best_of_several({one.name: one.values for one in others}, groups)
    sentences = [best.sentence] if best is not None else []
    for one in others if first.answers else ():
        sentences += unequal_treatment(first.name, first.answers, one.name, one.answers, groups)
    return sentences


def _unit_of(each: Sequence[Scored]) -> Unit:
    """Per cent where all files are."""
    return next((one.unit for one in each if not one.unit.is_share), each[0].unit)


def by_value_of(each: Sequence[Scored]) -> dict[str, list[dict[str, Any]]]:
    """Value of the column of --by -> each other file against the first on its rows; without a test for each."""
    first, *others = each
    if first.rows.first.by is None:
        return {}
    groups, kind = units_of(first.rows)
    content: dict[str, list[dict[str, Any]]] = {}
    for name, ids in ids_by_value(first.rows).items():
        mine = {row_id: first.values[row_id] for row_id in ids}
        for one in others:
            theirs = {row_id: one.values[row_id] for row_id in ids}
            found = compare(first.name, mine, one.name, theirs, groups, kind).to_dict()
            kept = ("first", "second", "n", "first_value", "second_value", "difference", "interval")
            content.setdefault(name, []).append({key: found[key] for key in kept})
    return content


def _print_by(each: Sequence[Scored]) -> None:
    content, unit = by_value_of(each), _unit_of(each)
    if content:
        print(f"by {each[0].rows.by_name}:")
    for name, comparisons in content.items():
        for part in comparisons:
            values = f"{unit.value(part['first_value'])} -> {unit.value(part['second_value'])}"
            difference = f"{unit.difference(part['difference'])} ({unit.difference_interval(part['interval'])})"
            which = f" ({part['second']})" if len(comparisons) > 1 else ""
            print(f"  {name}, {part['n']} rows: {console(f'{values}, {difference}')}{which}")


def _print(each: Sequence[Scored], results: Sequence[Adjusted]) -> None:
    first = results[0].comparison
    print(f"{each[0].metric} on {first.rows_sentence}")
    unit = _unit_of(each)
    for one in each:
        content = scored_content(one)
        value, interval = console(unit.value(one.value)), console(unit.bounds(content["interval"]))
        width = 8 if unit.is_share else 6
        print(f"  {value:>{width}}  ({interval}, {content['interval_method']})  {one.rows.path}")
    for result in results:
        print(result.sentence(unit))
    for remark in dict.fromkeys(remark for one in each for remark in one.remarks):
        print(remark)
    if len(results) > 1:
        print(f"p is Holm's for {len(results)} comparisons; the intervals are each its own")
