"""A record as it would be if its gold answer were another, for the leak canary."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

NUMBER = 8675309
"""Stands for a gold answer that the source holds as a number."""
MOST_PLACES = 50
"""Inside texts: each costs a reading of the row."""


def rewritings(record: Mapping[str, Any], golds: Set[str], answer: str) -> Iterator[dict[str, Any]]:
    """The record with `answer` in place of the casefolded `golds`, in several ways, the likeliest first.

    Where the whole of a text is one; then where a number is, too, for one of them may be equal by chance; then at each
    single place inside texts, as in "<answer>3</answer>": all of them at once would rewrite questions, which hold
    short answers by chance. The row's id stays.
    """
    kept = {key: value for key, value in record.items() if key == "id"}
    yield {**_replaced(record, golds, answer, numbers=False), **kept}
    yield {**_replaced(record, golds, answer, numbers=True), **kept}
    words = "|".join(re.escape(gold) for gold in sorted(golds, key=len, reverse=True) if gold)
    inside = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    n_places = 0

    def count(match: re.Match[str]) -> str:
        nonlocal n_places
        n_places += 1
        return match[0]

    _everywhere(record, inside, count)
    for place in range(min(n_places, MOST_PLACES)):
        numbers = iter(range(n_places))
        yield {**_everywhere(record, inside, lambda m, n=numbers, p=place: answer if next(n) == p else m[0]), **kept}  # type: ignore[misc]


def _everywhere(value: Any, pattern: re.Pattern[str], change: Callable[[re.Match[str]], str]) -> Any:
    """The value with what `pattern` finds changed in its texts, which it goes through in order."""
    if isinstance(value, str):
        return pattern.sub(change, value)
    if isinstance(value, Mapping):
        return {key: _everywhere(item, pattern, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_everywhere(item, pattern, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _replaced(value: Any, golds: Set[str], answer: str, *, numbers: bool) -> Any:
    if isinstance(value, str):
        return answer if value.strip().casefold() in golds else value
    if isinstance(value, Mapping):
        return {key: _replaced(item, golds, answer, numbers=numbers) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_replaced(item, golds, answer, numbers=numbers) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) in golds:
        return type(value)(NUMBER)
    return value
