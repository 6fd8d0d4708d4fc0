"""The rows of a file of predictions or references, whatever holds them. Nothing here imports torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.files import read_file
from vlmft.data.sources.text import read_text
from vlmft.predictions.columns import cell, names_of, plain
from vlmft.sample import BadRowError

LINE = "line"
"""The one column of a file that has a text a line."""
ONE_OBJECT = ("one JSON object", "a JSON object by id", "columns in JSON")
"""Forms that {id: text} is taken for."""
SPLIT_COLUMNS = ("split", "part", "list")
"""What the column is called that says which of a file's lists a row was in: the first that the rows do not have."""


@dataclass(frozen=True)
class Records:
    """A file's rows, in its order."""

    rows: list[dict[str, Any]]
    form: str
    """In words: "CSV in UTF-8"."""
    notes: list[str]
    """What a reader must know, a sentence each."""
    is_lines: bool = False
    """A text a line: rows have no names, and their order is what they go by."""
    split: str | None = None
    """The column of the list that each row was in, where the file has several."""

    @property
    def is_table(self) -> bool:
        """Whether every cell had to be written as text, lists and objects too."""
        return self.form.startswith(("CSV", "TSV", "an Excel"))


def read_records(
    path: Path, names: Sequence[str], what: str, *, rows: str | None = None, encoding: str | None = None
) -> Records:
    """The rows of `path`. Of several lists those are read that have a column of `names`, or the one called `rows`.

    `what` is the word for them in errors. Raises ConfigError for a file that is not there, that cannot be read, or
    whose rows have no named columns.
    """
    if path.is_dir():
        inside = sorted(one.name for one in path.iterdir() if one.is_file())[:5]
        raise ConfigError(f"{path}: Expected a file, got a folder with {', '.join(inside) or 'no file'}; name the file")
    if path.suffix.lower() == ".txt":
        return _lines_of(path, encoding)
    file = read_file(path, encoding)
    parts = {name: _whole(path, name, found) for name, found in file.parts.items()}
    notes = list(file.notes)
    if len(parts) == 1:
        parts = _lists_in_rows(next(iter(parts.values())), names) or parts
    chosen = _chosen(path, parts, names, what, rows)
    if len(chosen) < len(parts):
        notes.append(f"rows are those of {', '.join(map(repr, chosen))}; not read: {', '.join(_others(parts, chosen))}")
    if len(chosen) > 1:
        return _together(path, chosen, file.form, notes)
    (found,) = chosen.values()
    if file.form in ONE_OBJECT or (len(found) == 1 and path.suffix.lower() == ".json"):
        called = "text" if what == "predictions" else "answer"
        found = _columns_beside(found, names) or _texts_by_id(found, names, called) or found
    if found and all(isinstance(row, str) for row in found):
        return Records([{LINE: text} for text in found], f"{file.form} of texts", notes, is_lines=True)
    return Records(_named(path, found), file.form, notes)


def _lines_of(path: Path, encoding: str | None) -> Records:
    text = read_text(path, encoding)
    lines = [line.removesuffix("\r") for line in text.text.removesuffix("\n").split("\n")]
    if lines[0].lstrip().startswith("{") and lines[0].rstrip().endswith("}"):
        raise ConfigError(f"{path}: Expected a text a line, got JSON ({lines[0][:40]!r}); call the file .jsonl")
    if "\t" in lines[0] and any(plain(name) in ("prediction", "pred", "answer") for name in lines[0].split("\t")):
        raise ConfigError(f"{path}: Expected a text a line, got a table with a header; call the file .tsv")
    if not any(line.strip() for line in lines):
        raise ConfigError(f"{path}: Expected a text a line, got an empty file")
    return Records([{LINE: line} for line in lines], f"a text a line in {text.encoding}", [], is_lines=True)


def _whole(path: Path, name: str, found: Sequence[Any]) -> list[Any]:
    """The rows as a list; a line that is no JSON is refused here, where lines are parsed when asked for."""
    try:
        return list(found)
    except (BadRowError, RecursionError) as error:
        reason = "lists in lists too deep to read" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{path}: {name + ': ' if name else ''}{reason}; correct the file") from error


def _chosen(
    path: Path, parts: Mapping[str, list[Any]], names: Sequence[str], what: str, rows: str | None
) -> dict[str, list[Any]]:
    """The lists to read: as named, else those that hold what is looked for, else all."""
    if rows is not None:
        found = {name: part for name, part in parts.items() if name == rows or name.startswith(rows + ".")}
        if not found:
            there = ", ".join(map(repr, parts)) if set(parts) != {""} else "one list without a name"
            raise ConfigError(f"{path}: --rows: Expected a list of rows called {rows!r}, got {there}")
        return found
    if len(parts) == 1:
        return dict(parts)
    ranks = {name: _rank(part, names) for name, part in parts.items()}
    best = min(ranks.values())
    if best == len(names):
        raise ConfigError(
            f"{path}: Expected a list of rows with a column of {what}, got {len(parts)} lists without one "
            f"({', '.join(parts)}); name a list with --rows, and its columns with --columns"
        )
    return {name: part for name, part in parts.items() if ranks[name] == best}


def _rank(part: Sequence[Any], names: Sequence[str]) -> int:
    """The place of the first of `names` that the rows have; beyond the last where they have none."""
    there = {spelling for column in names_of(filter(_is_row, part)) for spelling in (column, plain(column))}
    return next((place for place, name in enumerate(names) if name in there), len(names))


def _is_row(row: Any) -> bool:
    return isinstance(row, dict)


def _columns_beside(found: Sequence[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of {"accuracy": 0.8, "predictions": [...], "references": [...]}; empty where the file is another one."""
    row = found[0] if len(found) == 1 and isinstance(found[0], dict) else {}
    lists = {key: cell for key, cell in row.items() if isinstance(cell, list)}
    lengths = {len(cell) for cell in lists.values()}
    if len(lists) < 2 or len(lengths) > 1 or not any(plain(key) in names for key in lists):
        return []
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def _texts_by_id(found: Sequence[Any], names: Sequence[str], called: str) -> list[dict[str, Any]]:
    """The rows of {id: text}, as SQuAD's and GQA's scripts take it; empty where the file is something else.

    Such an object was read as one row, or as columns, that have none of `names`.
    """
    if not found or not all(isinstance(row, dict) for row in found):
        return []
    columns = [column for column in found[0] if not (column == "id" and len(found) == 1)]
    if len(columns) < 2 or any(plain(column) in names for row in found for column in row if column != "id"):
        return []
    cells = {column: [row.get(column) for row in found] for column in columns}
    is_text = all(isinstance(cell, (str, int, float, list)) for several in cells.values() for cell in several)
    if (len(found) > 1 and not all(len(row) == len(columns) > len(found) for row in found)) or not is_text:
        return []
    return [{"id": column, called: several[0] if len(several) == 1 else several} for column, several in cells.items()]


def _lists_in_rows(found: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    """The lists of [{"split": "human", "items": [...]}, ...] by the first text beside each; empty for other rows."""
    parts: dict[str, list[Any]] = {}
    for number, row in enumerate(found, start=1):
        lists = [cell for cell in row.values() if cell and isinstance(cell, list)] if _is_row(row) else []
        if len(lists) != 1 or _rank([row], names) < len(names) or _rank(lists[0], names) == len(names):
            return {}
        name = next((cell for cell in row.values() if isinstance(cell, str)), str(number))
        parts[name if name not in parts else f"{name} {number}"] = lists[0]
    return parts


def _others(parts: Mapping[str, object], chosen: Mapping[str, object]) -> list[str]:
    return [repr(name) for name in parts if name not in chosen]


def _named(path: Path, found: Sequence[Any]) -> list[dict[str, Any]]:
    for number, row in enumerate(found, start=1):
        if not isinstance(row, Mapping) or not row:
            raise ConfigError(
                f"{path}: Expected rows with named columns, got {str(row)[:40]!r} as row {number}; give a header or "
                "objects"
            )
        if None in row:
            raise ConfigError(
                f"{path}: Expected as many cells as the header has, got {abs(row[None])} too "
                f"{'many' if row[None] > 0 else 'few'} in row {number}; quote cells that hold separators"
            )
    if not found:
        raise ConfigError(f"{path}: Expected rows with named columns, got none; give a header and rows")
    return [dict(row) for row in found]


def _together(path: Path, parts: Mapping[str, list[Any]], form: str, notes: list[str]) -> Records:
    """Several lists as one, with a column that says which list a row was in."""
    shown = dict(zip(parts, _short_names(list(parts)), strict=True))
    rows: list[dict[str, Any]] = []
    named = {name: _named(path, part) for name, part in parts.items()}
    _expect_no_list_in_another(path, named)
    columns = {column for part in named.values() for row in part for column in row}
    split = next(name for name in SPLIT_COLUMNS if name not in columns)
    for name, part in named.items():
        for row in part:
            rows.append({**row, split: shown[name]})
    counts = ", ".join(f"{len(part)} of {shown[name]!r}" for name, part in named.items())
    notes.append(f"rows are those of {len(parts)} lists: {counts}; --rows NAME takes one ({', '.join(parts)})")
    return Records(rows, form, notes, split=split)


def _expect_no_list_in_another(path: Path, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Such as the list of all rows and that of the wrong ones: read together, rows would count twice."""
    contents = {name: [json.dumps(row, sort_keys=True, default=str) for row in part] for name, part in parts.items()}
    for name, rows in contents.items():
        for other, more in contents.items():
            if name != other and len(rows) <= len(more) and set(rows) <= set(more):
                raise ConfigError(
                    f"{path}: Expected each row in one list, got those of {name!r} in {other!r} too; choose with "
                    f"--rows {other}"
                )


def _short_names(names: Sequence[str]) -> list[str]:
    """The names without the steps that all have: "splits.human.items" is "human"."""
    steps = [name.split(".") for name in names]
    if len({len(one) for one in steps}) != 1:
        return list(names)
    differing = [i for i in range(len(steps[0])) if len({one[i] for one in steps}) > 1]
    return [".".join(one[i] for i in differing) for one in steps]


def unique_over_splits(records: Records, column: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """The rows with ids that say the list too, where each list numbers its own; and a note of it."""
    if records.split is None or column is None:
        return records.rows, None
    ids = [str(cell(row, column)) for row in records.rows]
    pairs = [f"{row[records.split]}/{name}" for row, name in zip(records.rows, ids, strict=True)]
    if len(set(ids)) == len(ids) or len(set(pairs)) < len(pairs):
        return records.rows, None
    rows = [{**row, column: pair} for row, pair in zip(records.rows, pairs, strict=True)]
    return rows, f"ids are {records.split}/{column}, because each list has its own"
