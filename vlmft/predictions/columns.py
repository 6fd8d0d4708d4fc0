"""Which column of a file of predictions is what, by the names that tools give them. Nothing here imports torch."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from vlmft.config.check import ConfigError

Record: TypeAlias = Mapping[str, Any]

IMAGE_IDS = ("image_id", "image", "file_name", "filename", "image_path")
"""An id where each image has one question."""
COLUMNS: dict[str, Sequence[str]] = {
    "prediction": (
        "prediction pred predicted predicted_answer model_prediction predict model_answer pred_answer answer_pred "
        "pred_label predicted_label y_pred filtered_resps resps completion completions response model_response "
        "model_output generated_text generated_answer generation hypothesis output_text text output predictions preds "
        "response_body_choices_0_message_content choices_0_message_content response_body_output_0_content_0_text "
        "response_body_output_1_content_0_text outputs_0_text result_message_content "
        "response_candidates_0_content_parts response_body_choices_0_text"
    ).split(),
    "reference": (
        "reference references ref refs gold golds ground_truth ground_truths groundtruth gt label labels target "
        "targets correct_answer gold_answer gt_answer reference_answer expected_answer expected true_answer true_label "
        "gt_label y_true actual annotation answer answers solution doc_answer doc_answers doc_label doc_target"
    ).split(),
    "id": [
        *"custom_id id row_id sample_id question_id doc_id qid uid item_id example_id index idx key".split(),
        *IMAGE_IDS,
    ],
    "group": ["image_sha256"],
    "score": [],
}
"""What a column may be for -> the names by which it is found, in the spelling of `plain`; a score must be named.

A name with the names of what it is part of ("doc_answer") is a field in a field. The first name that fits is taken.
"""
AGREEING = "question query problem doc_question question_sha256 query_sha256 doc_hash prompt_hash".split()
"""Names of columns that agree in two files of the same rows; the words of a prompt may differ."""
IMAGES = ("image", "images", "image_path", "image_id", "img")
PROMPTS = ("prompt", "instruction", "input", "origin_prompt", *IMAGES)
"""The same, but other words or folders may be meant to differ."""
TEXT_FIELDS = ("content", "text", "generated_text")
DEEPEST = 7
MOST_PLACES = 3
"""Of a list in a field, the first elements have names."""


def plain(name: str) -> str:
    """ "Question ID ", "questionId" and "question-id" are "question_id"."""
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())).strip("_").casefold()


def cell(record: Record, column: str) -> Any:
    """A column's value, also a field in a field ("response.body.choices.0.message.content"); None where it is not."""
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def names_of(records: Iterable[Record]) -> list[str]:
    """The columns of all records, as many tools leave out what one row does not have; then the fields in them."""
    outer: dict[str, None] = {}
    inner: dict[str, None] = {}
    for record in records:
        for name, value in record.items():
            outer[name] = None
            if isinstance(value, (dict, list)):
                inner.update(dict.fromkeys(_fields(name, value, DEEPEST)))
    return [*outer, *(name for name in inner if name not in outer)]


def _fields(name: str, value: Any, depth: int) -> Iterable[str]:
    several: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        several = value.items()
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value[:MOST_PLACES]):
        several = enumerate(value[:MOST_PLACES])
    for key, one in several if depth else ():
        yield f"{name}.{key}"
        yield from _fields(f"{name}.{key}", one, depth - 1)


def is_missing(value: Any) -> bool:
    """None, and the NaN that pandas writes for it into JSON."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any) -> str | None:
    """The one text that a cell holds; None where it holds several, or something else.

    A list of one is what is in it, however deep (lmms-eval's `resps`); a message is its content, a conversation its
    last one, where that is the assistant's; parts of a message are joined.
    """
    for _ in range(DEEPEST):
        if isinstance(value, dict):
            field = next((name for name in TEXT_FIELDS if name in value), None)
            if field is None:
                return None
            value = value[field]
        elif isinstance(value, list):
            if len(value) > 1 and all(isinstance(one, dict) and "role" in one for one in value):
                if value[-1]["role"] not in ("assistant", "gpt", "model"):
                    return None
                value = value[-1]
            elif value and all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in value):
                return "".join(one["text"] for one in value)
            elif len(value) > 1:
                return None
            value = value[0] if isinstance(value, list) and value else value or None
        else:
            return "" if is_missing(value) else str(value)
    return None


def find_columns(
    path: Path,
    records: Sequence[Record],
    named: Mapping[str, str],
    uses: Mapping[str, Sequence[str]],
    *,
    objects: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """The column of each use, as `named`, else by the names in `uses`, the first whose cells can be that; and notes of
    what a reader must know of the choice. A prediction is a text, or with `objects` anything.

    Raises ConfigError where a named column is not there, or two columns have one name in other spellings.
    """
    there = names_of(records)
    spelled: dict[str, list[str]] = {}
    for column in there:
        spelled.setdefault(plain(column), []).append(column)
    found = {use: _named_column(path, use, column, there, spelled) for use, column in named.items()}
    notes: list[str] = []
    for use, names in uses.items():
        if use in found:
            continue
        free = [spelled[name][0] for name in names if name in spelled and spelled[name][0] not in found.values()]
        fitting = [column for column in free if _fits(use, [cell(record, column) for record in records], objects)]
        if use in ("prediction", "reference"):
            fitting = fitting or free  # what is wrong with its cells is named with their row
        if fitting:
            found[use] = _one_spelling(path, use, spelled[plain(fitting[0])])
            notes += _other_candidates(use, fitting, records)
        elif use == "id":
            notes += _no_id(records, [column for column in free if plain(column) not in IMAGE_IDS])
    return found, notes


def _named_column(path: Path, use: str, column: str, there: Sequence[str], spelled: Mapping[str, list[str]]) -> str:
    if column in there:
        return column
    alike = spelled.get(plain(column), [])
    if len(alike) == 1:
        return alike[0]
    nearest = alike or difflib.get_close_matches(column, there, n=1) or [name for name in there if "." not in name]
    raise ConfigError(f"{path}: there is no column {column!r} for {use}; did you mean {', '.join(nearest)}?")


def _one_spelling(path: Path, use: str, columns: Sequence[str]) -> str:
    outer = [column for column in columns if "." not in column]
    if len(outer) > 1:
        raise ConfigError(
            f"{path}: Expected one column for {use}, got {' and '.join(map(repr, outer))}; name the one that is meant "
            f"with --columns {use}=..."
        )
    return columns[0]


def _fits(use: str, values: Sequence[Any], objects: bool) -> bool:
    """Whether a column found by its name can be what it is called."""
    if use == "prediction":
        return objects or any(text_of(value) is not None for value in values)
    if use == "id":
        texts = {_id_text(value) for value in values}
        return len(texts) == len(values) and "" not in texts
    return use != "reference" or not all(is_missing(value) or value in ("", []) for value in values)


def _id_text(value: Any) -> str:
    return "" if is_missing(value) or isinstance(value, (dict, list)) else str(value).strip()


def _no_id(records: Sequence[Record], columns: Sequence[str]) -> list[str]:
    """Why no column is taken for ids: rows without them can be scored, and are not to be paired by them."""
    if not columns:
        return []
    counts = Counter(_id_text(cell(record, columns[0])) for record in records)
    twice = [name for name, count in counts.items() if count > 1]
    why = f"{len(twice)} values come several times ({', '.join(twice[:3])})"
    why = f"{counts['']} rows have none" if counts[""] else why
    return [f"{columns[0]} is not taken as id: {why}; rows go by their number"]


def _other_candidates(use: str, fitting: Sequence[str], records: Sequence[Record]) -> list[str]:
    """A note where another column of that kind has other values."""
    outer = [column for column in fitting[1:] if "." not in column]
    if use not in ("prediction", "reference") or not outer:
        return []
    mine = [text_of(cell(record, fitting[0])) for record in records]
    others = [column for column in outer if [text_of(cell(record, column)) for record in records] != mine]
    if not others:
        return []
    shown = " or ".join(map(repr, others))
    return [f"{use} is {fitting[0]!r}, and not {shown}; --columns {use}=... takes another"]
