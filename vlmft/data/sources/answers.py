"""How a column of answers is read: one text, one JSON value, or several that are all correct.

A list is several answers only where the data show it: a column of references, the objects or the ten texts of VQA's
annotators. Otherwise a list is one answer in JSON. The sampled rows decide for the whole column.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from vlmft.config.check import ConfigError
from vlmft.data.sources.fields import listed_text, text_of, texts_of
from vlmft.data.sources.roles import fold, shown
from vlmft.sample import BadRowError

N_ANNOTATORS = 10
"""Answers to a question in VQAv2, VizWiz, TextVQA and OK-VQA, equal ones repeated."""
SEVERAL = frozenset("answers references captions direct_answers gold_answers all_answers valid_answers".split())
"""Names of columns whose lists of texts are several references."""
READINGS: Mapping[str, str] = {
    "text": "the text as it stands",
    "json": "a list or object is one answer, trained on as JSON",
    "list": "each text of a list is a correct answer, the most frequent (else the first) is trained on",
    "single": "lists of one text: that text",
    "choice": "a number or letter is the place of the answer in the row's list of choices",
}
LETTERS = string.ascii_uppercase
Asked: TypeAlias = tuple[Any, Any, str]
"""Of one row: its answer, its choices, its question."""


def reading_of(column: str, rows: Sequence[Asked]) -> str:
    """One of `READINGS`, from sampled rows that have an answer; raises ConfigError for places counted from 1."""
    values = [as_list(column, value) for value, _, _ in rows]
    lists = [value for value in values if isinstance(value, (list, tuple)) and value]
    if any(isinstance(value, Mapping) and _several(value) is not None for value in values):
        return "list"
    if not lists:
        if rows and all(_is_place(*row) for row in rows):
            _require_from_zero(column, rows)
            return "choice"
        return "json" if any(isinstance(value, Mapping) for value in values) else "text"
    if all(isinstance(part, Mapping) and "answer" in part for value in lists for part in value):
        return "list"
    texts = all(isinstance(part, str) for value in lists for part in value)
    ten = sum(len(value) == N_ANNOTATORS for value in lists)  # some annotators give no answer
    annotated = ten * 2 >= len(lists) and max(map(len, lists)) == N_ANNOTATORS
    if texts and (column in SEVERAL or annotated):
        return "list"
    return "single" if texts and all(len(value) == 1 for value in lists) else "json"


def as_list(column: str, value: Any) -> Any:
    """The list that a column of several answers holds as text, as in CSV; else the value."""
    return listed_text(value) if isinstance(value, str) and fold(column) in SEVERAL else value


def options(choices: Any) -> Mapping[str, Any]:
    """A row's choices by letter: a list of them, also as text, or an object; {} for anything else."""
    found = listed_text(choices)
    if isinstance(found, (list, tuple)):
        return dict(zip(LETTERS, found, strict=False))
    return found if isinstance(found, Mapping) else {}


def _is_place(value: Any, choices: Any, question: str) -> bool:
    """Whether an answer is a place among its row's choices, not a choice's text or a letter that the question has."""
    found = options(choices)
    if not found or isinstance(value, bool) or str(value).strip() in map(str, found.values()):
        return False
    listed = all(str(choice) in question for choice in found.values())  # by the question itself: a letter is an answer
    return str(value).strip().isdigit() or (str(value).strip() in found and not listed)


def _require_from_zero(column: str, rows: Sequence[Asked]) -> None:
    """Raises ConfigError where places of choices are counted from 1: each would be read as the next one."""
    places = {int(value): len(options(choices)) for value, choices, _ in rows if str(value).strip().isdigit()}
    if 0 not in places and any(place == n_choices for place, n_choices in places.items()):
        raise ConfigError(
            f"data.options.answers: Expected places of choices from 0 in {column!r}, got {sorted(places)[:4]}; write "
            "the texts of the answers, or count from 0"
        )


CLASS_COLUMNS = ("label", "labels", "class", "cls", "category")


def notes_of(column: str, values: Sequence[Any], reading: str) -> list[str]:
    """Warnings about values that are rarely intended; `reading`: how they are read, or "classes"."""
    texts = [value.strip() for value in values if isinstance(value, str)]
    if len(texts) > 1 and all(re.fullmatch(r"-?\d+\.0", text) for text in texts):
        return [
            f"all answers end in .0, such as {texts[0]!r}, as pandas writes whole numbers beside missing values; "
            r"data.options.answer_pattern='(.*)\.0' gives whole numbers"
        ]
    numbers = bool(values) and all(str(value).strip().isdigit() for value in values[:200])
    if numbers and reading == "text" and fold(column) in CLASS_COLUMNS:
        return [f"the answers are numbers in {column!r}, such as {values[0]}: for class numbers, write class names"]
    return []


def answers_of(field: str, value: Any, reading: str, choices: Any = None) -> tuple[str, ...]:
    """The text that is trained on, then all correct ones, repetitions kept.

    Raises:
        BadRowError: no answer, or one of another form than the column's others.
    """
    if reading == "choice":
        return (_chosen(field, value, choices),) * 2
    value = as_list(field, value) if reading == "list" else value
    if isinstance(value, Mapping):
        several = _several(value)
        value = several if several is not None else _json(value.get("gt_parse", value))
    if isinstance(value, str) and '"gt_parse"' in value:
        value = _donut(value)
    if not isinstance(value, (list, tuple)):
        return (text_of(field, value),) * 2
    if not value:
        raise BadRowError(f"Expected a text as {field}, got an empty list; drop the row or fill it in")
    if reading == "list":
        texts = texts_of(field, value)
        return (Counter(texts).most_common(1)[0][0], *texts)  # the first of those that are as frequent
    if reading == "single":
        if len(value) != 1:
            raise BadRowError(
                f"Expected one text in the list as in other rows, got {value!r}; set data.options.answers"
            )
        return (text_of(field, value[0]),) * 2
    return (_json(value),) * 2


def _several(value: Mapping[str, Any]) -> list[Any] | None:
    """SQuAD's {"text": [...], "answer_start": ...}."""
    texts = value.get("text")
    return list(texts) if isinstance(texts, (list, tuple)) and "answer_start" in value else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _donut(text: str) -> str:
    """Donut's {"gt_parse": ...}: the value inside is the answer."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return _json(value["gt_parse"]) if isinstance(value, dict) and "gt_parse" in value else text


def _chosen(field: str, value: Any, choices: Any) -> str:
    found = options(choices)
    key = LETTERS[int(value)] if str(value).isdigit() and int(value) < len(LETTERS) else str(value).strip()
    if key not in found or isinstance(value, bool):
        raise BadRowError(
            f"Expected a place among the row's choices as {field}, got {value!r} of {shown(choices)}; fix the row"
        )
    return text_of(field, found[key])
