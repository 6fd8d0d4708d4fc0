"""Metrics: pure functions (prediction, references) -> `Score`. No torch here; `mean_score.py` alone imports it."""

from __future__ import annotations

import difflib

from vlmft.metrics.count_accuracy import count_accuracy
from vlmft.metrics.exact_match import exact_match
from vlmft.metrics.relaxed_accuracy import relaxed_accuracy, relaxed_accuracy_strict
from vlmft.metrics.score import Metric, Score

__all__ = ["METRICS", "Metric", "Score", "metric_named"]

METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "count_accuracy": count_accuracy,
    "relaxed_accuracy": relaxed_accuracy,
    "relaxed_accuracy_strict": relaxed_accuracy_strict,
}
"""Every metric that a config can name."""


def metric_named(name: str) -> Metric:
    """The metric called `name` in `METRICS`; raises ValueError with the nearest name otherwise."""
    if name in METRICS:
        return METRICS[name]
    nearest = difflib.get_close_matches(name, METRICS, n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else "name one of them"
    raise ValueError(f"Expected one of the metrics {', '.join(METRICS)}, got {name!r}; {advice}")
