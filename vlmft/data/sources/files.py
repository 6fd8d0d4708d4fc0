"""One file's rows: CSV, TSV, JSON, JSON Lines, parquet, arrow or xlsx, recognised by content and not only by name.

The one reader for rows to train on and for predictions to score. Nothing here imports torch.
"""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import json
import os
import re
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.json_forms import FormError, NoWordsError, Parts, is_image_name, parts_of
from vlmft.data.sources.text import Text, WrittenFloat, read_text
from vlmft.sample import BadRowError

SAMPLED_ROWS = 50
"""Rows that are checked to see whether the header is one."""
LONGEST_CELL = 1 << 28
"""In characters. The csv module stops at 131,072 by itself, which an image in base64 exceeds."""
FILLED = re.compile(r"\S")
LINES, LISTS = (".jsonl", ".ndjson", ".jsonlines"), (".json",)
CELLS, BINARY, SHEETS = (".csv", ".tsv", ".tab"), (".parquet", ".arrow"), (".xlsx", ".xlsm")
SUFFIXES = (*LINES, *LISTS, *CELLS, *BINARY, *SHEETS)
REMEDIES: Mapping[str, str] = {
    **dict.fromkeys((".xls", ".ods", ".numbers"), "save it as .xlsx or as CSV in UTF-8"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar", ".tgz"), "unpack it"),
    ".tar": "unpack it: images with texts beside them are data=imagefolder",
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz"), "no pickle is read; write JSON Lines or parquet"
    ),
    **dict.fromkeys((".yaml", ".yml", ".xml", ".toml", ".h5", ".feather"), "write its rows as JSON Lines or parquet"),
}
"""Suffixes of files that are often found in place of a table, and what to do about each."""
HEADS: Mapping[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer; run git lfs pull",
    b"PK\x03\x04": "an Excel workbook or a zip; give it the suffix .xlsx, or unpack it",
    b"PAR1": "a parquet file; give it the suffix .parquet",
    b"\x1f\x8b": "a gzip file; unpack it",
    b"SQLite": "a database; export its rows as CSV",
    b"<!doctype html": "an HTML page; download the file itself",
    b"<html": "an HTML page; download the file itself",
    b"<?xml": "XML; write its rows as JSON Lines or parquet",
}
"""First bytes, in lower case except for binary marks, of files that are not what their suffix says."""
EXCEL_ERRORS = frozenset("#N/A #REF! #DIV/0! #NAME? #VALUE! #NUM! #NULL!".split())
ESCAPED_QUOTE = re.compile(r'\\"[^",;\t\r\n]')
"""A quote within a cell as C writes it; CSV doubles it, and reads this one as the cell's end."""


class NoAnswersError(ConfigError):
    """A file of annotations without text, such as boxes; `found` names them."""

    def __init__(self, file: Path, error: NoWordsError) -> None:
        super().__init__(f"{file}: {error}")
        self.found = error.found


@dataclass(frozen=True)
class File:
    """What one file holds."""

    parts: Parts
    """Its lists of rows by name: one under "", or those of several sheets or JSON lists."""
    form: str
    """In words, for people: "CSV in cp1251 (guessed)"."""
    notes: tuple[str, ...] = ()
    """What else a reader should know."""

    @property
    def rows(self) -> Sequence[Any]:
        """Those of all parts, each a mapping, or whatever value is there. A CSV row with another number of cells
        than its header has the surplus (below 0: the lack) under the key None."""
        lists = list(self.parts.values())
        return lists[0] if len(lists) == 1 else list(itertools.chain(*lists))


class JsonLines(Sequence[Any]):
    """A JSON Lines file in UTF-8, each line parsed on access: sixteen bytes a row stay in memory."""

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
        # `pread` moves no position: the file is open once, also for workers that are forked from this process.
        line = os.pread(self.stream.fileno(), self.lengths[number], self.starts[number])
        try:
            return json.loads(line.decode("utf-8-sig"), parse_float=WrittenFloat)
        except (ValueError, RecursionError) as error:
            raise BadRowError(f"Expected JSON in line {number + 1} of {self.file.name}, got {error}") from error


def read_file(file: Path, encoding: str | None = None) -> File:
    """The rows of one file.

    Raises:
        ConfigError: no such file, another kind of file, or one that is damaged or holds no rows.
    """
    suffix = file.suffix.lower()
    if suffix not in (*SUFFIXES, ".txt"):
        remedy = REMEDIES.get(suffix, "write a table as JSON Lines, CSV or parquet")
        raise ConfigError(f"{file}: Expected a table ({', '.join(SUFFIXES)}), got {suffix or 'no suffix'}; {remedy}")
    if not file.is_file():
        raise ConfigError(f"{file}: Expected a file, got none there; check the path")
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
        _require_form(suffix, head)
        if suffix in BINARY:
            return _arrow(file)
        if suffix in SHEETS:
            return _workbook(file)
        if suffix == ".txt" and head.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] not in (b"{", b"["):
            suffix = ".tsv"
        return _cells(file, encoding) if suffix in CELLS else _json(file, encoding)
    except NoWordsError as error:
        raise NoAnswersError(file, error) from error
    except FormError as error:
        raise ConfigError(f"{file}: {error}") from error


def _require_form(suffix: str, head: bytes) -> None:
    """Raises FormError where a file's first bytes are those of another form than its suffix says."""
    if not head.strip():
        what = "a header line and rows" if suffix in CELLS else "rows"
        raise FormError(f"Expected {what}, got an empty file")
    own = {".parquet": b"PAR1", **dict.fromkeys(SHEETS, b"PK\x03\x04")}.get(suffix)
    found = next((what for mark, what in HEADS.items() if head.startswith(mark) or head.lower().startswith(mark)), None)
    if own is not None and head.startswith(own):
        return
    if found is None and (own is not None or (suffix in CELLS and head.lstrip(b"\xef\xbb\xbf").startswith(b'{"'))):
        found = "JSON; give it the suffix .jsonl" if own is None else f"a file that begins {head[:12]!r}; save it again"
    if found is not None:
        raise FormError(f"Expected what {suffix} says, got {found}")


# --- JSON


def _json(file: Path, encoding: str | None) -> File:
    """Decided by the first line: if it is a whole object the file is JSON Lines, whatever its name."""
    named_lines = file.suffix.lower() in LINES
    if encoding is None and (lines := _lines(file, named_lines)) is not None:
        return lines
    text = read_text(file, encoding)
    if not text.text.strip():
        raise FormError("Expected rows, got an empty file")
    try:
        value = json.loads(text.text, parse_float=WrittenFloat)
    except ValueError as error:
        rows = _one_after_another(text.text)
        if rows is None and named_lines:
            return File({"": _parsed_lines(file, text)}, f"JSON Lines in {text.encoding}")
        if rows is None:
            zeros = "zero bytes in it" if "\0" in text.text else f"an error ({error})"
            raise FormError(f"Expected JSON, got {zeros}; fix the file") from error
        return File({"": rows}, f"JSON objects one after another in {text.encoding}")
    except RecursionError as error:
        raise FormError("Expected rows with named columns, got lists in lists too deep to read") from error
    parts, form = parts_of(value)
    return File(parts, form if text.encoding == "UTF-8" else f"{form} in {text.encoding}")


def _lines(file: Path, named_lines: bool) -> File | None:
    """JSON Lines in UTF-8; None where the file is something else."""
    with file.open("rb") as stream:
        filled = (line for line in stream if line.strip())
        first, second = next(filled, b""), next(filled, b"")
    try:
        text = first.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if "\0" in text:  # UTF-16
        return None
    begins = text.lstrip()[:1]
    try:
        whole = isinstance(json.loads(text), (dict, list))
    except RecursionError:
        return None
    except ValueError:
        # a broken first line before valid ones is one bad row
        whole = named_lines and begins not in ("[", "") and _parses(second)
    # a .json of one line may be a container; in .jsonl a line is a row, also where it holds lists
    if not whole or (not second and (begins == "[" or not (named_lines or _is_row(text)))):
        return None
    return File({"": JsonLines(file)}, "JSON Lines")


def _parses(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_row(text: str) -> bool:
    """Whether a file's only line is a row and not a container of rows."""
    try:
        return parts_of(json.loads(text))[1] == "one JSON object"
    except ValueError:
        return False


def _one_after_another(text: str) -> list[Any] | None:
    """Objects over several lines each, as `jq` prints them; None where there is something else between them."""
    decoder, place, found = json.JSONDecoder(), 0, []
    while (filled := FILLED.search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, filled.start())
        except (ValueError, RecursionError):
            return None
        found.append(value)
    return found if len(found) > 1 and all(isinstance(row, dict) for row in found) else None


def _parsed_lines(file: Path, text: Text) -> list[Any]:
    found = []
    for number, line in enumerate(text.text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(json.loads(line, parse_float=WrittenFloat))
            except ValueError as error:
                raise FormError(f"Expected JSON in line {number}, got {error}; fix the line") from error
    return found


def json_value(file: Path, kind: type, key: str = "data.path") -> Any:
    """The list or dict that a JSON file holds; raises ConfigError under `key` where it holds something else."""
    try:
        value = json.loads(
            file.read_text(encoding="utf-8-sig")
        )  # no code page is guessed here, where it could not be reported
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: Expected JSON in {file}, got an error ({error}); fix the file") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{key}: Expected a JSON {kind.__name__} in {file}, got {type(value).__name__}; fix the file")
    return value


# --- CSV


def _cells(file: Path, encoding: str | None) -> File:
    text = read_text(file, encoding)
    csv.field_size_limit(LONGEST_CELL)
    lines, delimiter = text.text, None
    if lines[:4].lower() == "sep=" and lines[4:5]:  # Excel's own first line
        delimiter, lines = lines[4], lines.partition("\n")[2]
    head = lines.lstrip("\r\n").partition("\n")[0]
    delimiter = delimiter or _delimiter(file, head)
    try:
        found = list(csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, strict=False))
    except csv.Error as error:
        raise FormError(f"Expected a table with cells by {delimiter!r}, got {error}; fix the file") from error
    filled = [row for row in found if any(cell.strip() for cell in row)]
    if not filled:
        raise FormError("Expected a header line and rows, got an empty file")
    _require_closed(filled)
    names = _header(filled[0])
    _require_below(names, [[cell.strip() for cell in row] for row in filled[1:SAMPLED_ROWS]])
    form = f"{'TSV' if delimiter == chr(9) else 'CSV'} in {text.encoding}"
    left_out = len([row for row in found if row]) - len(filled)
    notes = [f"{left_out} rows of empty cells are left out"] if left_out else []
    notes += ["a column without a name is not read"] if "" in names else []
    if escaped := ESCAPED_QUOTE.search(lines):
        line = lines.count("\n", 0, escaped.start()) + 1
        notes.append(f'line {line} has \\" in it, which ends a quoted cell in CSV: double the quotes of texts')
    return File({"": [_row(names, row) for row in filled[1:]]}, form, tuple(notes))


def _require_closed(rows: Sequence[Sequence[str]]) -> None:
    """Raises FormError where an unclosed quote has made the rest of the file one cell."""
    for cell in rows[-1]:
        if cell.count("\n") > 1 and len(rows[-1]) != len(rows[0]):
            raise FormError(
                f"Expected a quote to be closed, got one opened in row {len(rows) - 1} that takes "
                f"{cell.count(chr(10))} lines; double the quotes of texts"
            )


def _require_below(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Raises FormError where a title is above the header: one cell above rows of several."""
    filled = [sum(cell not in (None, "") for cell in row) for row in rows]
    if len([name for name in names if name]) == 1 and filled and min(filled) > 1:
        title = next(name for name in names if name)
        raise FormError(
            f"Expected a header of {max(filled)} names, got {title[:60]!r} alone; delete the lines above it"
        )


def _delimiter(file: Path, head: str) -> str:
    if file.suffix.lower() != ".csv" and "\t" in head:
        return "\t"
    outside = "".join(head.split('"')[::2])  # a quoted name may hold a comma
    return max(",;\t|", key=outside.count)  # a comma where the head has none


def _header(cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if any(map(is_image_name, names)):
        raise FormError(f"Expected a header line, got data ({', '.join(names)[:80]}); put image,answer above it")
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise FormError(f"Expected each column once, got several called {', '.join(twice)}; rename one")
    return names


def _row(names: Sequence[str], cells: Sequence[str]) -> dict[Any, Any]:
    surplus = len(cells) - len(names)
    if surplus > 0 and not any(cell.strip() for cell in cells[len(names) :]):
        surplus = 0  # separators at the line's end, as spreadsheets write them
    row: dict[Any, Any] = {name: cell for name, cell in zip(names, cells, strict=False) if name}
    return {**row, None: surplus} if surplus else row


# --- parquet, arrow, xlsx


def _arrow(file: Path) -> File:
    from vlmft.data.sources.hub import load_undecoded  # imports `datasets`, which takes a second

    kind = file.suffix.lower().removeprefix(".")
    return File({"": next(iter(load_undecoded(kind, [str(file)], None).values()))}, kind)


def _workbook(file: Path) -> File:
    try:
        import openpyxl
    except ImportError as error:
        raise FormError("Expected openpyxl, got none; pip install 'vlmft[xlsx]', or save the sheet as CSV") from error
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
    except (
        OSError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        openpyxl.utils.exceptions.InvalidFileException,
    ) as error:
        raise FormError(f"Expected an Excel workbook, got a damaged one ({error}); save it again, or as CSV") from error
    parts = {name: list(_sheet_rows(rows)) for name, rows in sheets.items()}
    filled = {name: rows for name, rows in parts.items() if rows}
    if not filled:
        raise FormError("Expected a sheet with a header and rows, got none")
    notes = (
        ("a column without a name is not read",) if any("" in row for rows in filled.values() for row in rows) else ()
    )
    if len(filled) == 1:
        return File({"": next(iter(filled.values()))}, "an Excel workbook", notes)
    return File(filled, f"an Excel workbook with the sheets {', '.join(filled)}", notes)


def _sheet_rows(rows: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    filled = [row for row in rows if any(cell not in (None, "") for cell in row)]
    names = _header(["" if cell is None else str(cell) for cell in filled[0]]) if filled else []
    _require_below(names, filled[1:SAMPLED_ROWS])
    for row in filled[1:]:
        yield {name: _plain(cell) for name, cell in zip(names, row, strict=False) if name or cell is not None}


def _plain(cell: Any) -> Any:
    """A whole number as such: Excel stores every number as a float; a date as its text; an error as None."""
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return str(cell.date())
    if cell in EXCEL_ERRORS:
        return None
    return cell if cell is None or isinstance(cell, (str, int, float, bool)) else str(cell)
