"""Which column of a table is the image, the question, the answer: by its name in any case, else by its content."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.fields import listed_text, looks_like_images

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": tuple(
        "image images file_name filename image_path image_file img img_path photo picture image_name image_filename "
        "file_path filepath path file jpg jpeg png webp image_url image_id imageid imagename imagepath "
        "imagefile imgname".split()
    ),
    "question": tuple("question query problem prompt instruction text_input prefix user".split()),
    "answer": tuple(
        "answer answers label_name class_name category_name label_text label labels solution caption captions text "
        "response output completion suffix target ground_truth multiple_choice_answer choice class category "
        "description txt cls direct_answers gold_answers all_answers valid_answers correct_answer references "
        "correct_choice_idx answer_index answer_idx".split()
    ),
    "references": tuple("references answers direct_answers gold_answers all_answers valid_answers".split()),
    "system": ("system", "system_prompt", "system_message", "system_instruction"),
    "history": ("history",),
    "input": ("input",),
    "choices": ("choices", "options"),
}
"""Columns that are used where the config names none: the first that exists."""
NONE = "none"
"""Setting of a role: no column, although one has its usual name."""


@lru_cache(maxsize=1 << 12)
def fold(name: str) -> str:
    """Without case, blanks and punctuation: " Image-Path " is image_path."""
    return re.sub(r"\W+", "_", name.strip().casefold()).strip("_")


def column_named(key: str, name: str, there: Sequence[str]) -> str:
    """The column of that name, in any case.

    Raises:
        ConfigError: there is none.
    """
    if name in there:
        return name
    if same := [column for column in there if fold(column) == fold(name)]:
        return same[0]
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{key}: Expected a column of {some_of(there)}, got {name!r}{hint}")


def some_of(names: Sequence[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def usual(role: str, there: Sequence[str], taken: Iterable[str] = ()) -> str | None:
    """The column with the first of a role's usual names."""
    folded = {fold(column): column for column in reversed(there) if column not in set(taken)}
    return next((folded[name] for name in USUAL_NAMES[role] if name in folded), None)


def roles_of(
    settings: Mapping[str, str | None], there: Sequence[str], rows: Sequence[Mapping[str, Any]], *, asks: bool
) -> dict[str, str]:
    """Role -> column: those that the settings name, then those of usual names, then an image column by its content.

    `asks`: whether a column of questions is needed, because the settings have no fixed text.

    Raises:
        ConfigError: no such column, no answers, several columns that look like images and none of a usual name.
    """
    found = {r: column_named(f"data.options.{r}", c, there) for r, c in settings.items() if c not in (None, NONE)}
    refused = {role for role, column in settings.items() if column == NONE}
    for role in USUAL_NAMES:
        if role in found or role in refused or (role == "question" and not asks):
            continue
        if role == "input" and fold(found.get("question", "")) != "instruction":
            continue
        column = usual(role, there, [found[r] for r in USUAL_NAMES if r in found])
        if column is None:
            continue
        if role != "references" or any(isinstance(listed_text(row.get(column)), (list, tuple)) for row in rows):
            found[role] = column
    if "image" not in found and "image" not in refused:
        columns = image_columns(there, rows, found.values())
        if len(columns) > 1:
            raise ConfigError(
                f"data.options.image: Expected one column of images, got {' and '.join(columns)}; say which is the "
                "image, or write them into one column as a list"
            )
        if columns:
            found["image"] = columns[0]
    _require(found, there, rows, asks=asks)
    return found


def image_columns(there: Sequence[str], rows: Sequence[Mapping[str, Any]], taken: Iterable[str]) -> list[str]:
    """Columns without a role whose cells look like images in at least half of the rows."""
    found = []
    for column in there:
        cells = [row.get(column) for row in rows[:200] if row.get(column) not in (None, "")]
        if column and column not in set(taken) and cells and sum(map(looks_like_images, cells)) * 2 >= len(cells):
            found.append(column)
    return found


def _require(found: Mapping[str, str], there: Sequence[str], rows: Sequence[Mapping[str, Any]], *, asks: bool) -> None:
    asked_and_answered = [found[role] for role in ("question", "answer") if role in found]
    turns = [column for column in asked_and_answered if any(_is_turns(row.get(column)) for row in rows)]
    if "answer" not in found:
        turns += [column for column in there if fold(column) in ("messages", "conversations", "conversation")]
    if turns:
        raise ConfigError(
            f"data: Expected a question and an answer, got conversations in {turns[0]!r}; set data=messages"
        )
    missing = [role for role in ("answer", "question") if role not in found and (asks or role == "answer")]
    if missing:
        names = " ".join(f"data.options.{role}=NAME" for role in missing)
        fixed = " (or data.options.question_text='...' for all rows)" if "question" in missing else ""
        told = f"Expected a column with the {' and one with the '.join(missing)}, among {some_of(there)}, got none"
        raise ConfigError(f"data.options.{missing[0]}: {told}; set {names}{fixed}")


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "content" in value[0]


def unread_of(there: Sequence[str], rows: Sequence[Mapping[str, Any]], read: Iterable[str]) -> dict[str, str]:
    """Columns that are not read, each with its first value."""
    found = {}
    for column in there:
        if column not in set(read) and column not in ("", None):
            value = next((row[column] for row in rows if row.get(column) not in (None, "", [], {})), None)
            if value is not None:
                found[column] = shown(value)
    return found


def shown(value: Any, most: int = 60) -> str:
    """One value on one line, cut if it is long."""
    text = "an image" if isinstance(value, (bytes, bytearray)) else repr(value)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), (bytes, bytearray)):
        text = "an image"
    return text if len(text) <= most else f"{text[: most - 1]}…"
