"""How a column of answers is read: one text, one JSON value, or several that are all right.

Several are several only where the data say so: a column of references, the objects or the ten texts of VQA's
annotators. A list in an answer is else one answer in JSON. What a column is, its sampled rows decide once for all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.data.fields import text_of, texts_of
from vlmft.sample import BadRowError

N_ANNOTATORS = 10
"""VQAv2, VizWiz, TextVQA and OK-VQA have so many answers to a question, equal ones repeated."""
SEVERAL = frozenset("answers references captions direct_answers gold_answers all_answers valid_answers".split())
"""Names of columns whose lists of texts are several references."""
READINGS: Mapping[str, str] = {
    "text": "the text as it stands",
    "json": "a list or object is one answer, taught as JSON",
    "list": "each text of a list is a right answer, the most frequent (else the first) is taught",
    "single": "lists of one text: that text",
    "choice": "a number is the place of the answer in the row's list of choices",
}
CHOICES = ("choices", "options")


def reading_of(column: str, values: Sequence[Any], choices: Sequence[Any]) -> str:
    """One of `READINGS`, from sampled values of the column and of the rows' choices."""
    lists = [value for value in values if isinstance(value, (list, tuple)) and value]
    if any(isinstance(value, Mapping) and _several(value) is not None for value in values):
        return "list"
    if not lists:
        indices = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        if indices and len(indices) == len(values) and any(isinstance(choice, (list, tuple)) for choice in choices):
            return "choice"
        return "json" if any(isinstance(value, Mapping) for value in values) else "text"
    if all(isinstance(part, Mapping) and "answer" in part for value in lists for part in value):
        return "list"
    texts = all(isinstance(part, str) for value in lists for part in value)
    if texts and (column in SEVERAL or {len(value) for value in lists} == {N_ANNOTATORS}):
        return "list"
    return "single" if texts and all(len(value) == 1 for value in lists) else "json"


def answers_of(field: str, value: Any, reading: str, choices: Any = None) -> tuple[str, ...]:
    """The text that is taught, then all that are right, repetitions kept.

    Raises:
        BadRowError: no answer, or one that is not as the column's others are.
    """
    if reading == "choice":
        return (_chosen(field, value, choices),) * 2
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
    """Donut's {"gt_parse": ...}: what is inside is the answer."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return _json(value["gt_parse"]) if isinstance(value, dict) and "gt_parse" in value else text


def _chosen(field: str, value: Any, choices: Any) -> str:
    if not isinstance(choices, (list, tuple)) or not isinstance(value, int) or not 0 <= value < len(choices):
        raise BadRowError(f"Expected the place of one of the row's choices as {field}, got {value!r} of {choices!r}")
    return text_of(field, choices[value])
