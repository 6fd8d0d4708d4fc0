"""Rows of predictions from a file of any tool: texts, references, ids. Nothing here imports torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlmft.config.check import ConfigError
from vlmft.data.make import make_dataset
from vlmft.predictions.cells import (
    each_cell,
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
from vlmft.predictions.forms import LINE, Records, read_records, unique_over_splits
from vlmft.run.folder import CONFIG_FILE, read_run
from vlmft.sample import BadRowError

WHOLE_AS_FLOAT = re.compile(r"\d+\.0")
"""What pandas makes of whole numbers beside a missing one."""
GAVE_UP = "Failed to obtain answer"
"""What VLMEvalKit writes in place of an answer that it did not get."""


@dataclass(frozen=True)
class Reading:
    """How a file is to be read."""

    named: Mapping[str, str] = field(default_factory=dict)
    """Use -> column; the rest is found by name (`COLUMNS`)."""
    by_order: bool = False
    """A column of ids has no say."""
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
    form: str = ""
    """What kind of file it is, in words."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of how it was read."""
    by: list[str] | None = None
    """Each row's value in the column of --by, or the list of the file that it was in."""
    by_name: str | None = None
    asked: dict[str, list[str]] = field(default_factory=dict)
    """Columns that tell what a row asks (`AGREEING`, `PROMPTS`) -> each row's cell."""
    options: list[dict[str, str]] = field(default_factory=list)
    """Each row's options by letter; empty where the file has none."""
    is_lines: bool = False

    @property
    def row_groups(self) -> dict[str, str]:
        return dict(zip(self.ids, self.groups, strict=True))


def read_rows(path: Path, named: Mapping[str, str], *, by_order: bool = False) -> PredictionRows:
    """`read_predictions` where the columns are known."""
    return read_predictions(path, Reading(named, by_order=by_order))


def read_predictions(path: Path, reading: Reading, *, references_elsewhere: bool = False) -> PredictionRows:
    """The rows of `path`.

    With `references_elsewhere` a column `answer` may be the prediction, as in VQA's own results. Raises ConfigError for
    a file that is not there or damaged, or a column that is missing.
    """
    names = {**COLUMNS, "reference": () if references_elsewhere else COLUMNS["reference"]}
    if references_elsewhere:
        names["prediction"] = (*COLUMNS["prediction"], "answer", "caption")
    wanted = [*(reading.named[use] for use in ("prediction", "score") if use in reading.named), *names["prediction"]]
    records = read_records(path, wanted, "predictions", rows=reading.rows, encoding=reading.encoding)
    if records.is_lines:
        return _rows(path, records, {"prediction": LINE}, reading)
    records, columns = _with_columns(path, records, reading, names)
    if "prediction" not in columns and "score" not in columns:
        there = [name for name in names_of(records.rows) if "." not in name]
        known = "answer" in map(plain, there) and plain(columns.get("reference", "answer")) != "answer"
        hint = ", prediction=answer where that is the model's" if known else ""
        raise ConfigError(
            f"{path}: Expected a column of predictions, got {', '.join(there)}; name it with "
            f"--columns prediction=...{hint}, or a column of scores with --columns score=..."
        )
    return _rows(path, records, columns, reading)


def _with_columns(
    path: Path, records: Records, reading: Reading, names: Mapping[str, Sequence[str]]
) -> tuple[Records, dict[str, str]]:
    """The columns, and the rows with ids that are each row's own over several lists."""
    named = reading.named
    there = {plain(name): name for name in reversed(names_of(records.rows))} if records.split is not None else {}
    candidates = [named["id"]] if "id" in named else [there[name] for name in COLUMNS["id"] if name in there]
    notes = list(records.notes)
    for column in candidates:
        rows, note = unique_over_splits(records, column)
        if note is not None:
            records, notes = replace(records, rows=rows), [*notes, note]
            break
    found = find_columns(path, records.rows, named, names, objects=reading.as_json)
    return replace(records, notes=[*notes, *found.notes]), found.of_use


def _rows(path: Path, records: Records, columns: Mapping[str, str], reading: Reading) -> PredictionRows:
    rows, notes = records.rows, list(records.notes)
    columns = {use: column for use, column in columns.items() if use != "id" or not reading.by_order}
    ids = [str(number) for number in range(1, len(rows) + 1)]
    if "id" in columns:
        ids = _ids(path, rows, columns["id"])
    elif not reading.by_order:
        _expect_no_row_twice(path, rows)
    cells = {use: [cell(record, column) for record in rows] for use, column in columns.items()}
    predictions = each_cell(json_text if reading.as_json else prediction_text, path, ids, cells.get("prediction", ()))
    if records.is_table and not reading.as_json:
        predictions, said = unwrapped(predictions)
        notes += said
    references = None
    if "reference" in cells:
        kinds = {"alternatives": reading.alternatives, "as_json": reading.as_json}
        references, said = references_of(path, ids, cells["reference"], predictions, **kinds)
        notes += said
    if records.is_table:
        predictions, references, said = _from_python(predictions, references)
        notes += said
    gave_up = sum(text.startswith(GAVE_UP) for text in predictions)
    if gave_up:
        notes.append(f"{gave_up} predictions say {GAVE_UP!r}: no answer was had there, and they count as wrong")
    by_name = reading.by or records.split
    return PredictionRows(
        path=path,
        columns=dict(columns),
        ids=ids,
        predictions=predictions,
        references=references,
        scores=each_cell(score_of, path, ids, cells["score"]) if "score" in cells else None,
        # a row without an image is a group of its own
        groups=[json.dumps(value) if value else i for i, value in zip(ids, cells.get("group", ids), strict=True)],
        cut=[_is_cut(record) for record in rows],
        form=records.form,
        notes=notes,
        by=_values(rows, by_name) if by_name is not None else None,
        by_name=by_name,
        asked=_asked(rows, columns),
        options=options_of(rows),
        is_lines=records.is_lines,
    )


def _from_python(
    predictions: list[str], references: list[tuple[str, ...]] | None
) -> tuple[list[str], list[tuple[str, ...]] | None, list[str]]:
    """Objects that were printed into a table by Python, as JSON; and notes of it."""
    notes = []
    said, is_printed = from_python(predictions)
    if is_printed:
        predictions = said
        notes.append("predictions were objects as Python prints them, and are read as JSON")
    if references is not None and all(len(several) == 1 for several in references):
        golds, is_printed = from_python([several[0] for several in references])
        if is_printed:
            references = [(text,) for text in golds]
            notes.append("references were objects as Python prints them, and are read as JSON")
    return predictions, references, notes


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
    columns = [there[name] for name in COLUMNS["id"] if name in there and name not in IMAGE_IDS]
    if not columns:
        return
    seen: dict[str, int] = {}
    for number, record in enumerate(rows, start=1):
        if is_missing(cell(record, columns[0])):
            continue
        first = seen.setdefault(json.dumps(record, sort_keys=True, default=str), number)
        if first != number:
            raise ConfigError(
                f"{path}: Expected each row once, got row {number} as row {first} in every cell ({columns[0]} "
                f"{cell(record, columns[0])!r}); drop what is there twice, or count it with --by-order"
            )


def _is_cut(record: Record) -> bool:
    places = ("finish", "finish_reason", "response.body.choices.0.finish_reason", "choices.0.finish_reason")
    return any(cell(record, place) == "length" for place in places)


def _values(rows: Sequence[Record], column: str) -> list[str] | None:
    """The cells of a column, its name in any spelling; None where the file does not have it."""
    there = names_of(rows)
    alike = [name for name in there if name == column] or [name for name in there if plain(name) == plain(column)]
    if not alike:
        return None
    values = [cell(record, alike[0]) for record in rows]
    return [str(value).strip() if not is_missing(value) and str(value).strip() else "(none)" for value in values]


def _asked(rows: Sequence[Record], columns: Mapping[str, str]) -> dict[str, list[str]]:
    found = {}
    for column in names_of(rows):
        if plain(column) in (*AGREEING, *PROMPTS) and column not in columns.values():
            texts = [shown_cell(cell(record, column)) for record in rows]
            if any(texts):
                found[plain(column)] = texts
    return found


def with_references(rows: PredictionRows, source: Path | None, reading: Reading) -> PredictionRows:
    """`rows` with references: from `source`, the file itself, or the dataset of the run folder that it stands in.

    Raises ConfigError where there are none, or where ids differ.
    """
    if source is not None:
        return _joined(rows, source, reading)
    if rows.references is not None or rows.scores is not None:
        return rows
    config = rows.path.resolve().parent.parent / CONFIG_FILE
    if rows.path.resolve().parent.name != "predictions" or not config.is_file():
        also = " (it may be the same one)" if any("not read: " in note for note in rows.notes) else ""
        raise ConfigError(
            f"{rows.path}: Expected a column of references, got {', '.join(rows.columns.values())}; name it with "
            f"--columns reference=..., or give --references FILE{also}"
        )
    ids = read_rows(rows.path, reading.named).ids if reading.by_order else rows.ids
    return _of_the_run(rows, ids, config.parent)


def _joined(rows: PredictionRows, source: Path, reading: Reading) -> PredictionRows:
    other = read_rows_of_references(source, reading)
    assert other.references is not None
    by_order = reading.by_order or (rows.is_lines and other.is_lines)
    if by_order or "id" not in rows.columns or "id" not in other.columns:
        if not by_order or len(rows.ids) != len(other.ids):
            raise ConfigError(
                f"{source}: Expected ids in both files, or --by-order and equal lengths, got {len(rows.ids)} and "
                f"{len(other.ids)} rows; name the columns with --columns id=..."
            )
        notes = [*rows.notes, *other.notes]
        notes += ["predictions and references are paired line by line"] if not reading.by_order else []
        options, by = rows.options or other.options, rows.by or other.by
        return replace(rows, references=other.references, notes=notes, options=options, by=by)
    place = {row_id: i for i, row_id in enumerate(other.ids)}
    lost = [row_id for row_id in rows.ids if row_id not in place]
    if lost or len(place) != len(rows.ids):
        extra = sorted(place.keys() - set(rows.ids))
        raise ConfigError(
            f"{source}: Expected the ids of {rows.path}, got none for {len(lost)} of them ({', '.join(lost[:5])}) "
            f"and {len(extra)} others ({', '.join(extra[:5])})"
        )
    order = [place[row_id] for row_id in rows.ids]
    references = [other.references[i] for i in order]
    options = rows.options or ([other.options[i] for i in order] if other.options else [])
    by = rows.by or ([other.by[i] for i in order] if other.by else None)
    return replace(rows, references=references, notes=[*rows.notes, *other.notes], options=options, by=by)


def read_rows_of_references(source: Path, reading: Reading) -> PredictionRows:
    """A file of ids and references; it needs no predictions of its own."""
    names = {use: COLUMNS[use] for use in ("id", "reference")}
    named = [reading.named["reference"]] if "reference" in reading.named else []
    wanted = [*named, *names["reference"], "captions", "caption"]
    records = read_records(source, wanted, "references", encoding=reading.encoding)
    if records.is_lines:
        return _rows(source, records, {"reference": LINE}, reading)
    names["reference"] = (*names["reference"], "captions", "caption")
    there = names_of(records.rows)
    wanted_here = {use: column for use, column in reading.named.items() if use in names and column in there}
    records, columns = _with_columns(source, records, replace(reading, named=wanted_here), names)
    if "reference" not in columns:
        shown = ", ".join(name for name in there if "." not in name)
        raise ConfigError(f"{source}: Expected a column of references, got {shown}; use --columns reference=...")
    return _rows(source, records, columns, reading)


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
