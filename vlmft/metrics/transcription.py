"""Transcriptions: error rates of characters and of words, as in speech and text recognition."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from vlmft.metrics.score import Metric, Score, expect_references
from vlmft.metrics.sequences import edit_distance
from vlmft.metrics.table import Row, Table, expect_rows

NORMALISED = "texts in NFC, runs of white space as one space; case and punctuation count"
Cut = Callable[[str], Sequence[str]]


def normalised(text: str) -> str:
    """As `NORMALISED` says: a composed "é" is the decomposed one, a line break is a space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _accuracy(cut: Cut) -> Metric:
    def score(prediction: str, references: Sequence[str]) -> Score:
        expect_references(references)
        answer = normalised(prediction)
        errors, length = _fewest(answer, references, cut)
        return Score(max(0.0, 1 - errors / length) if length else float(not answer), answer or None)

    return score


character_accuracy = _accuracy(list)
"""1 - errors of characters / characters of the reference, 0 where it is less; the best over the references."""
word_accuracy = _accuracy(str.split)
"""The same of words, as white space divides them."""


def error_rates(rows: Sequence[Row]) -> Table:
    """`cer` and `wer`: insertions, deletions and substitutions over characters or words of the references, of all rows.

    Of several references the one with the lowest rate counts. Above 1 where answers are much too long. As in jiwer and
    torchmetrics, on texts that are `NORMALISED`. Raises ValueError without rows or references.
    """
    expect_rows(rows)
    values: dict[str, float | None] = {}
    for name, cut in (("cer", list), ("wer", str.split)):
        counts = [_fewest(normalised(prediction), references, cut) for prediction, references in rows]  # type: ignore[arg-type]
        length = sum(n for _, n in counts)
        values[name] = sum(errors for errors, _ in counts) / length if length else None
    return Table(values, notes=[NORMALISED])


def _fewest(answer: str, references: Sequence[str], cut: Cut) -> tuple[int, int]:
    """Errors and length of the reference with the lowest rate."""
    found = [(edit_distance(cut(answer), parts), len(parts)) for parts in map(cut, map(normalised, references))]
    return min(found, key=lambda pair: pair[0] / max(1, pair[1]))
