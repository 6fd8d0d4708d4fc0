"""Rows of predictions from a file of any tool: CSV, TSV, JSON or JSONL. Nothing here imports torch."""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.make import make_dataset
from vlmft.run.folder import CONFIG_FILE, read_run
from vlmft.sample import BadRowError

COLUMNS: dict[str, tuple[str, ...]] = {
    "prediction": (
        *("prediction", "pred", "predicted", "predicted_answer", "model_prediction", "text", "output"),
        *("model_output", "response", "generated_text"),
    ),
    "reference": (
        *("reference", "references", "gold", "ground_truth", "label", "target", "correct_answer"),
        *("answer", "answers"),
    ),
    "id": ("id", "row_id", "sample_id", "question_id", "doc_id"),
    "group": ("image_sha256",),
    "score": (),
}
"""What a column may be for -> the names by which it is found, the first that is there; a score must be named."""
LONGEST_CELL = 1 << 24
LIST_AS_TEXT = re.compile(r"""\[\s*(?:['"].*['"]|\{\s*['"]answer['"].*\})\s*\]""", re.DOTALL)
"""What str() and pandas make of a list of texts, or of VQAv2's list of answers."""


@dataclass(frozen=True)
class PredictionRows:
    """One file's rows, in its order."""

    path: Path
    columns: dict[str, str]
    """Use -> column; what was found and what was named."""
    ids: list[str]
    """Row numbers from 1 where the file has no id column."""
    predictions: list[str]
    """Empty for a file of scores alone."""
    references: list[tuple[str, ...]] | None
    scores: list[float] | None
    groups: list[str]
    cut: list[bool]
    """Rows whose `finish` says that the answer reached its length limit."""
    metric: str | None = None
    """The metric of the run that made the file, where that is known."""

    @property
    def row_groups(self) -> dict[str, str]:
        return dict(zip(self.ids, self.groups, strict=True))


def read_rows(path: Path, named: Mapping[str, str], *, by_order: bool = False) -> PredictionRows:
    """The rows of `path`; `named` says which column is what, the rest is found by name (`COLUMNS`).

    Under `by_order` a column of ids has no say. Raises ConfigError for a file that is not there or damaged, a column
    that is missing, an id that comes twice.
    """
    records = _records(path)
    there = _names(records)
    columns = _columns(path, there, named)
    if "prediction" not in columns and "score" not in columns:
        raise ConfigError(
            f"{path}: Expected a column of predictions, got {', '.join(there)}; name it with "
            "--columns prediction=..., or a column of scores with --columns score=..."
        )
    return _rows(path, records, columns, by_order=by_order)


def _rows(
    path: Path, records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, by_order: bool
) -> PredictionRows:
    columns = {use: column for use, column in columns.items() if use != "id" or not by_order}
    ids = [str(number) for number in range(1, len(records) + 1)]
    if "id" in columns:
        ids = [_named(path, ids[i], record, columns["id"]) for i, record in enumerate(records)]
        twice = [name for name, count in Counter(ids).items() if count > 1]
        if twice:
            raise ConfigError(
                f"{path}: Expected every id once, got {len(twice)} several times ({', '.join(twice[:5])})"
            )
    cells = {use: [record.get(column) for record in records] for use, column in columns.items()}
    return PredictionRows(
        path=path,
        columns=columns,
        ids=ids,
        predictions=[_text(path, i, value) for i, value in zip(ids, cells.get("prediction", ()), strict=False)],
        references=_each(_references, path, ids, cells["reference"]) if "reference" in cells else None,
        scores=_each(_score, path, ids, cells["score"]) if "score" in cells else None,
        # a row without an image is a group of its own
        groups=[json.dumps(value) if value else i for i, value in zip(ids, cells.get("group", ids), strict=True)],
        cut=[record.get("finish") == "length" for record in records],
    )


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records: list[dict[str, Any]] = _parsed(path, file)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ConfigError(f"{path}: Expected a CSV, TSV, JSON or JSONL file in UTF-8, got: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: Expected rows with named columns, got lists in lists too deep to read") from error
    if not records or not all(isinstance(record, dict) and record for record in records):
        raise ConfigError(
            f"{path}: Expected rows with named columns, got {str(records)[:40]}; give a header or objects"
        )
    return records


def _parsed(path: Path, file: Iterable[str]) -> Any:
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return [_line(number, line) for number, line in enumerate(file, start=1) if line.strip()]
    if kind == ".json":
        found = json.loads("".join(file))
        lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [found]
        if len(lists) != 1:
            raise ValueError(f"an object with {len(lists)} lists where one list of rows is needed")
        return lists[0]
    if kind not in (".csv", ".tsv"):
        raise ValueError(f"a file name that ends in {kind!r}")
    csv.field_size_limit(LONGEST_CELL)
    lines = iter(file)
    header = next(lines, "")
    separator = "\t" if kind == ".tsv" else max(",;\t", key=header.count)
    rows = csv.DictReader(_chain(header, lines), delimiter=separator)
    twice = [name for name, count in Counter(rows.fieldnames or ()).items() if name.strip() and count > 1]
    if twice:
        raise ValueError(f"several columns of one name ({', '.join(twice)}), of which only one can be meant")
    return [_whole(rows.line_num, row) for row in rows]


def _chain(first: str, rest: Iterable[str]) -> Iterable[str]:
    yield first
    yield from rest


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


def _whole(line: int, row: dict[Any, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ValueError(f"line {line}: another number of cells than the header has")
    return row


def _names(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of all records: many tools leave out what one row does not have."""
    return list(dict.fromkeys(name for record in records for name in record))


def _columns(path: Path, there: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    for use, column in named.items():
        if column not in there:
            nearest = difflib.get_close_matches(column, there, n=1) or there
            raise ConfigError(f"{path}: there is no column {column!r} for {use}; did you mean {', '.join(nearest)}?")
    plain = {re.sub(r"\W+", "_", column.strip().casefold()): column for column in reversed(there)}
    found = dict(named)
    for use, names in COLUMNS.items():
        free = [plain[name] for name in names if name in plain and plain[name] not in found.values()]
        if use not in found and free:
            found[use] = free[0]
    return found


def _each(read: Any, path: Path, ids: Sequence[str], values: Sequence[Any]) -> list[Any]:
    return [read(path, row_id, value) for row_id, value in zip(ids, values, strict=True)]


def _named(path: Path, number: str, record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if value is None or not str(value).strip():
        raise ConfigError(f"{path}: row {number} has no {column}; every row needs one, or none (--by-order)")
    return str(value).strip()


def _text(path: Path, row_id: str, value: Any) -> str:
    if isinstance(value, (list, dict)):
        raise ConfigError(f"{path}: Expected text as prediction of row {row_id}, got {value!r}")
    return "" if _is_missing(value) else str(value)  # no answer is a wrong one, and stays in the denominator


def _is_missing(value: Any) -> bool:
    """None, and the NaN that pandas writes for it into JSON."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _references(path: Path, row_id: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and LIST_AS_TEXT.fullmatch(value.strip()):
        raise ConfigError(
            f"{path}: Expected a reference in row {row_id}, got a list written as text, {value[:60]!r}; write lists as "
            "such, in JSON or JSONL, also where such a text is meant: a list with that one text"
        )
    several = value if isinstance(value, list) else [value]
    several = [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in several]
    if isinstance(value, dict) or any(isinstance(one, (list, dict)) for one in several):
        raise ConfigError(
            f"{path}: Expected a text or a list of texts as reference of row {row_id} (or VQAv2's "
            f'[{{"answer": ...}}, ...]), got {str(value)[:60]}; name another column with --columns reference=...'
        )
    found = tuple(str(one) for one in several if not _is_missing(one))
    if not any(text.strip() for text in found):
        raise ConfigError(
            f"{path}: Expected a reference in row {row_id}, got {value!r}; a row without one has no score"
        )
    return found


def _score(path: Path, row_id: str, value: Any) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ConfigError(f"{path}: Expected a number as score of row {row_id}, got {value!r}; score it 0")
    return score


def with_references(
    rows: PredictionRows, source: Path | None, named: Mapping[str, str], *, by_order: bool
) -> PredictionRows:
    """`rows` with references: from `source`, the file itself, or the dataset of the run folder that it stands in.

    Raises ConfigError where there are none, or where ids differ.
    """
    if source is not None:
        other = read_rows_of_references(source, named, by_order=by_order)
        if by_order or "id" not in rows.columns or "id" not in other.columns:
            if not by_order or len(rows.ids) != len(other.ids):
                raise ConfigError(
                    f"{source}: Expected ids in both files, or --by-order and equal lengths, got {len(rows.ids)} and "
                    f"{len(other.ids)} rows; name the columns with --columns id=..."
                )
            return replace(rows, references=other.references)
        assert other.references is not None
        found = dict(zip(other.ids, other.references, strict=True))
        lost = [row_id for row_id in rows.ids if row_id not in found]
        if lost or len(found) != len(rows.ids):
            extra = sorted(found.keys() - set(rows.ids))
            raise ConfigError(
                f"{source}: Expected the ids of {rows.path}, got none for {len(lost)} of them ({', '.join(lost[:5])}) "
                f"and {len(extra)} others ({', '.join(extra[:5])})"
            )
        return replace(rows, references=[found[row_id] for row_id in rows.ids])
    if rows.references is not None or rows.scores is not None:
        return rows
    config = rows.path.resolve().parent.parent / CONFIG_FILE
    if rows.path.resolve().parent.name != "predictions" or not config.is_file():
        raise ConfigError(
            f"{rows.path}: Expected a column of references, got {', '.join(rows.columns.values())}; name it with "
            "--columns reference=..., or give --references FILE"
        )
    ids = read_rows(rows.path, named).ids if by_order else rows.ids
    return _of_the_run(rows, ids, config.parent)


def read_rows_of_references(source: Path, named: Mapping[str, str], *, by_order: bool) -> PredictionRows:
    """A file of ids and references; it needs no predictions."""
    records = _records(source)
    there = _names(records)
    wanted = {use: column for use, column in named.items() if use in ("id", "reference") and column in there}
    columns = {use: column for use, column in _columns(source, there, wanted).items() if use in ("id", "reference")}
    if "reference" not in columns:
        raise ConfigError(f"{source}: Expected a column of references, got {', '.join(there)}; use --columns")
    return _rows(source, records, columns, by_order=by_order)


def _of_the_run(rows: PredictionRows, ids: Sequence[str], folder: Path) -> PredictionRows:
    """References as the run's own config makes them: the file was written under it, and holds its `ids`."""
    data = read_run(str(folder)).data
    assert data is not None
    dataset = make_dataset(data)
    try:
        dataset.index()
        references = [dataset.to_sample(dataset.read(row_id)).references for row_id in ids]
    except (BadRowError, OSError) as error:
        raise ConfigError(
            f"{rows.path}: the run's data no longer gives its rows ({error}); use --references"
        ) from error
    return replace(rows, references=references, metric=data.metric or dataset.metric)
