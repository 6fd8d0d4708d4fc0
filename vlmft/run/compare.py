"""vlmft compare A B ...: are the others better than A, on the same rows? Seconds, and no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlmft.config.check import ConfigError
from vlmft.evaluation.compare import Adjusted, adjusted, compare, expect_same_ids
from vlmft.run.prediction_rows import PredictionRows
from vlmft.run.score import OF_A_SET, Scored, metrics_of, parser, read_file, read_labels, scored, scored_content


def run_compare(arguments: Sequence[str]) -> None:
    """The tool: every file against the first, under one metric."""
    found = parser("compare", "Are the other files of predictions better than the first, on the same rows?")
    found.add_argument("files", type=Path, nargs="+")
    options = found.parse_args(arguments)
    if len(options.files) < 2 or len(set(options.files)) < len(options.files):
        raise ConfigError(f"vlmft compare: Expected two files or more, each once, got {len(options.files)}")
    files = aligned([read_file(path, options) for path in options.files], by_order=options.by_order)
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
        print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
        return
    _print(each, results)


def aligned(files: Sequence[PredictionRows], *, by_order: bool) -> list[PredictionRows]:
    """The files with rows of the same ids; under `by_order` row n of each is the same row.

    Raises ConfigError where a file has no ids, ids or numbers of rows differ, or one row has two references or groups.
    """
    first = files[0]
    for rows in files:
        if not by_order and "id" not in rows.columns:
            raise ConfigError(f"{rows.path}: Expected an id column, got none; use --columns id=... or --by-order")
        if by_order and len(rows.ids) != len(first.ids):
            raise ConfigError(f"{rows.path}: Expected {len(first.ids)} rows as in {first.path}, got {len(rows.ids)}")
    if by_order:
        numbers = [str(number) for number in range(1, len(first.ids) + 1)]
        files = [
            replace(rows, ids=numbers, groups=rows.groups if "group" in rows.columns else numbers) for rows in files
        ]
    for rows in files[1:]:
        try:
            expect_same_ids(str(first.path), dict.fromkeys(files[0].ids), str(rows.path), dict.fromkeys(rows.ids))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for what, one, other in (
            ("reference", files[0].references, rows.references),
            ("group", files[0].groups, rows.groups),
        ):
            _expect_equal(what, files[0], one, rows, other)
    return list(files)


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
    for one in each:
        told = scored_content(one)
        low, high = (100 * end for end in told["interval"])
        print(f"  {100 * told['value']:6.2f} %  ({low:.2f} to {high:.2f})  {one.rows.path}")
    for result in results:
        print(sentence(result, several=len(results) > 1))
    for one in each:
        for remark in one.remarks:
            print(remark)
    if len(results) > 1:
        print(f"p is Holm's for {len(results)} comparisons; the intervals are each its own")
    if "id" not in each[0].rows.columns and each[0].rows.references is None:
        print("note: rows are paired by order alone, and nothing in the files shows that they belong together")


def sentence(result: Adjusted, *, several: bool = False) -> str:
    """The paired result, to be quoted alone."""
    found = result.comparison
    low, high = (100 * end for end in found.interval)
    test = f"{found.p_test}, Holm" if several else found.p_test
    return (
        f"{found.first} -> {found.second}: {100 * found.difference:+.2f} points (95 % interval {low:+.2f} to "
        f"{high:+.2f}), {test} p = {result.p_value:.2g}, {found.only_second} fixed, {found.only_first} broken: "
        f"{result.verdict}"
    )
