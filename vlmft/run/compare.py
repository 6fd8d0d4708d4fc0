"""vlmft compare A B ...: are the others better than A, on the same rows? Seconds, and no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlmft.config.check import ConfigError
from vlmft.evaluation.compare import Adjusted, adjusted, compare, expect_same_ids, p_words
from vlmft.run.prediction_rows import COLUMNS, PredictionRows
from vlmft.run.score import (
    OF_A_SET,
    Scored,
    columns_of_each,
    metrics_of,
    parser,
    read_file,
    read_labels,
    scored,
    scored_content,
    shown,
)


def run_compare(arguments: Sequence[str]) -> None:
    """The tool: every file against the first, under one metric."""
    found = parser("compare", "Are the other files of predictions better than the first, on the same rows?")
    found.add_argument("files", type=Path, nargs="+")
    options = found.parse_intermixed_args(arguments)  # each file may have its --columns beside it
    if len(options.files) < 2 or len(set(options.files)) < len(options.files):
        raise ConfigError(f"vlmft compare: Expected two files or more, each once, got {len(options.files)}")
    columns = columns_of_each(options, len(options.files))
    files = [read_file(path, own, options) for path, own in zip(options.files, columns, strict=True)]
    files, notes = aligned(files, by_order=options.by_order)
    metrics: list[str | None] = [*metrics_of(files[0], options.metric)] or [None]
    if len(metrics) != 1 or metrics[0] in OF_A_SET:
        raise ConfigError(
            f"--metric: Expected one metric with a score for each row, got {', '.join(map(str, metrics))}"
        )
    labels = read_labels(options.classes)
    each = [scored(rows, metrics[0], labels) for rows in files]
    groups = files[0].row_groups
    first, *others = each
    results = adjusted(
        [compare(str(first.rows.path), first.values, str(one.rows.path), one.values, groups) for one in others]
    )
    if options.json:
        arms = [{"file": str(one.rows.path), **scored_content(one)} for one in each]
        content = {"metric": first.metric, "arms": arms, "comparisons": [one.to_dict() for one in results]}
        content["notes"] = notes
        print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
        return
    _print(each, results)
    for note in notes:
        print(f"note: {note}")


def aligned(files: Sequence[PredictionRows], *, by_order: bool) -> tuple[list[PredictionRows], list[str]]:
    """The files with rows of the same ids and groups, and notes; under `by_order` row n of each is the same row.

    Raises ConfigError where a file has no ids, ids or numbers of rows differ, or one row has two references or groups.
    """
    first = files[0]
    for rows in files:
        if not by_order and "id" not in rows.columns:
            raise ConfigError(f"{rows.path}: Expected an id column, got none; use --columns id=... or --by-order")
        if by_order and len(rows.ids) != len(first.ids):
            raise ConfigError(f"{rows.path}: Expected {len(first.ids)} rows as in {first.path}, got {len(rows.ids)}")
    for rows in files[1:]:
        try:
            expect_same_ids(str(first.path), dict.fromkeys(first.ids), str(rows.path), dict.fromkeys(rows.ids))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        _expect_equal("reference", first, first.references, rows, rows.references)
    return _grouped_alike(files)


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
    what: str,
    first: PredictionRows,
    expected: Sequence[object] | None,
    rows: PredictionRows,
    got: Sequence[object] | None,
) -> None:
    """One row has one reference and one group: where two files disagree, the rows are not the same ones."""
    if expected is None or got is None:
        return
    known = dict(zip(first.ids, expected, strict=True))
    odd = [row_id for row_id, value in zip(rows.ids, got, strict=True) if known[row_id] != value]
    if odd:
        raise ConfigError(
            f"{rows.path}: Expected each row's {what} as in {first.path}, got others in {len(odd)} rows "
            f"({', '.join(odd[:5])}); they are not the same rows"
        )


def _print(each: Sequence[Scored], results: Sequence[Adjusted]) -> None:
    first = results[0].comparison
    print(f"{each[0].metric} on {first.n} rows" + (f" in {first.n_groups} groups" if first.n_groups < first.n else ""))
    is_share = all(one.is_share for one in each)
    for one in each:
        told = scored_content(one)
        value, low, high = (shown(number, is_share) for number in (told["value"], *told["interval"]))
        print(f"  {value:>6}{' %' if is_share else ''}  ({low} to {high})  {one.rows.path}")
    for result in results:
        print(sentence(result, is_share=is_share, several=len(results) > 1))
    for one in each:
        for remark in one.remarks:
            print(remark)
    if len(results) > 1:
        print(f"p is Holm's for {len(results)} comparisons; the intervals are each its own")
    if "id" not in each[0].rows.columns and each[0].rows.references is None:
        print("note: rows are paired by order alone, and nothing in the files shows that they belong together")


def sentence(result: Adjusted, *, is_share: bool = True, several: bool = False) -> str:
    """The paired result, to be quoted alone."""
    found = result.comparison
    difference, low, high = (shown(number, is_share, "+") for number in (found.difference, *found.interval))
    test = f"{found.p_test}, Holm" if several else found.p_test
    return (
        f"{found.first} -> {found.second}: {difference}{' points' if is_share else ''} (95 % interval {low} to "
        f"{high}), {test} {p_words(result.p_value)}, {found.only_second} fixed, {found.only_first} broken: "
        f"{result.verdict}"
    )
