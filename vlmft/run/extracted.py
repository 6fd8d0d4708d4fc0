"""Predictions read otherwise: the answer taken out of its slot, and what that would change. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmft.config.check import ConfigError
from vlmft.metrics.extract import LETTERS, chosen_letter, last_number, only_number, reference_letter, tagged_answer
from vlmft.metrics.relaxed_accuracy import is_measure
from vlmft.run.prediction_rows import PredictionRows

EXTRACTS = {
    "auto": "the answers as they are, and beside them what each of the others would give",
    "none": "the answers as they are",
    "tag": "what stands in <answer> or \\boxed{}, behind </think> or The answer is",
    "letter": "the option that is chosen, where the references are letters",
    "last-number": "the last number, of the references too",
}
"""What --extract takes -> what is scored then."""
READ_OTHERWISE = ("tag", "letter", "last-number")
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
        what = {"tag": "mark their answer", "letter": "choose one option", "last-number": "hold a number"}[self.how]
        return f"{self.n_found} of {len(self.rows.ids)} predictions {what}"


def extracted(rows: PredictionRows, how: str) -> Extracted:
    """The rows under one of `READ_OTHERWISE`; raises ConfigError where the references do not allow it."""
    if rows.references is None or not rows.predictions:
        raise ConfigError(f"{rows.path}: Expected predictions and references with --extract {how}, got scores alone")
    if how == "letter":
        return _letters(rows, rows.references)
    if how == "last-number":
        return _numbers(rows, rows.references)
    found = [tagged_answer(text) for text in rows.predictions]
    texts = [text if answer is None else answer for text, answer in zip(rows.predictions, found, strict=True)]
    return _of(rows, how, texts, rows.references, sum(bool(answer) for answer in found))


def _of(rows: PredictionRows, how: str, texts: list[str], references: list[tuple[str, ...]], n_found: int) -> Extracted:
    return Extracted(replace(rows, predictions=texts, references=references), how, n_found, rows)


def _letters(rows: PredictionRows, references: Sequence[tuple[str, ...]]) -> Extracted:
    golds = [tuple(reference_letter(text) for text in several) for several in references]
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


def _numbers(rows: PredictionRows, references: Sequence[tuple[str, ...]]) -> Extracted:
    found = [last_number(text) for text in rows.predictions]
    golds = [tuple(only_number(text) or text for text in several) for several in references]
    if not any(only_number(text) for several in references for text in several):
        raise ConfigError(
            f"{rows.path}: Expected references with a number with --extract last-number, got {references[0][0]!r} in "
            f"row {rows.ids[0]}; take --extract tag, or none"
        )
    return _of(rows, "last-number", [number or "" for number in found], golds, sum(map(bool, found)))


def readings(rows: PredictionRows, metric: str) -> list[Extracted]:
    """Each other way to read the answers that the rows give a reason for."""
    if rows.references is None or not rows.predictions:
        return []
    texts = [text for several in rows.references for text in several]
    found = []
    if any(tagged_answer(text) is not None for text in rows.predictions):
        found.append(extracted(rows, "tag"))
    if all(map(reference_letter, texts)):
        found.append(extracted(rows, "letter"))
    elif metric in AS_TEXT and all(is_measure(text) and only_number(text) for text in texts):
        found.append(extracted(rows, "last-number"))
    return found
