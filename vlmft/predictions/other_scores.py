"""What the same answers are worth under another extraction or metric, to be shown beside a figure. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmft.config.check import ConfigError
from vlmft.evaluation.numbers import console
from vlmft.metrics import Labels
from vlmft.metrics.json_match import is_json_container
from vlmft.metrics.relaxed_accuracy import YEAR
from vlmft.predictions.extracted import extractions_of, metric_under
from vlmft.predictions.rows import PredictionRows
from vlmft.predictions.scoring import Scored, scored

WHY = {
    "relaxed_accuracy_units": "numbers with units, which are dropped",
    "exact_match": "references are JSON, compared as JSON values; as texts",
    "json_match": "references are JSON, compared as texts; as JSON values",
}
"""Metric -> what it does with the answers that another one refuses."""


@dataclass(frozen=True)
class Other:
    """The same files scored in another way."""

    option: str
    """What gives it: "--extract letter"."""
    each: list[Scored]
    """Empty where the references do not allow it."""
    problem: str = ""


@dataclass(frozen=True)
class Beside:
    """One other figure of one file."""

    option: str
    value: float
    sentence: str


def others_of(each: Sequence[Scored], metric: str | None, labels: Labels | None, *, offers: bool) -> list[Other]:
    """The other figures that a reader must not miss; with `offers` those of other extractions."""
    if metric is None or not each[0].rows.references:
        return []
    others = []
    wholes = [one.extracted.whole for one in each if one.extracted is not None]
    if wholes:
        others.append(Other("--extract none", [scored(rows, metric, labels, alone=True) for rows in wholes]))
    hows = [found.how for one in each for found in extractions_of(one.rows, metric)] if offers else []
    for how in dict.fromkeys(hows):
        under = metric_under(how, metric)
        others.append(Other(f"--extract {how}", [scored(one.rows, under, labels, how, alone=True) for one in each]))
    for name in _other_metrics(each[0].rows, metric):
        try:
            others.append(Other(f"--metric {name}", [scored(one.rows, name, labels, alone=True) for one in each]))
        except ConfigError as error:  # not all references are JSON
            others.append(Other(f"--metric {name}", [], str(error)))
    return others


def _other_metrics(rows: PredictionRows, metric: str) -> list[str]:
    """Metrics that may take what `metric` refuses for its spelling, where the references are of their kind."""
    if metric == "relaxed_accuracy":
        return ["relaxed_accuracy_units"]
    texts = [text for several in rows.references.values() for text in several]
    if metric not in ("exact_match", "json_match") or 2 * sum(map(is_json_container, texts)) <= len(texts):
        return []
    return ["exact_match" if metric == "json_match" else "json_match"]


def other_figures(one: Scored, metric: str | None, labels: Labels | None, *, offers: bool) -> list[Beside]:
    """The other figures of one file, each with its sentence."""
    figures = [_beside(one, other) for other in others_of([one], metric, labels, offers=offers)]
    return [beside for beside in figures if beside is not None] + _years(one, metric, labels)


def _beside(one: Scored, other: Other) -> Beside | None:
    kind, name = other.option.split()
    if not other.each:
        return Beside(other.option, 0.0, f"most references are JSON, but not all: {other.problem}")
    (scores,) = other.each
    if other.option == "--extract none":
        assert one.extracted is not None
        how = f"with --extract {one.extracted.how}: {one.extracted.sentence}"
        return Beside(other.option, scores.value, f"{how}; as they are (--extract none): {scores.figure}")
    if scores.value == one.value and name not in ("exact_match", "json_match"):
        return None
    if kind == "--metric":
        return Beside(other.option, scores.value, f"{WHY[name]} ({other.option}): {scores.figure}")
    assert scores.extracted is not None
    how = f"{scores.extracted.sentence}; above, all their text is scored"
    return Beside(other.option, scores.value, f"with {other.option}: {scores.figure} ({how})")


def _years(one: Scored, metric: str | None, labels: Labels | None) -> list[Beside]:
    """Where the normalised figure is no strict one and more: rows that the strict one alone takes."""
    if metric != "relaxed_accuracy" or not one.rows.references:
        return []
    strict = scored(one.rows, "relaxed_accuracy_strict", labels, alone=True)
    refused = [row_id for row_id, value in one.values.items() if value < strict.values[row_id]]
    if not refused:
        return []
    golds = one.rows.references
    years = sum(any(YEAR.fullmatch(text.strip()) for text in golds[row_id]) for row_id in refused)
    taken = sum(value > strict.values[row_id] for row_id, value in one.values.items())
    debt = console(one.unit.difference(taken / len(one.values))).removeprefix("+")
    sentence = (
        f"relaxed_accuracy_strict: {strict.figure}; it alone takes {len(refused)} rows ({years} with a year, which "
        f"is to be met exactly here), and this one alone {taken}: the format debt is {debt}, and not the "
        "difference of the two figures"
    )
    return [Beside("--metric relaxed_accuracy_strict", strict.value, sentence)]
