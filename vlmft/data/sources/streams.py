"""Tables that are read as they come, for data larger than the disk: `datasets` finds and streams them.

Held-out rows and the first training rows are in memory, and all that looks at rows before training looks at these. The
other training rows are seen once an epoch, by `data/stream.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.hub import undecoded
from vlmft.data.sources.locate import ImageFolders
from vlmft.data.sources.parquet_rows import ParquetRows
from vlmft.data.sources.split_names import Names, splits_in
from vlmft.data.sources.table import table_of
from vlmft.data.sources.tables import Loaded
from vlmft.sample import SPLITS, Split

LOOKED_AT = 2_000
"""Training rows that are in memory, and held-out rows of each split at most."""
HELD_OUT = 500
"""Rows of val and of test where the source has no such split: the first of train."""
BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tar": "webdataset"}


class RowsLookedAt(list[Any]):
    """Rows in memory, with the types of their columns where the source says them."""

    def __init__(self, rows: Iterator[Any], features: Mapping[str, Any] | None) -> None:
        super().__init__(rows)
        self.features = features


@dataclass(frozen=True)
class Stream:
    """The training rows behind those that are held out."""

    rows: Any
    """`datasets.IterableDataset` or `ParquetRows`: `state_dict()` says where it is, `load_state_dict()` goes there."""
    held_out: int
    """Of its first rows."""

    def training_rows(self, state: Mapping[str, Any] | None) -> tuple[Any, Iterator[Any]]:
        """As `Streamed` in data/stream.py."""
        rows = self.rows.skip(self.held_out)
        if state is not None:
            rows.load_state_dict(dict(state))
        return rows, iter(rows)


def streamed_tables(
    path: str | None, hub_id: str | None, revision: str | None, names: Names, subset: str | None
) -> tuple[Loaded, Stream]:
    """The rows that are looked at, by split, and the stream of training rows.

    Raises:
        ConfigError: it cannot be opened, or has no training split.
    """
    origin = path or str(hub_id)
    opened = _by_split(_opened(path, hub_id, revision, subset), names, origin)
    if "train" not in opened:
        raise ConfigError(f"data: Expected a split train in {origin!r}, got {', '.join(opened) or 'none'}")
    folder = None if path is None else Path(path).expanduser()
    top = folder if folder is None or folder.is_dir() else folder.parent
    images = None if top is None else ImageFolders(top, top)
    train = opened["train"]
    lacking: list[Split] = [split for split in SPLITS[:0:-1] if split not in opened]
    loaded, features = Loaded(declared=True), train.features
    first = RowsLookedAt(iter(train.take(HELD_OUT * len(lacking) + LOOKED_AT)), features)
    parts: dict[Split, RowsLookedAt] = {}
    for number, split in enumerate(lacking):
        parts[split] = RowsLookedAt(iter(first[number * HELD_OUT : (number + 1) * HELD_OUT]), features)
        loaded.notes.append(
            f"{split} is the first {len(parts[split])} rows that were left of train, in their order; where rows are "
            "sorted, they are of one kind: shuffle the source, or declare a split"
        )
    parts["train"] = RowsLookedAt(iter(first[HELD_OUT * len(lacking) :]), features)
    for split in opened.keys() - {"train"}:
        parts[split] = RowsLookedAt(iter(opened[split].take(LOOKED_AT)), opened[split].features)
    loaded.notes.append(
        f"train is a stream, of which {len(parts['train']):,} rows were looked at, and of other splits at most "
        f"{LOOKED_AT:,}: near-duplicates, lengths, answers and groups of images are theirs; a training row whose image "
        "or group is in another split is left out when it comes"
    )
    for split in SPLITS:
        if split in parts:
            loaded.tables[split] = table_of([parts[split]], [images], None)
            loaded.origins[split] = f"a stream of {origin}"
    return loaded, Stream(train, sum(len(parts[split]) for split in lacking))


def _opened(path: str | None, hub_id: str | None, revision: str | None, subset: str | None) -> Mapping[str, Any]:
    import datasets

    place, files = hub_id, None
    if path is not None:
        file = Path(path).expanduser()
        place = str(file)
        if file.is_file():
            place, files = BUILDERS.get(file.suffix.lower()), [str(file)]
    if place is None:
        known = ", ".join(BUILDERS)
        raise ConfigError(f"data.path: Expected a Hub dataset, a folder, or a file of {known} to stream, got {path!r}")
    named = {"name": subset, "data_files": files, "revision": revision}
    given = {key: value for key, value in named.items() if value is not None}
    try:
        builder = datasets.load_dataset_builder(place, **given)
        if type(builder).__name__ == "Parquet":
            return {str(split): ParquetRows([*found]) for split, found in builder.config.data_files.items()}
        return builder.as_streaming_dataset()  # type: ignore[no-any-return]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ConfigError(f"data: {path or hub_id!r} cannot be streamed ({reason}); check data.path") from error


def _by_split(opened: Mapping[str, Any], names: Names, origin: str) -> dict[Split, Any]:
    found: dict[Split, Any] = {}
    for name, rows in opened.items():
        splits = splits_in(str(name), names) if len(opened) > 1 else {"train"}
        for split in [split for split in SPLITS if {split} == splits]:
            if split in found:
                raise ConfigError(f"data: Expected one split for {split} in {origin!r}, got several; set split_names")
            found[split] = rows if rows.features is None or isinstance(rows, ParquetRows) else undecoded(rows)
    return found
