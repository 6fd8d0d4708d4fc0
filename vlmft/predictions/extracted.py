"""The answer taken out of what a model wrote: a slot's, the chosen letter, yes or no, the last number. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from vlmft.predictions.rows import PredictionRows, Row

EXTRACTIONS = ("tag", "letter", "yes-no", "last-number")
"""Values of the setting `extract` that take an answer out; the others are auto and none."""
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
        return f"{self.n_found} of {len(self.rows.rows)} predictions {what.get(self.how, 'hold a number')}"


def extracted(rows: PredictionRows, how: str) -> Extracted:
    """The rows under one of `EXTRACTIONS`; raises ConfigError where the references do not allow it."""
    rows.expect_texts(f"with --extract {how}")
    golds = _golds(rows, how)
    read = _reader(how, golds)
    answers = {row.id: read(row) for row in rows.rows.values()}
    taken = []
    for row in rows.rows.values():
        answer = answers[row.id] or ("" if how != "tag" or answers[row.id] is not None else row.prediction)
        taken.append(replace(row, prediction=answer, references=golds[row.id]))
    return Extracted(rows.with_rows(taken), how, sum(map(bool, answers.values())), rows)


def _reader(how: str, golds: Mapping[str, tuple[str, ...]]) -> Callable[[Row], str | None]:
    if how == "letter":
        last = max("D", *(letter for several in golds.values() for letter in several))
        usual = LETTERS[: LETTERS.index(last) + 1]
        return lambda row: chosen_letter(row.prediction or "", list(row.options) or usual, row.options)
    read = {"tag": tagged_answer, "yes-no": yes_or_no, "last-number": last_number}[how]
    return lambda row: read(row.prediction or "")


def _golds(rows: PredictionRows, how: str) -> dict[str, tuple[str, ...]]:
    """Each row's references as the answers that are taken out."""
    if how == "tag":
        return rows.references
    if how == "last-number":
        if not any(only_number(text) for several in rows.references.values() for text in several):
            raise ConfigError(
                f"{rows.path}: Expected references with a number with --extract last-number, got "
                f"{rows.first.references[0]!r} in row {rows.first.id}; take --extract tag, or none"
            )
        return {i: tuple(only_number(text) or text for text in several) for i, several in rows.references.items()}
    golds = _gold_letters(rows) if how == "letter" else _gold_yes_no(rows)
    for row_id, several in golds.items():
        if None in several:
            raise ConfigError(
                f"{rows.path}: Expected {'the letter of one option' if how == 'letter' else 'yes or no'} as reference "
                f"with --extract {how}, got {rows.rows[row_id].references[0]!r} in row {row_id}; take --extract tag, "
                "or none"
            )
    return {row_id: tuple(filter(None, several)) for row_id, several in golds.items()}


def _gold_yes_no(rows: PredictionRows) -> dict[str, tuple[str | None, ...]]:
    return {row_id: tuple(map(yes_or_no, several)) for row_id, several in rows.references.items()}


def _gold_letters(rows: PredictionRows) -> dict[str, tuple[str | None, ...]]:
    """Each row's references as letters; None where one is no option.

    Numbers count from 0 or 1, whichever the references themselves show: from 0 where one is 0, from 1 where one is the
    number of options.
    """
    each = rows.rows.values()
    pairs = [(text.strip(), len(row.options)) for row in each for text in row.references]
    first = None
    if all(text.isdigit() for text, _ in pairs):
        first = 0 if any(text == "0" for text, _ in pairs) else 1 if any(int(t) == n for t, n in pairs) else None
    return {row.id: tuple(gold_letter(text, row.options, first) for text in row.references) for row in each}


def metric_under(how: str, metric: str) -> str:
    """The metric of extracted answers: letters, yes and no are no numbers and no JSON."""
    return metric if how not in ("letter", "yes-no") or metric in AS_TEXT else "exact_match"


def extractions_of(rows: PredictionRows, metric: str) -> list[Extracted]:
    """Each extraction that the rows give a reason for."""
    if not rows.references or rows.first.prediction is None:
        return []
    texts = [text for several in rows.references.values() for text in several]
    if all(None not in several for several in _gold_letters(rows).values()):
        return [extracted(rows, "letter")]  # looks into slots as well
    if all(normalised(text) in ("yes", "no", "да", "нет") for text in texts):
        return [extracted(rows, "yes-no")]
    hows = []
    if any(tagged_answer(row.prediction or "") is not None for row in rows.rows.values()):
        hows.append("tag")
    if metric in AS_TEXT and all(is_measure(text) and only_number(text) for text in texts):
        hows.append("last-number")
    return [extracted(rows, how) for how in hows]
