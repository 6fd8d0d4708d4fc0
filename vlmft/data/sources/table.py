"""The rows of one split, from any source."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.locate import ImageFolders
from vlmft.data.sources.roles import shown
from vlmft.data.survey.cache import sha256
from vlmft.sample import BadRowError, Split

SAMPLED_ROWS, MOST_STORED = 2_000, 100
"""Rows that are sampled to find out what a table's columns hold; fewer where rows hold their images."""


class Chained(Sequence[Any]):
    """Several sequences as one."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts, self.ends = parts, list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: Any) -> Any:
        part = bisect.bisect_right(self.ends, number)
        return self.parts[part][number - (self.ends[part - 1] if part else 0)]


@dataclass(frozen=True)
class Table:
    """The rows of one split."""

    rows: Any
    """By number: a sequence of mappings, or a `datasets.Dataset`."""
    folders: tuple[ImageFolders | None, ...]
    """Where the images of each of its files are; None where images are stored in the rows."""
    numbers: Sequence[int]
    """Those of this split, in order."""
    sources: tuple[str, ...] | None = None
    """All that the rows come from: files with size and time, or the fingerprint of `datasets`. None: unknown."""

    def row(self, number: int) -> dict[str, Any]:
        """Raises BadRowError where the row is not a mapping of the table's columns."""
        position = bisect.bisect_left(self.numbers, number)
        if position == len(self.numbers) or self.numbers[position] != number:
            raise BadRowError(f"Expected the number of a row, got {number}; take ids from index()")
        row = self.rows[number]
        if not isinstance(row, Mapping):
            raise BadRowError(f"Expected an object with named fields, got {str(row)[:80]!r}; fix the row")
        if None in row:
            found = f"{row[None]} more" if row[None] > 0 else f"{-row[None]} fewer"
            raise BadRowError(f"Expected a cell for each column, got {found}; quote texts that hold the separator")
        return dict(row)

    def folders_of(self, number: int) -> ImageFolders | None:
        """Where the images of a row are."""
        return self.folders[self.part_of(number)]

    def part_of(self, number: int) -> int:
        """Which of its files a row is in."""
        return bisect.bisect_right(self.rows.ends, number) if isinstance(self.rows, Chained) else 0

    @property
    def parts(self) -> Sequence[Any]:
        """The rows of each of its files."""
        return self.rows.parts if isinstance(self.rows, Chained) else [self.rows]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of all sampled rows: many tools leave out a field that a row does not have."""
        if hasattr(self.rows, "column_names"):
            return list(self.rows.column_names)
        return list(dict.fromkeys(name for row in self.sample() for name in row))

    def sample(self, most: int = SAMPLED_ROWS) -> list[dict[str, Any]]:
        """Rows that can be read, of at most `most` spread over the table, the first and the last among them."""
        return self._sampled if most == SAMPLED_ROWS else self._spread(self.numbers, most)

    @cached_property
    def _sampled(self) -> list[dict[str, Any]]:
        return self._spread(self.numbers, SAMPLED_ROWS)

    def __getstate__(self) -> dict[str, Any]:  # a worker needs no sample
        return {name: value for name, value in vars(self).items() if name != "_sampled"}

    def sample_of(self, part: int) -> list[dict[str, Any]]:
        """The same for one of its files."""
        first, last = (bisect.bisect_left(self.numbers, end, key=self.part_of) for end in (part, part + 1))
        return self._spread(self.numbers[first:last], SAMPLED_ROWS)

    def _spread(self, numbers: Sequence[int], most: int) -> list[dict[str, Any]]:
        n_rows, most = len(numbers), min(most, MOST_STORED) if hasattr(self.rows, "column_names") else most
        places = range(n_rows) if n_rows <= most else sorted({i * (n_rows - 1) // (most - 1) for i in range(most)})
        return [row for row in (self._row_or_none(numbers[place]) for place in places) if row is not None]

    def cells(self, column: str) -> Iterator[Any]:
        """One column's value in each row of `numbers`; None where a row cannot be read."""
        if hasattr(self.rows, "column_names"):
            values = list(self.rows[column])
            return (values[number] for number in self.numbers)
        return ((row or {}).get(column) for row in map(self._row_or_none, self.numbers))

    def can_read(self, number: int) -> bool:
        return self._row_or_none(number) is not None

    def _row_or_none(self, number: int) -> dict[str, Any] | None:
        try:
            return self.row(number)
        except BadRowError:
            return None


def table_of(lists: Sequence[Any], folders: Sequence[ImageFolders | None], sources: tuple[str, ...] | None) -> Table:
    """The table of the rows of one or more files, `folders` one for each file."""
    rows = lists[0] if len(lists) == 1 else Chained(lists)
    return Table(rows, tuple(folders), range(len(rows)), sources)


def table_in_memory(lists: Sequence[list[Any]], images: Path) -> Table:
    """The same for rows in memory, their images below one folder; the rows themselves are the source."""
    return table_of(lists, [ImageFolders(images, images)] * len(lists), (sha256(*map(repr, lists)),))


def no_rows(tables: Mapping[Split, Table], origin: str) -> ConfigError:
    """What to raise where no table has a row with named fields."""
    table = next(iter(tables.values()))
    try:
        found = "none" if not len(table.rows) else shown(table.row(table.numbers[0]))
    except BadRowError as error:
        found = f"none that can be read ({error})"
    return ConfigError(f"data.path: Expected rows with named fields in {origin}, got {found}")


def rows_where(tables: Mapping[Split, Table], where: Mapping[str, re.Pattern[str]]) -> dict[Split, Table]:
    """Without the rows in which a column's text does not contain its pattern."""
    kept = dict(tables)
    for column, pattern in where.items():
        for split, table in kept.items():
            numbers = [n for n, cell in zip(table.numbers, table.cells(column), strict=True) if _has(cell, pattern)]
            kept[split] = replace(table, numbers=numbers)
    return kept


def _has(cell: object, pattern: re.Pattern[str]) -> bool:
    """A cell that cannot be read stays in: the row is refused by name, not dropped silently."""
    texts = cell if isinstance(cell, list) else [cell]
    return cell is None or any(pattern.search(str(text)) for text in texts)
