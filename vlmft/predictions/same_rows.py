"""Do several files hold the same rows? What their ids alone cannot show, questions and references can. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from vlmft.config.check import ConfigError
from vlmft.evaluation.compare import expect_same_ids
from vlmft.metrics.exact_match import normalised
from vlmft.metrics.numerals import whole_number
from vlmft.predictions.columns import AGREEING, COLUMNS
from vlmft.predictions.rows import PredictionRows
from vlmft.predictions.scoring import Scored

FEW_ROWS = 200
"""Fewer rows than this show nothing about a correlation."""
UNRELATED = 0.1
"""Two models' scores of the same questions agree more than this: 0.3 to 0.8 is usual, and 0 is chance."""


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
        if (by_order or rows.is_lines) and len(rows.rows) != len(first.rows):
            raise ConfigError(f"{rows.path}: Expected {len(first.rows)} rows as in {first.path}, got {len(rows.rows)}")
    notes = [f"{rows.path}: {note}" for rows in files for note in rows.notes]
    for rows in files[1:]:
        try:
            expect_same_ids(str(first.path), first.rows, str(rows.path), rows.rows)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        notes += _different_questions(first, rows)
    groups, more = _shared_groups(files)
    broken_down = next((rows for rows in files if rows.first.by is not None), first)
    by = {row.id: row.by for row in broken_down.rows.values()}
    alike = [
        replace(
            rows.with_rows(replace(row, group=groups[row.id], by=by[row.id]) for row in rows.rows.values()),
            by_name=broken_down.by_name,
        )
        for rows in files
    ]
    return alike, notes + more


def _shared_groups(files: Sequence[PredictionRows]) -> tuple[dict[str, str], list[str]]:
    """The groups of the first file that has any; a note for each whose images are grouped differently.

    A group that was named must be the same everywhere. Images need not be: a blank arm has seen others.
    """
    first, *others = [rows for rows in files if "group" in rows.columns] or [files[0]]
    groups, notes = first.groups, []
    for rows in others:
        own = rows.groups
        if not {first.columns["group"], rows.columns["group"]} & {*COLUMNS["group"]}:
            odd = [row_id for row_id, group in own.items() if groups[row_id] != group]
            if odd:
                raise ConfigError(
                    f"{rows.path}: Expected each row's group as in {first.path}, got others in {len(odd)} rows "
                    f"({', '.join(odd[:5])}); they are not the same rows"
                )
        elif not len({*own.values()}) == len({*groups.values()}) == len({(own[i], groups[i]) for i in own}):
            notes.append(
                f"groups are those of {first.path} ({len({*groups.values()})}); {rows.path} has others "
                f"({len({*own.values()})}), and its own are taken where it comes first"
            )
    return groups, notes


def _different_questions(first: PredictionRows, rows: PredictionRows) -> list[str]:
    """Notes of where the rows of two files, paired by id, may not belong together.

    Raises ConfigError where references differ, or most questions do.
    """
    notes = []
    for name in [name for name in first.first.asked if name in rows.first.asked]:
        expected, got = _asked(first, name), _asked(rows, name)
        odd = [row_id for row_id in first.rows if _plain(expected[row_id]) != _plain(got[row_id])]
        if not odd:
            continue
        where = (
            f"{len(odd)} of {len(expected)} rows, first in row {odd[0]} ({expected[odd[0]][:40]!r} there, "
            f"{got[odd[0]][:40]!r} here)"
        )
        shared = (Counter(expected.values()) & Counter(got.values())).total() / len(expected)
        if 2 * len(odd) > len(expected) and (name in AGREEING or 2 * shared > 1):
            raise ConfigError(
                f"{rows.path}: Expected each row's {name} as in {first.path}, got others in {where}; they are not the "
                f"same rows{_advice(name, expected, got)}"
            )
        notes.append(f"{rows.path}: {name} is not as in {first.path} in {where}")
    if first.references and rows.references:
        _expect_same_references(first, rows)
    return notes


def _asked(rows: PredictionRows, name: str) -> dict[str, str]:
    return {row.id: row.asked[name] for row in rows.rows.values()}


def _advice(name: str, expected: Mapping[str, str], got: Mapping[str, str]) -> str:
    """How rows in another order can be paired."""
    texts = {*expected.values()}
    are_same = texts == {*got.values()}
    if are_same and len(texts) == len(expected):
        return f" but in another order; pair them with --columns id={name}"
    order = " but in another order" if are_same else ", or in another order"
    return f"{order}; pair them by what names the question (--columns id=...)"


def _plain(text: str) -> str:
    return " ".join(text.split())


def _expect_same_references(first: PredictionRows, rows: PredictionRows) -> None:
    expected, got = first.references, rows.references
    odd = [row_id for row_id, texts in got.items() if _meant(expected[row_id]) != _meant(texts)]
    if odd:
        raise ConfigError(
            f"{rows.path}: Expected each row's reference as in {first.path}, got others in {len(odd)} rows "
            f"({', '.join(odd[:5])}), first {expected[odd[0]][0][:40]!r} there and {got[odd[0]][0][:40]!r} here; "
            "they are not the same rows; pair them by what names the question (--columns id=...)"
        )


def _meant(texts: Sequence[str]) -> set[str]:
    """Right answers without what tools change in them: case, spaces, "3.0" for 3."""
    return {normalised(text) if (number := whole_number(text)) is None else str(number) for text in texts}


def unrelated(each: Sequence[Scored]) -> list[str]:
    """Notes where nothing shows that rows belong together, or scores look as if they did not."""
    first, *others = each
    notes = []
    for one in others:
        shown = bool(first.rows.first.asked.keys() & one.rows.first.asked.keys())
        shown |= bool(first.rows.references and one.rows.references)
        if shown or not _are_numbers(first.rows.rows):
            continue
        column = first.rows.columns.get("id")
        by = f"by {column}, which numbers them," if column else "by order alone,"
        notes.append(f"{one.rows.path}: rows are paired {by} and nothing in the files shows that they belong together")
        correlation = _correlation(first, one)
        if correlation is not None and correlation < UNRELATED:
            notes.append(
                f"{one.rows.path}: its scores and those of {first.rows.path} go together no more than chance "
                f"(correlation {correlation:.2f}), as if the rows were of other questions; look at some rows of both"
            )
    return notes


def _are_numbers(ids: Iterable[str]) -> bool:
    numbers = {name.removesuffix(".0") for name in ids}
    return numbers <= {str(number) for number in range(len(numbers) + 1)}


def _correlation(first: Scored, other: Scored) -> float | None:
    """Of the rows' scores; None where one file's are all alike, or too few."""
    mine, theirs = (np.array([one.values[row_id] for row_id in first.rows.rows]) for one in (first, other))
    if len(mine) < FEW_ROWS or min(mine.std(), theirs.std()) < 0.05:
        return None
    return float(np.corrcoef(mine, theirs)[0, 1])
