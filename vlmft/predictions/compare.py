"""vlmft compare A B ...: are the others better than A, on the same rows? Seconds, and no torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import CompareConfig
from vlmft.evaluation.compare import Adjusted, adjusted, compare, expect_same_ids, p_words
from vlmft.evaluation.gains import best_of_several
from vlmft.evaluation.score import unequal_treatment
from vlmft.metrics import Labels
from vlmft.predictions.columns import COLUMNS
from vlmft.predictions.extracted import metric_under
from vlmft.predictions.extracted import readings as readings_for
from vlmft.predictions.read_otherwise import other_metrics
from vlmft.predictions.rows import PredictionRows
from vlmft.predictions.same_rows import expect_same_questions, unrelated
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
    shown,
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
    if config.by is not None and files[0].by is None:
        raise ConfigError(f"--by: Expected a column called {config.by!r} in one of the files, got none; name another")
    metrics: list[str | None] = [*metrics_of(files[0], config.metric, config.extract)] or [None]
    if len(metrics) != 1 or metrics[0] in OF_A_SET:
        raise ConfigError(
            f"--metric: Expected one metric with a score for each row, got {', '.join(map(str, metrics))}"
        )
    labels = read_labels(config.classes)
    each = [scored(rows, metrics[0], labels, config.extract) for rows in files]
    results, otherwise = _results(each), _read_otherwise(each, metrics[0], labels, offers=config.extract == "auto")
    notes += unrelated(each)
    cautions = _cautions(each)
    if config.json:
        arms = [{"file": str(one.rows.path), "form": one.rows.form, **scored_content(one)} for one in each]
        content: dict[str, Any] = {"metric": each[0].metric, "arms": arms}
        content["comparisons"] = [one.to_dict() for one in results]
        content["read_otherwise"] = [
            {"option": option, "comparisons": [one.to_dict() for one in found]} for option, found in otherwise
        ]
        content["by_value"] = by_value_of(each)
        content |= {"cautions": cautions, "notes": notes}
        print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for caution in cautions:
        print(f"caution: {caution}")
    _print(each, results)
    for option, others in otherwise:
        print(f"with {option}:")
        for result in others:
            is_share = all(one.is_share for one in each)
            print(f"  {_values_of(result, is_share)}")
            print(f"  {sentence(result, is_share=is_share, several=len(others) > 1)}")
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
    found = [best.sentence] if best is not None else []
    for one in others if first.answers else ():
        found += unequal_treatment(first.name, first.answers, one.name, one.answers, groups)
    return found


def _read_otherwise(
    each: Sequence[Scored], metric: str | None, labels: Labels | None, *, offers: bool
) -> list[tuple[str, list[Adjusted]]]:
    """Options under which a figure changes, with what comes out."""
    if metric is None:
        return []
    tried: dict[str, list[Scored]] = {}
    if each[0].extracted is not None:
        whole = [one.extracted.whole for one in each if one.extracted is not None]
        tried["--extract none"] = [scored(rows, metric, labels, alone=True) for rows in whole]
    hows = dict.fromkeys(one.how for file in each for one in readings_for(file.rows, metric)) if offers else {}
    for how in hows:
        tried[f"--extract {how}"] = [
            scored(one.rows, metric_under(how, metric), labels, how, alone=True) for one in each
        ]
    for name in other_metrics(each[0].rows, metric):
        with contextlib.suppress(ConfigError):  # not all references are JSON
            tried[f"--metric {name}"] = [scored(one.rows, name, labels, alone=True) for one in each]
    values = [one.value for one in each]
    return [(option, _results(found)) for option, found in tried.items() if [one.value for one in found] != values]


def _values_of(result: Adjusted, is_share: bool) -> str:
    found, unit = result.comparison, " %" if is_share else ""
    return f"{shown(found.first_value, is_share)}{unit} -> {shown(found.second_value, is_share)}{unit}"


def by_value_of(each: Sequence[Scored]) -> dict[str, list[dict[str, Any]]]:
    """Value of the column of --by -> each other file against the first on its rows; a look, and no test for each."""
    first, *others = each
    if first.rows.by is None:
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
    content, is_share = by_value_of(each), all(one.is_share for one in each)
    if content:
        print(f"by {each[0].rows.by_name}:")
    for name, comparisons in content.items():
        for found in comparisons:
            numbers = (found["difference"], *found["interval"])
            difference, low, high = (shown(number, is_share, "+") for number in numbers)
            before, after = (shown(found[key], is_share) for key in ("first_value", "second_value"))
            which = f" ({found['second']})" if len(comparisons) > 1 else ""
            print(f"  {name}, {found['n']} rows: {before} -> {after}, {difference} ({low} to {high}){which}")


def aligned(files: Sequence[PredictionRows], *, by_order: bool) -> tuple[list[PredictionRows], list[str]]:
    """The files with rows of the same ids, groups and values of --by, and notes; under `by_order` row n is row n.

    Raises ConfigError where a file has no ids, ids or numbers of rows differ, or one row has two references, questions
    or groups.
    """
    first = files[0]
    for rows in files:
        if not by_order and "id" not in rows.columns and not rows.is_lines:
            why = next((f" ({note})" for note in rows.notes if "not taken as id" in note), "")
            raise ConfigError(f"{rows.path}: Expected an id column, got none{why}; use --columns id=... or --by-order")
        if (by_order or rows.is_lines) and len(rows.ids) != len(first.ids):
            raise ConfigError(f"{rows.path}: Expected {len(first.ids)} rows as in {first.path}, got {len(rows.ids)}")
    notes = [f"{rows.path}: {note}" for rows in files for note in rows.notes]
    for rows in files[1:]:
        try:
            expect_same_ids(str(first.path), dict.fromkeys(first.ids), str(rows.path), dict.fromkeys(rows.ids))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        notes += expect_same_questions(first, rows)
    grouped, more = _grouped_alike(files)
    return _broken_down_alike(grouped), notes + more


def _broken_down_alike(files: Sequence[PredictionRows]) -> list[PredictionRows]:
    """The files under the values of --by of the first that has any."""
    first = next((rows for rows in files if rows.by is not None), None)
    if first is None or first.by is None:
        return list(files)
    values = dict(zip(first.ids, first.by, strict=True))
    return [replace(rows, by=[values[row_id] for row_id in rows.ids], by_name=first.by_name) for rows in files]


def _grouped_alike(files: Sequence[PredictionRows]) -> tuple[list[PredictionRows], list[str]]:
    """The files under the groups of the first that has any; a note for each in which the images group otherwise.

    A group that was named must be the same everywhere. Images need not be: a blank arm has seen others.
    """
    first, *others = [rows for rows in files if "group" in rows.columns] or [files[0]]
    groups, notes = first.row_groups, []
    for rows in others:
        if not {first.columns["group"], rows.columns["group"]} & {*COLUMNS["group"]}:
            _expect_equal("group", first, first.groups, rows, rows.groups)
            continue
        own, taken = rows.groups, [groups[row_id] for row_id in rows.ids]
        if not len(set(own)) == len(set(taken)) == len(set(zip(own, taken, strict=True))):
            notes.append(
                f"groups are those of {first.path} ({len(set(taken))}); {rows.path} has others ({len(set(own))}), and "
                "its own are taken where it comes first"
            )
    return [replace(rows, groups=[groups[row_id] for row_id in rows.ids]) for rows in files], notes


def _expect_equal(
    what: str, first: PredictionRows, expected: Sequence[object], rows: PredictionRows, got: Sequence[object]
) -> None:
    """One row has one group: where two files disagree, the rows are not the same ones."""
    known = dict(zip(first.ids, expected, strict=True))
    odd = [row_id for row_id, value in zip(rows.ids, got, strict=True) if known[row_id] != value]
    if odd:
        raise ConfigError(
            f"{rows.path}: Expected each row's {what} as in {first.path}, got others in {len(odd)} rows "
            f"({', '.join(odd[:5])}); they are not the same rows"
        )


def _print(each: Sequence[Scored], results: Sequence[Adjusted]) -> None:
    first = results[0].comparison
    print(f"{each[0].metric} on {first.rows_told}")
    is_share = all(one.is_share for one in each)
    for one in each:
        told = scored_content(one)
        value, low, high = (shown(number, is_share) for number in (told["value"], *told["interval"]))
        unit = " %" if is_share else ""
        print(f"  {value:>6}{unit}  ({low} to {high}, {told['interval_method']})  {one.rows.path}")
    for result in results:
        print(sentence(result, is_share=is_share, several=len(results) > 1))
    for remark in dict.fromkeys(remark for one in each for remark in one.remarks):
        print(remark)
    if len(results) > 1:
        print(f"p is Holm's for {len(results)} comparisons; the intervals are each its own")


def sentence(result: Adjusted, *, is_share: bool = True, several: bool = False) -> str:
    """The paired result, to be quoted alone."""
    found = result.comparison
    difference, low, high = (shown(number, is_share, "+") for number in (found.difference, *found.interval))
    test = f"{found.p_test}, Holm" if several else found.p_test
    up, down = ("fixed", "broken") if found.is_binary else ("up", "down")
    return (
        f"{found.first} -> {found.second}: {difference}{' points' if is_share else ''} (95 % interval {low} to "
        f"{high}), {test} {p_words(result.p_value)}, {found.only_second} {up}, {found.only_first} {down}: "
        f"{result.verdict_told}"
    )
