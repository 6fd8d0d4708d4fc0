"""Do two files hold the same rows? What their ids alone cannot show, their questions and references can. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlmft.config.check import ConfigError
from vlmft.metrics.exact_match import normalised
from vlmft.metrics.numerals import whole_number
from vlmft.predictions.columns import AGREEING
from vlmft.predictions.rows import PredictionRows
from vlmft.predictions.scoring import Scored

FEW_ROWS = 200
"""Too few to say anything of a correlation."""
UNRELATED = 0.1
"""Two models' scores of the same questions agree more than this: 0.3 to 0.8 is usual, and 0 is chance."""


def expect_same_questions(first: PredictionRows, rows: PredictionRows) -> list[str]:
    """Notes of where the rows of two files, paired by id, may not belong together.

    Raises ConfigError where references differ, or most questions do.
    """
    notes = []
    for name in [name for name in first.asked if name in rows.asked]:
        expected = dict(zip(first.ids, first.asked[name], strict=True))
        got = dict(zip(rows.ids, rows.asked[name], strict=True))
        odd = [row_id for row_id in first.ids if _plain(expected[row_id]) != _plain(got[row_id])]
        if not odd:
            continue
        is_most, shared = 2 * len(odd) > len(expected), _share_shared(list(expected.values()), list(got.values()))
        told = (
            f"{len(odd)} of {len(expected)} rows, first in row {odd[0]} ({expected[odd[0]][:40]!r} there, "
            f"{got[odd[0]][:40]!r} here)"
        )
        if is_most and (name in AGREEING or 2 * shared > 1):
            raise ConfigError(
                f"{rows.path}: Expected each row's {name} as in {first.path}, got others in {told}; they are not the "
                f"same rows{_mend(name, expected, got)}"
            )
        notes.append(f"{rows.path}: {name} is not as in {first.path} in {told}")
    if first.references is not None and rows.references is not None:
        _expect_same_references(first, rows, first.references, rows.references)
    return notes


def _mend(name: str, expected: dict[str, str], got: dict[str, str]) -> str:
    """How rows in another order can be paired."""
    texts = set(expected.values())
    if texts != set(got.values()):
        return ", or in another order; pair them by what names the question (--columns id=...)"
    if len(texts) == len(expected):
        return f" but in another order; pair them with --columns id={name}"
    return " but in another order; pair them by what names the question (--columns id=...)"


def _share_shared(expected: Sequence[str], got: Sequence[str]) -> float:
    """The share of rows whose text is somewhere in the other file: 1 where the order alone differs."""
    return (Counter(expected) & Counter(got)).total() / len(expected)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _expect_same_references(
    first: PredictionRows,
    rows: PredictionRows,
    expected: Sequence[tuple[str, ...]],
    got: Sequence[tuple[str, ...]],
) -> None:
    known = dict(zip(first.ids, expected, strict=True))
    odd = [(i, texts) for i, texts in zip(rows.ids, got, strict=True) if _meant(known[i]) != _meant(texts)]
    if odd:
        row_id, texts = odd[0]
        raise ConfigError(
            f"{rows.path}: Expected each row's reference as in {first.path}, got others in {len(odd)} rows "
            f"({', '.join(i for i, _ in odd[:5])}), first {known[row_id][0][:40]!r} there and {texts[0][:40]!r} here; "
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
        shown = bool(first.rows.asked.keys() & one.rows.asked.keys())
        shown |= first.rows.references is not None and one.rows.references is not None
        if not shown and _are_numbers(first.rows.ids):
            column = first.rows.columns.get("id")
            by = f"by {column}, which numbers them," if column else "by order alone,"
            notes.append(
                f"{one.rows.path}: rows are paired {by} and nothing in the files shows that they belong together"
            )
        correlation = _correlation(first, one)
        if not shown and correlation is not None and correlation < UNRELATED and _are_numbers(first.rows.ids):
            notes.append(
                f"{one.rows.path}: its scores and those of {first.rows.path} go together no more than chance "
                f"(correlation {correlation:.2f}), as if the rows were of other questions; look at some rows of both"
            )
    return notes


def _are_numbers(ids: Sequence[str]) -> bool:
    return {name.removesuffix(".0") for name in ids} <= {str(number) for number in range(len(ids) + 1)}


def _correlation(first: Scored, other: Scored) -> float | None:
    """Of the rows' scores; None where one file's are all alike, or too few."""
    mine, theirs = (np.array([one.values[row_id] for row_id in first.rows.ids]) for one in (first, other))
    if len(mine) < FEW_ROWS or min(mine.std(), theirs.std()) < 0.05:
        return None
    return float(np.corrcoef(mine, theirs)[0, 1])
