"""Predictions read otherwise: the answer taken out of its slot, and what that would change. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmft.config.check import ConfigError
from vlmft.metrics.exact_match import normalised
from vlmft.metrics.extract import (
    LETTERS,
    chosen_letter,
    gold_letter,
    last_number,
    only_number,
    tagged_answer,
    yes_or_no,
)
from vlmft.metrics.relaxed_accuracy import is_measure
from vlmft.predictions.rows import PredictionRows

READ_OTHERWISE = ("tag", "letter", "yes-no", "last-number")
AS_TEXT = ("exact_match", "vqa_match", "vqa_accuracy", "anls", "token_f1")
"""Metrics that take a number for a text."""


@dataclass(frozen=True)
class Extracted:
    """One file's rows with their answers taken out."""

    rows: PredictionRows
    how: str
    n_found: int
    """Predictions in which there was one."""
    whole: PredictionRows
    """The rows as they are."""

    @property
    def sentence(self) -> str:
        what = {"tag": "mark their answer", "letter": "choose one option", "yes-no": "say yes or no"}
        return f"{self.n_found} of {len(self.rows.ids)} predictions {what.get(self.how, 'hold a number')}"


def extracted(rows: PredictionRows, how: str) -> Extracted:
    """The rows under one of `READ_OTHERWISE`; raises ConfigError where the references do not allow it."""
    if rows.references is None or not rows.predictions:
        raise ConfigError(f"{rows.path}: Expected predictions and references with --extract {how}, got scores alone")
    if how == "letter":
        return _letters(rows, rows.references)
    if how == "yes-no":
        return _yes_no(rows, rows.references)
    if how == "last-number":
        return _numbers(rows, rows.references)
    found = [tagged_answer(text) for text in rows.predictions]
    texts = [text if answer is None else answer for text, answer in zip(rows.predictions, found, strict=True)]
    return _of(rows, how, texts, rows.references, sum(bool(answer) for answer in found))


def _of(rows: PredictionRows, how: str, texts: list[str], references: list[tuple[str, ...]], n_found: int) -> Extracted:
    return Extracted(replace(rows, predictions=texts, references=references), how, n_found, rows)


def _letters(rows: PredictionRows, references: Sequence[tuple[str, ...]]) -> Extracted:
    golds = gold_letters(rows)
    for row_id, several, said in zip(rows.ids, golds, references, strict=True):
        if None in several:
            raise ConfigError(
                f"{rows.path}: Expected the letter of one option as reference with --extract letter, got {said[0]!r} "
                f"in row {row_id}; take --extract tag, or none"
            )
    letters = [tuple(filter(None, several)) for several in golds]
    last = max("D", *(letter for several in letters for letter in several))
    usual = LETTERS[: LETTERS.index(last) + 1]
    found = [
        chosen_letter(text, list(options) or usual, options)
        for text, options in zip(rows.predictions, rows.options or [{} for _ in rows.ids], strict=True)
    ]
    return _of(rows, "letter", [letter or "" for letter in found], letters, sum(map(bool, found)))


def gold_letters(rows: PredictionRows) -> list[tuple[str | None, ...]]:
    """Each row's references as letters; None where one is no option.

    Numbers count from 0 or 1, whichever the references themselves show: from 0 where one is 0, from 1 where one is the
    number of options.
    """
    references, options = rows.references or [], rows.options or [{} for _ in rows.ids]
    pairs = [(text.strip(), len(own)) for several, own in zip(references, options, strict=True) for text in several]
    first = None
    if all(text.isdigit() for text, _ in pairs):
        first = 0 if any(text == "0" for text, _ in pairs) else 1 if any(int(t) == n for t, n in pairs) else None
    return [
        tuple(gold_letter(text, own, first) for text in several)
        for several, own in zip(references, options, strict=True)
    ]


def _yes_no(rows: PredictionRows, references: Sequence[tuple[str, ...]]) -> Extracted:
    golds = [tuple(yes_or_no(text) for text in several) for several in references]
    for row_id, several, said in zip(rows.ids, golds, references, strict=True):
        if None in several:
            raise ConfigError(
                f"{rows.path}: Expected yes or no as reference with --extract yes-no, got {said[0]!r} in row {row_id}; "
                "take --extract tag, or none"
            )
    found = [yes_or_no(text) for text in rows.predictions]
    plain = [tuple(filter(None, several)) for several in golds]
    return _of(rows, "yes-no", [text or "" for text in found], plain, sum(map(bool, found)))


def _numbers(rows: PredictionRows, references: Sequence[tuple[str, ...]]) -> Extracted:
    found = [last_number(text) for text in rows.predictions]
    golds = [tuple(only_number(text) or text for text in several) for several in references]
    if not any(only_number(text) for several in references for text in several):
        raise ConfigError(
            f"{rows.path}: Expected references with a number with --extract last-number, got {references[0][0]!r} in "
            f"row {rows.ids[0]}; take --extract tag, or none"
        )
    return _of(rows, "last-number", [number or "" for number in found], golds, sum(map(bool, found)))


def metric_under(how: str, metric: str) -> str:
    """The metric of a reading: letters, yes and no are no numbers and no JSON."""
    return metric if how not in ("letter", "yes-no") or metric in AS_TEXT else "exact_match"


def readings(rows: PredictionRows, metric: str) -> list[Extracted]:
    """Each other way to read the answers that the rows give a reason for."""
    if rows.references is None or not rows.predictions:
        return []
    texts = [text for several in rows.references for text in several]
    if all(None not in several for several in gold_letters(rows)):
        return [extracted(rows, "letter")]  # looks into slots as well
    if all(normalised(text) in ("yes", "no", "да", "нет") for text in texts):
        return [extracted(rows, "yes-no")]
    found = []
    if any(tagged_answer(text) is not None for text in rows.predictions):
        found.append(extracted(rows, "tag"))
    if metric in AS_TEXT and all(is_measure(text) and only_number(text) for text in texts):
        found.append(extracted(rows, "last-number"))
    return found
