"""A record with another gold answer, for the leak canary."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from typing import Any

from vlmft.data.dataset import Dataset, Record
from vlmft.metrics.json_match import is_json_container, unfenced
from vlmft.sample import Sample

NUMBER = 8675309
"""Replaces a gold answer that the source holds as a number."""
MOST_PLACES = 50
"""Inside texts: for each one a sample is made."""


def with_answer(dataset: Dataset, record: Record, answer: str) -> tuple[Sample, bool]:
    """A record's row with another gold answer, and whether that answer is in the record, too.

    For the leak canary: a leak of the answer into the prompt shows as a changed prompt. A gold answer that the record
    holds as a number becomes another number; one that is computed from the record cannot be replaced there.
    """
    sample = dataset.to_sample(record)
    golds = {text.strip().casefold() for text in (sample.answer, *sample.references)}
    first = None
    for other in itertools.chain(json_rewritings(record, sample.answer, answer), rewritings(record, golds, answer)):
        changed = _sample_or_none(dataset, other)
        if changed is not None and changed.answer.strip().casefold() not in golds:
            return dataclasses.replace(changed, answer=answer, references=(answer,)), True
        first = first or changed or sample
    return dataclasses.replace(first or sample, answer=answer, references=(answer,)), False


def _sample_or_none(dataset: Dataset, record: Record) -> Sample | None:
    try:
        return dataset.to_sample(record)
    except (ValueError, TypeError, LookupError, AttributeError):  # the dataset refuses such an answer
        return None


def rewritings(record: Mapping[str, Any], golds: Set[str], answer: str) -> Iterator[dict[str, Any]]:
    """The record with `answer` in place of the casefolded `golds`, in several ways, the most likely first.

    First whole texts that equal one; then numbers, too, which may be equal by chance; then each single place inside
    texts, as in "<answer>3</answer>": all places at once would rewrite questions, which hold short answers by chance.
    The row's id stays.
    """
    kept = {key: value for key, value in record.items() if key == "id"}
    for numbers in (False, True):
        whole = partial(_replaced, golds=golds, answer=answer, numbers=numbers)
        yield {**_everywhere(record, whole), **kept}
    words = "|".join(re.escape(gold) for gold in sorted(golds, key=len, reverse=True) if gold)
    inside = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    for place in range(MOST_PLACES):
        changed, n_places = _replaced_at(record, inside, answer, place)
        if place >= n_places:
            return
        yield {**changed, **kept}


def json_rewritings(record: Mapping[str, Any], gold: str, answer: str) -> Iterator[dict[str, Any]]:
    """The record with {"answer": `answer`} where it holds the value that `gold` is in JSON, as an object or as text in
    any spelling; none where the answer is no JSON."""
    if not is_json_container(gold):
        return
    value = json.loads(gold)

    def changed(found: Any) -> Any:
        read = found
        if isinstance(found, str) and is_json_container(unfenced(found)):
            read = json.loads(unfenced(found))
        if isinstance(read, Mapping) and "gt_parse" in read:
            read = read["gt_parse"]
        if read == value:
            return json.dumps({"answer": answer}) if isinstance(found, str) else {"answer": answer}
        if isinstance(found, Mapping):
            return {key: changed(item) for key, item in found.items()}
        return [changed(item) for item in found] if isinstance(found, list) else found

    yield changed(dict(record))


def _everywhere(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with `change` applied to each text and number in it, in order."""
    if isinstance(value, Mapping):
        return {key: _everywhere(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_everywhere(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return change(value)


def _replaced(value: Any, golds: Set[str], answer: str, *, numbers: bool) -> Any:
    if isinstance(value, str):
        return answer if value.strip().casefold() in golds else value
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) in golds:
        return type(value)(NUMBER)
    return value


def _replaced_at(record: Record, inside: re.Pattern[str], answer: str, place: int) -> tuple[dict[str, Any], int]:
    """The record with `answer` for one of the matches in its texts, in their order, and how many matches there are."""
    numbers = itertools.count()

    def one(match: re.Match[str]) -> str:
        return answer if next(numbers) == place else match[0]

    changed = _everywhere(record, lambda value: inside.sub(one, value) if isinstance(value, str) else value)
    return changed, next(numbers)
