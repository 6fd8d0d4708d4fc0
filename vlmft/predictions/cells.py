"""What the cells of a file of predictions contain: texts, right answers, options. Nothing here imports torch."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.metrics.extract import LETTERS
from vlmft.metrics.json_match import is_json_container
from vlmft.predictions.columns import Record, is_missing, text_of

LIST_AS_TEXT = re.compile(r"""\[\s*(?:['"].*['"]|\{\s*['"]answer['"].*\})\s*\]""", re.DOTALL)
"""What str() and pandas make of a list of texts, or of VQAv2's list of answers."""
ONE_NUMBER = re.compile(r"\[\s*(-?\d[\d.]*)\s*\]")
TRUTH = {"true": 1.0, "false": 0.0}
"""How a table writes whether an answer was right."""
ANSWERS_OF_VQA = 10
"""A list of so many texts in every row is the answers of ten people."""
_SPACE = re.compile(r"\s")


def shown_cell(value: Any) -> str:
    return "" if is_missing(value) else value if isinstance(value, str) else json.dumps(value, default=str)


def options_of(rows: Sequence[Record]) -> list[dict[str, str]]:
    """Each row's options by letter, from columns A, B, ... or a list of their texts."""
    letters = [letter for letter in LETTERS if any(letter in record for record in rows)]
    if "A" in letters and "B" in letters:
        return [
            {one: shown_cell(record.get(one)) for one in letters if not is_missing(record.get(one))} for record in rows
        ]
    column = next((name for name in ("options", "choices") if any(name in record for record in rows)), None)
    return [_of_list(record.get(column)) if column is not None else {} for record in rows]


def _of_list(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        value = _printed(value) or []
    if isinstance(value, dict):
        return {str(letter): shown_cell(text) for letter, text in value.items() if str(letter) in LETTERS}
    texts = value if isinstance(value, list) else []
    return {
        letter: re.sub(r"^\(?[A-J][).:] ?", "", shown_cell(text)) for letter, text in zip(LETTERS, texts, strict=False)
    }


def prediction_text(path: Path, row_id: str, value: Any) -> str:
    text = text_of(value)
    if text is None:
        raise ConfigError(
            f"{path}: Expected one text as prediction of row {row_id}, got {str(value)[:60]}; name the column that "
            "holds it (--columns prediction=...), or --metric json_match where this is the answer"
        )
    return text  # a missing answer counts as wrong, and stays in the denominator


def json_text(path: Path, row_id: str, value: Any) -> str:
    """The same where objects and lists are answers."""
    plain_text = text_of(value)
    if isinstance(value, (dict, list)) and (plain_text is None or not is_json_container(plain_text)):
        return json.dumps(value, ensure_ascii=False)
    return prediction_text(path, row_id, value)


def _printed(text: str) -> list[Any] | None:
    """The list that `text` was printed from; None where it is none."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(value, list):
        return None
    # numpy's "['yes' 'no']" would be read as one text
    spellings = {
        _SPACE.sub("", spelling) for spelling in (str(value), json.dumps(value), json.dumps(value, ensure_ascii=False))
    }
    return value if _SPACE.sub("", text) in spellings else None


def unwrapped(predictions: list[str], notes: list[str]) -> list[str]:
    """The predictions without the brackets of a list of one text, where every one has them, with a note of it.

    Where some have none, the brackets are part of the model's answer.
    """
    lists = [_printed_list(text) for text in predictions if text.strip()]
    if not lists or not all(one is not None and len(one) == 1 and isinstance(one[0], str) for one in lists):
        return predictions
    notes.append(f"all {len(lists)} predictions were a list of one text, written as text, and are that text")
    texts = iter([str(one[0]) for one in lists if one is not None])
    return [next(texts) if text.strip() else text for text in predictions]


def from_python(texts: list[str], what: str, notes: list[str]) -> list[str]:
    """The texts as JSON where every one is an object as Python prints it, `{'a': None}`, as pandas writes it to CSV;
    with a note of it."""
    if not any(text.strip() for text in texts) or not all(text.lstrip()[:1] in ("{", "") for text in texts):
        return texts
    json_texts = []
    for text in texts:
        try:
            value = ast.literal_eval(text.strip()) if text.strip() else ""
            json_texts.append(
                json.dumps(value, ensure_ascii=False, allow_nan=False) if isinstance(value, dict) else text
            )
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return texts
    if json_texts == texts or all(map(is_json_container, texts)):
        return texts
    notes.append(f"{what} were objects as Python prints them, and are read as JSON")
    return json_texts


def references_of(
    path: Path,
    ids: Sequence[str],
    values: Sequence[Any],
    predictions: Sequence[str],
    notes: list[str],
    *,
    alternatives: bool,
    as_json: bool,
) -> list[tuple[str, ...]]:
    """Each row's right answers; `notes` gets a sentence on lists that were written as text."""
    if as_json:
        return [_json_references(path, row_id, value) for row_id, value in zip(ids, values, strict=True)]
    if not any(text.lstrip().startswith("[") for text in predictions) and values:
        bare = [ONE_NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None for value in values]
        if all(bare):
            values = [found[1] for found in bare if found is not None]
            notes.append(f"{len(values)} references were a list of one number, written as text, and are that number")
    printed = [_printed_list(value) for value in values]
    lists = [one for one in printed if one is not None]
    answered = sum(is_json_container(text) for text in predictions)
    if lists and 2 * answered > len(values) and all(isinstance(v, str) and is_json_container(v) for v in values):
        return [(str(value),) for value in values]  # lists on both sides: one answer each, in JSON
    ones = sum(len(one) == 1 for one in lists)
    of_ten = all(one is not None and len(one) == ANSWERS_OF_VQA for one in printed)
    found = []
    for row_id, value, one in zip(ids, values, printed, strict=True):
        if one is None or len(one) == 1 or of_ten or alternatives:
            found.append(_reference(path, row_id, value if one is None else one))
            continue
        raise ConfigError(
            f"{path}: Expected a reference in row {row_id}, got a list written as text, {str(value)[:60]!r}; add "
            "--alternatives where each of its texts is a right answer, or --metric json_match where it is one answer "
            "and JSON, else write the answer without brackets"
        )
    if ones:
        notes.append(f"{ones} references were a list of one text, written as text, and are that text")
    if of_ten or (len(lists) > ones and alternatives):
        notes.append(f"{len(lists) - ones} references were lists written as text: each text in them is a right answer")
    return found


def _printed_list(value: Any) -> list[Any] | None:
    if not isinstance(value, str) or not LIST_AS_TEXT.fullmatch(value.strip()):
        return None
    return _printed(value) or ["", ""]  # as pandas prints an array: no list that can be read


def _reference(path: Path, row_id: str, value: Any) -> tuple[str, ...]:
    several = value if isinstance(value, list) else [value]
    several = [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in several]
    if isinstance(value, dict) or any(isinstance(one, (list, dict)) for one in several):
        raise ConfigError(
            f"{path}: Expected a text or a list of texts as reference of row {row_id} (or VQAv2's "
            f'[{{"answer": ...}}, ...]), got {str(value)[:60]}; name another column with --columns reference=..., or '
            "--metric json_match where it is the answer"
        )
    texts = tuple(str(one) for one in several if not is_missing(one))
    if not any(text.strip() for text in texts):
        raise ConfigError(
            f"{path}: Expected a reference in row {row_id}, got {value!r}; a row without one has no score"
        )
    return texts


def _json_references(path: Path, row_id: str, value: Any) -> tuple[str, ...]:
    """A list of JSON texts is several right answers; any other list is the answer."""
    if isinstance(value, list) and value and all(isinstance(one, str) and is_json_container(one) for one in value):
        return tuple(value)
    return (
        (json.dumps(value, ensure_ascii=False),) if isinstance(value, (dict, list)) else _reference(path, row_id, value)
    )


def score_of(path: Path, row_id: str, value: Any) -> float:
    try:
        score = TRUTH[str(value).strip().casefold()] if str(value).strip().casefold() in TRUTH else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ConfigError(f"{path}: Expected a number as score of row {row_id}, got {value!r}; score it 0")
    return score
