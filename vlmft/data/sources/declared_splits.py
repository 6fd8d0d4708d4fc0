"""Rows divided as their source declares: by a column of splits, or by the folders of the images.

What the source declares is used or refused; file names and a column that contradict each other are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Description
from vlmft.data.sources.roles import fold
from vlmft.data.sources.split_names import LEFT_OUT, Names, split_of, splits_in
from vlmft.data.sources.table import Table
from vlmft.sample import SPLITS, Split

SPLIT_COLUMNS = tuple("split data_split dataset_split set partition subset usage phase fold".split())
"""Columns that may hold a row's split: the first three always do, the others if they hold names of splits, and any
other column if it holds train and another name of a split and nothing else."""
SAID_SPLITS = SPLIT_COLUMNS[:3]
FLAGS = frozenset("is_train is_training is_test is_val is_valid is_validation train test val valid".split())
"""Columns of 0 and 1: whether a row is in one split."""

Tables = Mapping[Split, Table]


def split_column(tables: Tables, taken: Collection[str], names: Names) -> str | None:
    """The column of the rows' splits; None where there is none."""
    rows = [row for table in tables.values() for row in table.sample()]
    there = [column for column in next(iter(tables.values())).columns if column not in taken and column]
    usual = [column for name in SPLIT_COLUMNS for column in there if fold(column) == name]
    for column in dict.fromkeys([*usual, *there]):
        cells = {str(row.get(column)).strip()[:40] for row in rows}
        if cells <= {"None", ""}:
            continue
        splits = [names.get(cell.lower()) if column not in usual else _one(splits_in(cell, names)) for cell in cells]
        if fold(column) in SAID_SPLITS or ("train" in splits and column in usual):
            return column
        if None not in splits and (column in usual or "train" in splits) and len(cells) > (column not in usual):
            return column
        if fold(column) in FLAGS and len(cells) == 2 and {cell.lower() for cell in cells} < FLAG_CELLS:
            first, second = sorted(cells)
            own = _one(splits_in(fold(column).removeprefix("is_"), names))
            raise ConfigError(
                f"data.options.split: {column!r} says splits by {first} and {second}; set it to {column} with "
                f"split_names={{{second}: {own}, {first}: {'test' if own == 'train' else 'train'}}}, or to none"
            )
    return None


FLAG_CELLS = frozenset(("0", "1", "true", "false", "yes", "no", "0.0", "1.0"))


def _one(splits: Collection[str]) -> str | None:
    return next(iter(splits)) if len(splits) == 1 else None


def by_column(tables: Tables, column: str, names: Names, description: Description) -> dict[Split, Table]:
    """The one table divided by a column; several, which have splits by name, unchanged if the column agrees.

    Raises:
        ConfigError: a cell that names no split, or another split than its file.
    """
    by_split: dict[str, list[int]] = {}
    for own, table in tables.items():
        for number, cell in zip(table.numbers, table.cells(column), strict=True):
            split = _one(splits_in(str(cell), names))
            if split is None and not table.can_read(number):
                split = own  # refused by name where it is used
            if split is None:
                raise ConfigError(
                    f"data.options.split: Expected train, val or test in {column!r}, got {cell!r} in row {number}; set "
                    f"data.options.split_names={{{str(cell) or repr('')}: train}}, val, test or none, or "
                    "data.options.split=none"
                )
            if len(tables) > 1 and split != own:
                raise ConfigError(
                    f"data: {description.splits.get(own, own)} is {own} by its name, and its row {number} says "
                    f"{cell!r} in {column!r}; fix one of them"
                )
            by_split.setdefault(split, []).append(number)
    if len(tables) > 1:
        return dict(tables)
    return _divided(next(iter(tables.values())), by_split, f"by the column {column!r}", description)


def by_image_folder(
    tables: Tables,
    column: str,
    image_names: Callable[[Mapping[str, Any]], Sequence[Any]],
    names: Names,
    description: Description,
) -> dict[Split, Table]:
    """The one table divided by the folders of its images, if these are named train and another split."""
    if len(tables) != 1 or hasattr(next(iter(tables.values())).rows, "column_names"):
        return dict(tables)
    (table,) = tables.values()

    def split_in(cell: Any) -> str | None:
        paths = [PurePosixPath(str(value).replace("\\", "/")) for value in image_names({column: cell})]
        splits = {split_of(path.parent / "x", names) for path in paths}
        return splits.pop() if len(splits) == 1 else None

    if not {"train"} < {split_in(row.get(column)) for row in table.sample()} - {None}:
        return dict(tables)
    by_split: dict[str, list[int]] = {}
    for number, cell in zip(table.numbers, table.cells(column), strict=True):
        by_split.setdefault(split_in(cell) or "", []).append(number)
    if odd := by_split.get(""):
        raise ConfigError(
            f"data: the folders of images say {', '.join(sorted(by_split.keys() - {''}))}, and that of row {odd[0]} "
            "says no split; set data.options.split_names={FOLDER: none}, or data.options.split to a column of splits"
        )
    return _divided(table, by_split, "by the folders of the images", description)


def _divided(table: Table, by_split: Mapping[str, list[int]], how: str, description: Description) -> dict[Split, Table]:
    origin = next(iter(description.splits.values()), "").removesuffix(", by name")
    if left_out := len(by_split.get(LEFT_OUT, ())):
        description.notes.append(f"{left_out} rows are left out by split_names")
    tables = {split: replace(table, numbers=by_split[split]) for split in SPLITS if split in by_split}
    description.splits = {split: f"{len(part.numbers)} rows of {origin}, {how}" for split, part in tables.items()}
    return tables
