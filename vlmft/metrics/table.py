"""What a metric of a whole test set is given, and what it says."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from vlmft.metrics.score import expect_references

Row: TypeAlias = tuple[str, Sequence[str]]
"""(prediction, references)."""

SHORT_TOKENS = 4
"""BLEU counts runs of four tokens: shorter answers have none, and score 0 when they are right."""


@dataclass(frozen=True)
class Table:
    """Named numbers of one test set."""

    values: dict[str, float | None]
    """0..1 where the metric is a share. None is withheld; `notes` says why."""
    notes: list[str] = field(default_factory=list)
    """Signatures, conventions, and why something is withheld."""
    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Tables inside, such as one row per true count. JSON-ready."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


CorpusMetric = Callable[[Sequence[Row]], Table]
"""Rows -> `Table`; for what is no mean over rows. Pure. Raises ValueError without rows or references."""


def expect_rows(rows: Sequence[Row]) -> None:
    """Raises ValueError where there is nothing to sum up."""
    if not rows:
        raise ValueError("Expected at least one row, got none; a metric over nothing is no result")
    for _, references in rows:
        expect_references(references)


def short_answers(rows: Sequence[Row], tokens: Callable[[str], Sequence[str]]) -> str | None:
    """The reason to withhold what needs longer texts; None where they are long enough.

    Each row's shortest reference is measured: where its median is `SHORT_TOKENS`, half the rows have a run of that
    length in each reference, so that a set which is right everywhere cannot score 0.
    """
    median = statistics.median(min(len(tokens(reference)) for reference in references) for _, references in rows)
    if median >= SHORT_TOKENS:
        return None
    return (
        f"withheld, because the references have {median:g} tokens in the median and it needs {SHORT_TOKENS}: right "
        "answers without such runs score 0; take exact_match, token_f1 or chrf"
    )
