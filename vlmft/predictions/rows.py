"""Rows of predictions from a file of any tool: texts, references, ids. Nothing here imports torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.make import make_dataset
from vlmft.predictions.cells import (
    from_python,
    json_text,
    options_of,
    prediction_text,
    references_of,
    score_of,
    shown_cell,
    unwrapped,
)
from vlmft.predictions.columns import (
    AGREEING,
    COLUMNS,
    IMAGE_IDS,
    PROMPTS,
    Record,
    cell,
    find_columns,
    is_missing,
    names_of,
    plain,
)
from vlmft.predictions.records import LINE, Records, read_records, unique_over_splits
from vlmft.run.folder import CONFIG_FILE, read_run
from vlmft.sample import BadRowError

WHOLE_AS_FLOAT = re.compile(r"\d+\.0")
"""What pandas makes of whole numbers beside a missing one."""
GAVE_UP = "Failed to obtain answer"
"""What VLMEvalKit writes in place of an answer that it did not get."""
FINISH = ("finish", "finish_reason", "response.body.choices.0.finish_reason", "choices.0.finish_reason")


@dataclass(frozen=True)
class Reading:
    """How a file is to be read."""

    named: Mapping[str, str] = field(default_factory=dict)
    """Use -> column; the rest is found by name (`COLUMNS`)."""
    by_order: bool = False
    """A column of ids is ignored."""
    rows: str | None = None
    """The list to read, of a file that has several."""
    encoding: str | None = None
    by: str | None = None
    """A column to break figures down by."""
    alternatives: bool = False
    """A list written as text is a list of right answers."""
    as_json: bool = False
    """Objects and lists are answers themselves, kept as JSON text."""


@dataclass(frozen=True)
class Row:
    """One row of a file."""

    id: str
    """Its number from 1 where the file has no column of ids."""
    group: str
    """What it shares with the rows that are not independent of it; its id where nothing is known."""
    prediction: str | None = None
    """None in a file of scores alone."""
    references: tuple[str, ...] = ()
    score: float | None = None
    is_cut: bool = False
    """The answer reached its length limit, as the file says."""
    by: str | None = None
    """Its value in the column to break figures down by, or the list of the file that it was in."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """What it asks: the cells of `AGREEING` and `PROMPTS`, the same columns in every row."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Its options by letter; empty where the file has none."""


@dataclass(frozen=True)
class PredictionRows:
    """One file's rows."""

    path: Path
    rows: dict[str, Row]
    """By id, in the file's order; at least one."""
    columns: dict[str, str]
    """Use -> column; what was found and what was named."""
    form: str
    """What kind of file it is, in words."""
    notes: list[str]
    """What a reader must know of how it was read."""
    by_name: str | None = None
    """The column of `Row.by`."""
    metric: str | None = None
    """The metric of the run that made the file, where that is known."""
    is_lines: bool = False
    """A text a line, whose order is what the rows go by."""

    @property
    def first(self) -> Row:
        return next(iter(self.rows.values()))

    @property
    def groups(self) -> dict[str, str]:
        return {row.id: row.group for row in self.rows.values()}

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """By id; empty where the file has none."""
        return {row.id: row.references for row in self.rows.values() if row.references}

    def expect_texts(self, purpose: str) -> None:
        """Raises ConfigError for a file of scores alone."""
        if not self.references or self.first.prediction is None:
            raise ConfigError(f"{self.path}: Expected predictions and references {purpose}, got scores alone")

    def with_rows(self, rows: Iterable[Row], notes: Sequence[str] = ()) -> PredictionRows:
        return replace(self, rows={row.id: row for row in rows}, notes=[*self.notes, *notes])


def read_predictions(path: Path, reading: Reading, *, references_elsewhere: bool = False) -> PredictionRows:
    """The rows of `path`.

    With `references_elsewhere` a column `answer` may be the prediction, as in VQA's own results. Raises ConfigError for
    a file that is not there or damaged, or a column that is missing.
    """
    names = dict(COLUMNS)
    if references_elsewhere:
        names |= {"reference": (), "prediction": [*COLUMNS["prediction"], "answer", "caption"]}
    return _read(path, reading, names, "prediction", "score")


def _read(path: Path, reading: Reading, names: Mapping[str, Sequence[str]], *uses: str) -> PredictionRows:
    """The rows of a file that has a column of one of `uses`, named or found by `names`; ids are each row's own over
    several lists."""
    named, use = reading.named, uses[0]
    wanted = [*(named[one] for one in uses if one in named), *names[use]]
    records = read_records(path, wanted, f"{use}s", rows=reading.rows, encoding=reading.encoding)
    if records.is_lines:
        return _rows(path, records, {use: LINE}, reading)
    all_names = names_of(records.rows)
    if use == "reference":  # the columns named for the predictions' own file need not be in it
        named = {one: column for one, column in named.items() if one in names and column in all_names}
    there = {plain(name): name for name in reversed(all_names)} if records.split is not None else {}
    for column in [named["id"]] if "id" in named else [there[name] for name in COLUMNS["id"] if name in there]:
        rows, note = unique_over_splits(records, column)
        if note is not None:
            records = replace(records, rows=rows, notes=[*records.notes, note])
            break
    columns, notes = find_columns(path, records.rows, named, names, objects=reading.as_json)
    if not {*uses} & columns.keys():
        outer = [name for name in all_names if "." not in name]
        head = f"{path}: Expected a column of {use}s, got {', '.join(outer)}; "
        if use == "reference":
            raise ConfigError(f"{head}use --columns reference=...")
        known = "answer" in map(plain, outer) and plain(columns.get("reference", "answer")) != "answer"
        hint = ", prediction=answer where that is the model's" if known else ""
        more = f"name it with --columns prediction=...{hint}, or a column of scores with --columns score=..."
        raise ConfigError(f"{head}{more}")
    return _rows(path, replace(records, notes=[*records.notes, *notes]), columns, reading)


def _rows(path: Path, records: Records, columns: Mapping[str, str], reading: Reading) -> PredictionRows:
    rows, notes = records.rows, list(records.notes)
    columns = {use: column for use, column in columns.items() if use != "id" or not reading.by_order}
    ids = [str(number) for number in range(1, len(rows) + 1)]
    if "id" in columns:
        ids = _ids(path, rows, columns["id"])
    elif not reading.by_order:
        _expect_no_row_twice(path, rows)
    cells = {use: [cell(record, column) for record in rows] for use, column in columns.items()}
    texts, references = _texts(path, ids, cells, reading, notes, is_table=records.is_table)
    nothing, by_name = [None] * len(rows), reading.by or records.split
    values = _values(rows, by_name) if by_name is not None else None
    scores = [score_of(path, row_id, value) for row_id, value in zip(ids, cells.get("score", ()), strict=False)]
    each = zip(
        ids,
        # a row without an image is a group of its own
        [json.dumps(value) if value else i for i, value in zip(ids, cells.get("group", ids), strict=True)],
        texts or nothing,
        references or [()] * len(rows),
        scores or nothing,
        [any(cell(record, place) == "length" for place in FINISH) for record in rows],
        values or nothing,
        _asked(rows, columns),
        options_of(rows),
        strict=True,
    )
    made = {row.id: row for row in (Row(*one) for one in each)}
    return PredictionRows(path, made, columns, records.form, notes, by_name, is_lines=records.is_lines)


def _texts(
    path: Path,
    ids: Sequence[str],
    cells: Mapping[str, Sequence[Any]],
    reading: Reading,
    notes: list[str],
    *,
    is_table: bool,
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Predictions and references, each empty where the file has no column of them; `notes` gets what was changed."""
    read = json_text if reading.as_json else prediction_text
    predictions = [read(path, row_id, value) for row_id, value in zip(ids, cells.get("prediction", ()), strict=False)]
    if is_table and not reading.as_json:
        predictions = unwrapped(predictions, notes)
    references: list[tuple[str, ...]] = []
    if "reference" in cells:
        kinds = {"alternatives": reading.alternatives, "as_json": reading.as_json}
        references = references_of(path, ids, cells["reference"], predictions, notes, **kinds)
    if is_table:
        predictions = from_python(predictions, "predictions", notes)
        if all(len(several) == 1 for several in references):
            references = [(text,) for text in from_python([text for (text,) in references], "references", notes)]
    if gave_up := sum(text.startswith(GAVE_UP) for text in predictions):
        notes.append(f"{gave_up} predictions say {GAVE_UP!r}: there is no answer in them, and they count as wrong")
    return predictions, references


def _ids(path: Path, rows: Sequence[Record], column: str) -> list[str]:
    ids = []
    for number, record in enumerate(rows, start=1):
        value = cell(record, column)
        if is_missing(value) or not str(value).strip():
            raise ConfigError(f"{path}: row {number} has no {column}; every row needs one, or none (--by-order)")
        ids.append(str(value).strip())
    if all(WHOLE_AS_FLOAT.fullmatch(name) for name in ids):
        ids = [name.removesuffix(".0") for name in ids]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{path}: Expected every {column} once, got {len(twice)} several times ({', '.join(twice[:5])}); drop rows "
            "that are there twice, name another column, or use --by-order"
        )
    return ids


def _expect_no_row_twice(path: Path, rows: Sequence[Record]) -> None:
    """Rows with ids of their own that are there twice: what a distributed run writes to fill its last batch."""
    there = {plain(name): name for name in reversed(names_of(rows[:1]))}
    column = next((there[name] for name in COLUMNS["id"] if name in there and name not in IMAGE_IDS), None)
    seen: dict[str, int] = {}
    for number, record in enumerate(rows, start=1):
        if column is None or is_missing(cell(record, column)):
            continue
        first = seen.setdefault(json.dumps(record, sort_keys=True, default=str), number)
        if first != number:
            raise ConfigError(
                f"{path}: Expected each row once, got row {number} as row {first} in every cell ({column} "
                f"{cell(record, column)!r}); drop what is there twice, or count it with --by-order"
            )


def _values(rows: Sequence[Record], column: str) -> list[str] | None:
    """The cells of a column, its name in any spelling; None where the file does not have it."""
    there = names_of(rows)
    alike = [name for name in there if name == column] or [name for name in there if plain(name) == plain(column)]
    if not alike:
        return None
    values = [cell(record, alike[0]) for record in rows]
    return [str(value).strip() if not is_missing(value) and str(value).strip() else "(none)" for value in values]


def _asked(rows: Sequence[Record], columns: Mapping[str, str]) -> list[dict[str, str]]:
    there = [name for name in names_of(rows) if plain(name) in (*AGREEING, *PROMPTS) and name not in columns.values()]
    cells = {plain(name): [shown_cell(cell(record, name)) for record in rows] for name in there}
    return [{name: texts[place] for name, texts in cells.items() if any(texts)} for place in range(len(rows))]


def with_references(rows: PredictionRows, source: Path | None, reading: Reading) -> PredictionRows:
    """`rows` with references: from `source`, the file itself, or the dataset of the run folder that it lies in.

    Raises ConfigError where there are none, or where ids differ.
    """
    if source is not None:
        return _joined(rows, source, reading)
    if rows.references or rows.first.score is not None:
        return rows
    config = rows.path.resolve().parent.parent / CONFIG_FILE
    if rows.path.resolve().parent.name != "predictions" or not config.is_file():
        also = " (it may be the same one)" if any("not read: " in note for note in rows.notes) else ""
        raise ConfigError(
            f"{rows.path}: Expected a column of references, got {', '.join(rows.columns.values())}; name it with "
            f"--columns reference=..., or give --references FILE{also}"
        )
    ids = read_predictions(rows.path, Reading(reading.named)).rows if reading.by_order else rows.rows
    return _of_the_run(rows, list(ids), config.parent)


def _joined(rows: PredictionRows, source: Path, reading: Reading) -> PredictionRows:
    names = {"id": COLUMNS["id"], "reference": [*COLUMNS["reference"], "captions", "caption"]}
    other = _read(source, replace(reading, rows=None), names, "reference")
    notes = [*other.notes]
    by_order = reading.by_order or (rows.is_lines and other.is_lines)
    if by_order or "id" not in rows.columns or "id" not in other.columns:
        if not by_order or len(rows.rows) != len(other.rows):
            raise ConfigError(
                f"{source}: Expected ids in both files, or --by-order and equal lengths, got {len(rows.rows)} and "
                f"{len(other.rows)} rows; name the columns with --columns id=..."
            )
        notes += ["predictions and references are paired line by line"] if not reading.by_order else []
        partners = dict(zip(rows.rows, other.rows.values(), strict=True))
    else:
        partners = other.rows
    lost = [row_id for row_id in rows.rows if row_id not in partners]
    if lost or len(partners) != len(rows.rows):
        extra = sorted(partners.keys() - rows.rows.keys())
        raise ConfigError(
            f"{source}: Expected the ids of {rows.path}, got none for {len(lost)} of them ({', '.join(lost[:5])}) "
            f"and {len(extra)} others ({', '.join(extra[:5])})"
        )
    has_options = any(row.options for row in rows.rows.values())
    joined = []
    for row in rows.rows.values():
        partner = partners[row.id]
        options, by = row.options if has_options else partner.options, partner.by if row.by is None else row.by
        joined.append(replace(row, references=partner.references, options=options, by=by))
    return rows.with_rows(joined, notes)


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
    each = zip(rows.rows.values(), references, strict=True)
    rows = rows.with_rows(replace(row, references=several) for row, several in each)
    return replace(rows, metric=data.metric or dataset.metric)
