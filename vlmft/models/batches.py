"""Which rows go through a model together: rows of like length, as many as there are tokens for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Row = TypeVar("Row")


def by_length(
    rows: Sequence[Row],
    length: Callable[[Row], int],
    name: Callable[[Row], str],
    rows_limit: int,
    tokens_limit: int | None,
    count: Callable[[Row], int] = lambda row: 1,
) -> list[list[Row]]:
    """The rows by length, in batches of at most `rows_limit` rows and `tokens_limit` padded tokens (one row at least).

    A function of the rows alone, in whatever order they come: those of equal length are sorted by `name`. `count` says
    how many rows one is.
    """
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (length(row), name(row))):
        fits = batches and sum(map(count, batches[-1])) + count(row) <= rows_limit
        if fits and (tokens_limit is None or (len(batches[-1]) + 1) * length(row) <= tokens_limit):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


class Padding:
    """Counts the tokens of batches, and those of them that are padding."""

    def __init__(self) -> None:
        self.tokens = self.padding = 0

    def add(self, lengths: Sequence[int]) -> None:
        """A batch of rows of these lengths."""
        padded = len(lengths) * max(lengths)
        self.tokens += padded
        self.padding += padded - sum(lengths)

    def include(self, other: Padding) -> None:
        """Those that another has counted."""
        self.tokens += other.tokens
        self.padding += other.padding

    @property
    def share(self) -> float:
        """Of all tokens so far; 0 where there were none."""
        return self.padding / self.tokens if self.tokens else 0.0
