"""The closed tables of metrics, and that they load without torch."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from vlmft.metrics import CORPUS_METRICS, METRICS, SUITES, Labels, corpus_metric_named, metric_named, variant

LABELS = Labels({"7": [], "8": ["eight"]})
BOX = '[{"pixels": [1, 2, 3, 4]}]'


def right(name: str) -> str:
    """An answer that the metric can read."""
    return BOX if name.startswith(("box_", "point_", "detection")) else "7"


def test_every_name_gives_a_metric_that_scores() -> None:
    assert set(METRICS) >= {"exact_match", "count_accuracy", "relaxed_accuracy", "relaxed_accuracy_strict"}
    assert [metric_named(name)(right(name), [right(name)]).value for name in METRICS] == [1.0] * len(METRICS)
    assert metric_named("alias_accuracy", LABELS)("eight", ["8"]).value == 1


def test_every_corpus_metric_gives_a_table() -> None:
    assert len(CORPUS_METRICS) == 10
    for name in [*CORPUS_METRICS, "macro_f1"]:
        table = corpus_metric_named(name, LABELS)([(right(name), [right(name)]), (right(name), [right(name)])])
        assert table.values and set(table.to_dict()) == {"values", "notes", "lists"}
        with pytest.raises(ValueError, match="Expected"):
            corpus_metric_named(name, LABELS)([])


def test_every_metric_has_a_variant_with_a_version() -> None:
    names = [*METRICS, *CORPUS_METRICS, "alias_accuracy", "macro_f1"]
    assert all(re.fullmatch(rf"{name}/[\w.-]+@\d+", variant(name)) for name in names)
    assert variant("relaxed_accuracy_strict") == "relaxed_accuracy_strict/pix2struct-stripped@1"
    assert {name for suite in SUITES.values() for name in suite} <= set(names)
    assert not SUITES.keys() & set(names)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match="got 'relaxd_accuracy'; did you mean 'relaxed_accuracy'"):
        metric_named("relaxd_accuracy")
    with pytest.raises(ValueError, match="got 'bleu'; it is one number for a whole file"):
        metric_named("bleu")
    with pytest.raises(ValueError, match="got 'beauty'; name one of them"):
        metric_named("beauty")
    for name in ("alias_accuracy", "macro_f1"):
        with pytest.raises(ValueError, match=f"Expected the list of classes with {name}"):
            metric_named(name)
        with pytest.raises(ValueError, match=f"Expected the list of classes with {name}"):
            corpus_metric_named(name)


def test_scoring_needs_no_torch() -> None:
    code = "import sys, vlmft.metrics, vlmft.evaluation.compare, vlmft.evaluation.score; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
