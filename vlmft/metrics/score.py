"""What a metric says about one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One row's number, and what the metric took the answer to be."""

    value: float
    """0..1."""
    parsed: str | None
    """What was understood as the answer. None is a parse failure: it counts as wrong and stays in the denominator."""


Metric = Callable[[str, Sequence[str]], Score]
"""(prediction, references) -> `Score`, the best over the references. Pure. Raises ValueError on unusable references."""


def expect_references(references: Sequence[str]) -> None:
    """Raises ValueError where there is nothing to score against."""
    # a str is a sequence of characters: "14" would accept the answer "1"
    if not references or isinstance(references, str):
        raise ValueError(
            f"Expected a tuple of at least one reference text, got {references!r}; give the row its gold text"
        )
