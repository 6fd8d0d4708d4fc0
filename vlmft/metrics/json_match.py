"""Equality of answers that are JSON, such as the fields of a document or a list of boxes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from vlmft.metrics.score import Score, expect_references

_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.IGNORECASE | re.DOTALL)


def json_match(prediction: str, references: Sequence[str]) -> Score:
    """1 where the prediction equals a reference as a JSON value: keys in any order, any white space, 1 is 1.0.

    Texts must be the same character by character, lists in the same order, and true is not 1. A Markdown fence around
    the whole prediction does not count. What is no JSON (RFC 8259: no NaN, no single quotes) is not parsed, and wrong.
    Raises ValueError without references, or where one is no JSON.
    """
    expect_references(references)
    golds = [read_reference(text, "exact_match") for text in references]
    answer = unfenced(prediction)
    try:
        value = read_json(answer)
    except ValueError:
        return Score(0.0, None)
    return Score(float(any(_equal(value, gold) for gold in golds)), " ".join(answer.split()))


def unfenced(text: str) -> str:
    """Without a Markdown fence around the whole of it."""
    fenced = _FENCE.fullmatch(text)
    return fenced[1] if fenced else text


def read_json(text: str) -> Any:
    """The value of `text`, its numbers exact; raises ValueError where it is no JSON, also for depths nobody means."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=refuse_constant)
    except (RecursionError, InvalidOperation) as error:
        raise ValueError(f"Expected JSON, got {text[:40]!r}") from error


def is_json_container(text: str) -> bool:
    """Whether `text` is a JSON object or list. A bare 4 or "red" is JSON too, and any other text as well."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        read_json(text)
    except ValueError:
        return False
    return True


def refuse_constant(constant: str) -> None:
    """For NaN and the infinities, which Python's parser would take; raises ValueError."""
    raise ValueError(f"{constant} is no JSON")


def read_reference(text: str, other: str) -> Any:
    """As `read_json`; the error names a metric for what is no JSON."""
    try:
        return read_json(text)
    except ValueError as error:
        raise ValueError(f"Expected JSON as reference, got {text[:60]!r}; score texts with {other}") from error


def _equal(first: Any, second: Any) -> bool:
    """`==`, but for True == 1."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    return bool(first == second)
