"""Tables of rows, wherever they lie: CSV, TSV, JSON, JSON Lines and parquet files, folders of them, or the Hub."""

from __future__ import annotations

import bisect
import csv
import itertools
import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.cache import stamps
from vlmft.sample import BadRowError, Split

SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What sources call their splits."""
FIRST_WORD = re.compile(r"[a-zA-Z]+")


@dataclass(frozen=True)
class Table:
    """The rows of one split."""

    rows: Any
    """By number: a sequence of mappings, or a `datasets.Dataset`."""
    root: Path | None
    """Where paths of images begin; None where images are stored in the rows."""
    numbers: Sequence[int]
    """Those of this split, in order."""
    sources: tuple[str, ...] | None = None
    """What the rows come from and nothing else: files with size and time, or the library's mark. None: unknown."""

    def row(self, number: int) -> dict[str, Any]:
        """Raises BadRowError where the row is not a mapping of the table's columns."""
        position = bisect.bisect_left(self.numbers, number)
        if position == len(self.numbers) or self.numbers[position] != number:
            raise BadRowError(f"Expected the number of a row, got {number}; take ids from index()")
        row = self.rows[number]
        if not isinstance(row, Mapping):
            raise BadRowError(f"Expected an object with named fields, got {str(row)[:80]!r}; mend the row")
        if None in row:  # what the csv module does with cells that have no column
            raise BadRowError(f"Expected a cell for each column, got {len(row[None])} more; quote texts with commas")
        return dict(row)

    @property
    def columns(self) -> list[str]:
        """Names of the columns: of the first row that can be read."""
        if hasattr(self.rows, "column_names"):
            return list(self.rows.column_names)
        return next((list(row) for row in map(self._row_or_none, self.numbers) if row is not None), [])

    def cells(self, column: str) -> Iterator[Any]:
        """One column's value in each row of `numbers`; None where a row cannot be read."""
        if hasattr(self.rows, "column_names"):
            values = list(self.rows[column])
            return (values[number] for number in self.numbers)
        return ((row or {}).get(column) for row in map(self._row_or_none, self.numbers))

    def _row_or_none(self, number: int) -> dict[str, Any] | None:
        try:
            return self.row(number)
        except BadRowError:
            return None


class JsonLines(Sequence[Any]):
    """A JSON Lines file, a line parsed when asked for: what stays in memory is sixteen bytes a row."""

    def __init__(self, file: Path) -> None:
        self.file, self.starts, self.lengths, start = file, array("q"), array("q"), 0
        with file.open("rb") as stream:
            for line in stream:
                if line.strip():
                    self.starts.append(start)
                    self.lengths.append(len(line))
                start += len(line)
        self.stream = file.open("rb", buffering=0)

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonLines, (self.file,)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: Any) -> Any:
        # `pread` moves no position: the file is open once, also for the workers that come from this process by a fork.
        line = os.pread(self.stream.fileno(), self.lengths[number], self.starts[number])
        try:
            return json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise BadRowError(f"Expected JSON in line {number + 1} of {self.file.name}, got {error}") from error


class Chained(Sequence[Any]):
    """Several sequences as one."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts, self.ends = parts, list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: Any) -> Any:
        part = bisect.bisect_right(self.ends, number)
        return self.parts[part][number - (self.ends[part - 1] if part else 0)]


def load_tables(
    path: str | None, hub_id: str | None, revision: str | None, split_names: Mapping[str, str]
) -> dict[Split, Table]:
    """The tables of a file, of a folder or of a Hub dataset, by split; "train" where nothing names a split.

    `split_names` are the source's names for splits beside `SPLIT_NAMES`, each with ours. Where the name of any file
    says its split ("val.csv", "test-00000.parquet", "train/metadata.jsonl"), only such files are read.

    Raises:
        ConfigError: there is no table at that place, or it cannot be read.
    """
    names: dict[str, Split] = {**SPLIT_NAMES, **split_names}  # type: ignore[dict-item]
    if path is None:
        if hub_id is None:
            raise ConfigError("data.path: Expected a file or folder, got none; set it, or data.options.hub_id")
        return _hub_tables(hub_id, revision, names)
    if revision is not None:
        raise ConfigError(f"data.revision: Expected none beside data.path, got {revision!r}; a local file has none")
    place = Path(path).expanduser()
    files = table_files(place)
    by_split: dict[Split, list[Path]] = {}
    for file in files:
        if (split := split_of(file.relative_to(place), names)) is not None:
            by_split.setdefault(split, []).append(file)
    by_split = by_split if by_split and len(files) > 1 else {"train": files}
    return {split: _table(found) for split, found in by_split.items()}


def table_files(place: Path) -> list[Path]:
    """`place` itself, or the tables in the folder, else in its subfolders; sorted.

    Raises:
        ConfigError: there are none.
    """
    for found in ([place], place.glob("*"), place.glob("*/*")):
        if files := sorted(file for file in found if file.suffix.lower() in READERS and file.is_file()):
            return files
    raise ConfigError(f"data.path: Expected a table ({', '.join(READERS)}) or a folder of them, got {str(place)!r}")


def split_of(file: Path, names: Mapping[str, Split]) -> Split | None:
    """The split that a file's name begins with, or else its folder's name; `file` is a path below the data folder."""
    words = [FIRST_WORD.match(name) for name in (file.name, file.parent.name)]
    return next((names[word[0].lower()] for word in words if word is not None and word[0].lower() in names), None)


def _table(files: Sequence[Path]) -> Table:
    sources = stamps(files)  # before they are read: a change in between shows at the next start
    parts = [READERS[file.suffix.lower()](file) for file in files]
    rows = parts[0] if len(parts) == 1 else Chained(parts)
    return Table(rows, files[0].parent, range(len(rows)), sources)


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=head.count)  # a comma where the head has none of them
            return list(csv.DictReader(stream, delimiter=delimiter))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"data.path: Expected a table in UTF-8 in {file}, got {error}; save it as such") from error


def json_rows(file: Path) -> list[Any]:
    """Raises ConfigError where the file holds no JSON list."""
    return list(json_value(file, list))


def json_value(file: Path, kind: type) -> Any:
    """The list or dict that a JSON file holds; raises ConfigError where it holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.path: Expected JSON in {file}, got an error ({error}); mend the file") from error
    if not isinstance(found, kind):
        raise ConfigError(
            f"data.path: Expected a JSON {kind.__name__} in {file}, got {type(found).__name__}; mend the file"
        )
    return found


def _parquet_rows(file: Path) -> Any:
    return next(iter(load_undecoded("parquet", str(file), None).values()))


READERS: Mapping[str, Callable[[Path], Any]] = {
    ".jsonl": JsonLines,
    ".json": json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _hub_tables(hub_id: str, revision: str | None, names: Mapping[str, Split]) -> dict[Split, Table]:
    loaded = load_undecoded(hub_id, None, revision)
    known = {names[split]: rows for split, rows in loaded.items() if split in names}
    if not known and len(loaded) == 1:
        known = {"train": next(iter(loaded.values()))}
    if not known:
        raise ConfigError(f"data: Expected splits train, val or test in {hub_id!r}, got {sorted(loaded)}; name theirs")
    return {split: Table(rows, None, range(len(rows)), (rows._fingerprint,)) for split, rows in known.items()}


def load_undecoded(place: str, file: str | None, revision: str | None) -> dict[str, Any]:
    """What `datasets` loads, images not decoded: decoded by it, one corrupt image would end the iteration."""
    import datasets

    try:
        loaded = datasets.load_dataset(place, revision=revision, **({"data_files": file} if file is not None else {}))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ConfigError(
            f"data: {file or place!r} cannot be loaded ({reason}); check data.path or the connection"
        ) from error
    found = {}
    for split, rows in loaded.items():
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
            elif isinstance(getattr(feature, "feature", None), datasets.Image):
                rows = rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
        found[split] = rows
    return found
