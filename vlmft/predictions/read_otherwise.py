"""What the same answers are worth under another reading or metric, to be printed beside a figure. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.metrics import Labels
from vlmft.metrics.json_match import is_json_container
from vlmft.metrics.relaxed_accuracy import YEAR
from vlmft.predictions.extracted import metric_under, readings
from vlmft.predictions.rows import PredictionRows
from vlmft.predictions.scoring import Scored, scored, shown


@dataclass(frozen=True)
class Beside:
    """One other figure of the same file."""

    option: str
    """What gives it: "--extract letter"."""
    value: float
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"option": self.option, "value": self.value, "sentence": self.sentence}


def beside_it(one: Scored, metric: str | None, labels: Labels | None, *, offers: bool) -> list[Beside]:
    """The figures that a reader of `one` must not miss; with `offers` those under other readings of the answers."""
    if metric is None or one.rows.references is None:
        return []
    found = [_as_they_are(one, metric, labels)] if one.extracted is not None else []
    if offers:
        found += [other for reading in readings(one.rows, metric) for other in _under(one, metric, labels, reading.how)]
    for name in other_metrics(one.rows, metric):
        found += _by_another(one, labels, name)
    return [*found, *_years(one, metric, labels)]


def _as_they_are(one: Scored, metric: str, labels: Labels | None) -> Beside:
    assert one.extracted is not None
    whole = scored(one.extracted.whole, metric, labels, alone=True)
    sentence = (
        f"with --extract {one.extracted.how}: {one.extracted.sentence}; as they are (--extract none): {_figure(whole)}"
    )
    return Beside("--extract none", whole.value, sentence)


def _under(one: Scored, metric: str, labels: Labels | None, how: str) -> list[Beside]:
    other = scored(one.rows, metric_under(how, metric), labels, how, alone=True)
    assert other.extracted is not None
    if other.value == one.value:
        return []
    sentence = f"with --extract {how}: {_figure(other)} ({other.extracted.sentence}; above, all their text is scored)"
    return [Beside(f"--extract {how}", other.value, sentence)]


def other_metrics(rows: PredictionRows, metric: str) -> list[str]:
    """Metrics that may take what `metric` refuses for its spelling, where the references are of their kind."""
    if metric == "relaxed_accuracy":
        return ["relaxed_accuracy_units"]
    texts = [text for several in rows.references or () for text in several]
    if metric not in ("exact_match", "json_match") or 2 * sum(map(is_json_container, texts)) <= len(texts):
        return []
    return ["exact_match" if metric == "json_match" else "json_match"]


_WHAT = {
    "relaxed_accuracy_units": "numbers with units, which are dropped",
    "exact_match": "references are JSON, compared as JSON values; as texts",
    "json_match": "references are JSON, compared as texts; as JSON values",
}


def _by_another(one: Scored, labels: Labels | None, name: str) -> list[Beside]:
    try:
        other = scored(one.rows, name, labels, alone=True)
    except ConfigError as error:
        return [Beside(f"--metric {name}", 0.0, f"most references are JSON, but not all: {error}")]
    if other.value == one.value and name == "relaxed_accuracy_units":
        return []
    return [Beside(f"--metric {name}", other.value, f"{_WHAT[name]} (--metric {name}): {_figure(other)}")]


def _years(one: Scored, metric: str, labels: Labels | None) -> list[Beside]:
    """Where the normalised figure is no strict one and more: rows that the strict one alone takes."""
    if metric != "relaxed_accuracy":
        return []
    strict = scored(one.rows, "relaxed_accuracy_strict", labels, alone=True)
    refused = [row_id for row_id, value in one.values.items() if value < strict.values[row_id]]
    if not refused:
        return []
    assert one.rows.references is not None
    golds = dict(zip(one.rows.ids, one.rows.references, strict=True))
    years = sum(any(YEAR.fullmatch(text.strip()) for text in golds[row_id]) for row_id in refused)
    taken = sum(value > strict.values[row_id] for row_id, value in one.values.items())
    share = shown(taken / len(one.values), True)
    sentence = (
        f"relaxed_accuracy_strict: {_figure(strict)}; it alone takes {len(refused)} rows ({years} with a year, which "
        f"is to be met exactly here), and this one alone {taken}: the format debt is {share} points, and not the "
        "difference of the two figures"
    )
    return [Beside("--metric relaxed_accuracy_strict", strict.value, sentence)]


def _figure(one: Scored) -> str:
    return shown(one.value, one.is_share) + (" %" if one.is_share else "")
