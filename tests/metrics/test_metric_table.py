"""The closed table of metrics, and that it loads without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vlmft.metrics import METRICS, metric_named


def test_every_name_gives_a_metric_that_scores() -> None:
    assert set(METRICS) == {"exact_match", "count_accuracy", "relaxed_accuracy", "relaxed_accuracy_strict"}
    assert [metric_named(name)("7", ["7"]).value for name in METRICS] == [1.0] * 4


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match="got 'relaxd_accuracy'; did you mean 'relaxed_accuracy'"):
        metric_named("relaxd_accuracy")
    with pytest.raises(ValueError, match="got 'bleu'; name one of them"):
        metric_named("bleu")


def test_scoring_needs_no_torch() -> None:
    code = "import sys, vlmft.metrics, vlmft.evaluation.compare, vlmft.evaluation.score; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
