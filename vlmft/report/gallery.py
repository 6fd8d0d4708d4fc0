"""The rows of the gallery as JSON for report.js, kept inside a byte budget."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from vlmft.evaluation.numbers import finite
from vlmft.pages import script_json
from vlmft.report.content import (
    MAX_PICTURED_ROWS,
    RIGHT_SCORE,
    FieldLine,
    Report,
    ReportAnswer,
    ReportRow,
    View,
    rows_to_picture,
)
from vlmft.sample import read_marks

MAX_ROWS = 5_000
TEXT_BYTES = 8_000_000
PICTURE_BYTES = 5_000_000
MAX_MARKS = 100
TEXT_LIMITS = (4_000, 2_000, 1_000, 500, 250, 120, 60)
"""Characters that a text may have, tried in turn until the rows fit into `TEXT_BYTES`."""

_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}


@dataclass(frozen=True)
class Gallery:
    """What stands in the page: the data of its script, and what had to be left out, in words."""

    data: Markup
    notes: tuple[str, ...]


def gallery(report: Report) -> Gallery:
    """All rows with their answers; pictures and texts only as far as the budget goes."""
    if report.view is None:
        return Gallery(script_json({"rows": []}), ())
    shown = _rows_to_show(report.rows, report.view)
    pictures = _pictures(shown, report.view)
    picture_bytes = sum(len(address) for addresses in pictures.values() for address in addresses)
    arms = report.arm_names
    head = {
        "right_score": RIGHT_SCORE,
        "graded": report.is_graded,
        "arms": arms,
        "first": None if report.view.first is None else arms.index(report.view.first),
        "second": arms.index(report.view.second),
        "pictures": pictures,
    }
    for limit in TEXT_LIMITS:
        rows = [_row(row, arms, limit) for row in shown]
        data = script_json({**head, "rows": rows})
        if len(data.encode("utf-8", "replace")) - picture_bytes <= TEXT_BYTES:
            break
    return Gallery(data, tuple(_notes(report.rows, shown, pictures, limit)))


def _rows_to_show(rows: Sequence[ReportRow], view: View) -> tuple[ReportRow, ...]:
    """All of them, or the most telling `MAX_ROWS` in their own order."""
    if len(rows) <= MAX_ROWS:
        return tuple(rows)
    order = {outcome: rank for rank, outcome in enumerate((*view.outcomes, "unpaired"))}
    ranked = sorted(range(len(rows)), key=lambda position: order[view.outcome(rows[position])])
    return tuple(rows[position] for position in sorted(ranked[:MAX_ROWS]))


def _pictures(rows: Sequence[ReportRow], view: View) -> dict[int, list[str]]:
    """Position of a row -> its thumbnails as data addresses; the most telling rows first, until the budget is spent."""
    pictures: dict[int, list[str]] = {}
    left = PICTURE_BYTES
    with_pictures = [position for position, row in enumerate(rows) if row.thumbnails]
    for rank in rows_to_picture([rows[position] for position in with_pictures], view, MAX_PICTURED_ROWS):
        position = with_pictures[rank]
        addresses = [data_address(data, rows[position].id) for data in rows[position].thumbnails]
        if sum(map(len, addresses)) <= left:
            pictures[position] = addresses
            left -= sum(map(len, addresses))
    return pictures


def data_address(data: bytes, row_id: str) -> str:
    """A picture as an address that holds it.

    Raises:
        ValueError: it is no PNG, JPEG or WebP file.
    """
    kind = next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)
    if kind is None:
        raise ValueError(
            f"Expected a PNG, JPEG or WebP file as thumbnail of row {row_id!r}, got bytes that begin with "
            f"{data[:8]!r}; encode the picture first"
        )
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _row(row: ReportRow, arms: Sequence[str], limit: int) -> dict[str, Any]:
    answers = {answer.arm: _answer(answer, limit) for answer in row.answers}
    return {
        "id": row.id,
        "question": _cut(row.question, limit),
        "references": [_cut(reference, limit) for reference in row.references],
        "tags": [f"{name}: {_cut(value, limit)}" for name, value in row.tags.items()],
        "answers": [answers.get(arm) for arm in arms],
        **({"fields": [_field(line, arms, limit) for line in row.fields]} if row.fields else {}),
        **({"marks": _marks(row, arms)} if row.marked_size is not None else {}),
    }


def _field(line: FieldLine, arms: Sequence[str], limit: int) -> list[Any]:
    """Place, reference, and of each arm what it wrote and how right that is; null where it has no such place."""
    cells = [line.answers.get(arm) for arm in arms]
    gold = None if line.gold is None else _cut(line.gold, limit)
    return [line.place, gold, *(None if cell is None else _cell(*cell, limit) for cell in cells)]


def _cell(text: str | None, similarity: float, limit: int) -> list[str | float | None]:
    return [None if text is None else _cut(text, limit), round(similarity, 3)]


def _marks(row: ReportRow, arms: Sequence[str]) -> dict[str, Any]:
    """Boxes and points to be drawn: [numbers, label] each."""
    texts = [answer.text if (answer := row.answer(arm)) is not None else "" for arm in arms]

    def listed(text: str) -> list[list[Any]]:
        return [[list(mark.numbers), mark.label[:60]] for mark in (read_marks(text) or ())[:MAX_MARKS]]

    return {"size": row.marked_size, "reference": listed(row.references[0]), "answers": [*map(listed, texts)]}


def _answer(answer: ReportAnswer, limit: int) -> list[str | float | None]:
    """Text and score, and what was read out of the text where that is something else."""
    told: list[str | float | None] = [_cut(answer.text, limit), finite(answer.score)]
    if answer.parsed is None or answer.parsed.strip() != answer.text.strip():
        told.append(answer.parsed if answer.parsed is None else _cut(answer.parsed, limit))
    return told


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\u2026 [cut here, {len(text):,} characters in all]"


def _notes(
    rows: Sequence[ReportRow], shown: Sequence[ReportRow], pictures: Mapping[int, Sequence[str]], limit: int
) -> list[str]:
    notes = []
    if len(shown) < len(rows):
        notes.append(
            f"{len(shown):,} of {len(rows):,} rows are listed and counted here, those whose answer changed first; "
            "the tables above count all."
        )
    n_pictured = sum(bool(row.thumbnails) for row in rows)
    if len(pictures) < n_pictured:
        notes.append(f"Pictures are kept for {len(pictures):,} of {n_pictured:,} rows, to keep this file small.")
    if limit < TEXT_LIMITS[0]:
        notes.append(f"Texts are cut after {limit:,} characters, to keep this file small.")
    return notes
