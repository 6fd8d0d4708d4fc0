"""Metrics: pure functions (prediction, references) -> `Score`. No torch here; `mean_score.py` alone imports it.

What is no mean over rows is a function rows -> `Table`. What needs the list of classes is made from `Labels`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from vlmft.metrics.anls import anls
from vlmft.metrics.bleu_chrf import bleu, chrf, sentence_chrf
from vlmft.metrics.boxes import box_accuracy, box_f1, box_iou, point_accuracy
from vlmft.metrics.cider import cider_d
from vlmft.metrics.counting import count_accuracy, counting
from vlmft.metrics.detection import detection
from vlmft.metrics.exact_match import exact_match
from vlmft.metrics.json_fields import field_totals, json_fields
from vlmft.metrics.json_match import json_match
from vlmft.metrics.labels import Labels, alias_accuracy, macro_f1
from vlmft.metrics.relaxed_accuracy import relaxed_accuracy, relaxed_accuracy_strict, relaxed_accuracy_units
from vlmft.metrics.rouge import (
    rouge,
    rouge1,
    rouge1_stemmed,
    rouge_l,
    rouge_l_stemmed,
    rouge_stemmed,
    stems,
)
from vlmft.metrics.rouge_package import rouge_package
from vlmft.metrics.score import Metric, Score
from vlmft.metrics.table import CorpusMetric, Row, Table
from vlmft.metrics.token_f1 import token_f1
from vlmft.metrics.transcription import character_accuracy, error_rates, word_accuracy
from vlmft.metrics.vqa_accuracy import vqa_accuracy, vqa_match

__all__ = [
    "CORPUS_METRICS",
    "JSON_METRICS",
    "METRICS",
    "SUITES",
    "CorpusMetric",
    "Labels",
    "Metric",
    "Row",
    "Score",
    "Table",
    "beside",
    "corpus_metric_named",
    "metric_named",
    "variant",
]

SUITES: dict[str, tuple[str, ...]] = {
    "charts": ("exact_match", "relaxed_accuracy_strict", "relaxed_accuracy"),
    "counts": ("count_accuracy", "counting"),
    "classes": ("exact_match", "alias_accuracy", "macro_f1"),
    "captions": ("chrf", "rouge", "bleu", "cider_d"),
    "names": ("exact_match", "token_f1", "chrf"),
    "documents": ("exact_match", "anls"),
    "transcription": ("character_accuracy", "word_accuracy", "error_rates"),
    "json": ("json_fields", "json_match", "field_totals"),
    "boxes": ("box_f1", "box_accuracy", "box_iou", "detection"),
}
"""What to look at together, by kind of data; the first of each is what one number would be."""

JSON_METRICS = frozenset(SUITES["json"])
"""Those that read answers and references as JSON."""

_EXACT, _CAPTIONS = ("exact_match",), ("exact_match", *SUITES["captions"])

_OF_ROWS: dict[str, tuple[Metric, str, tuple[str, ...]]] = {
    "exact_match": (exact_match, "nfc-casefold@1", ("token_f1",)),
    "count_accuracy": (count_accuracy, "last-number-en-ru@1", ("exact_match", "counting")),
    "relaxed_accuracy": (relaxed_accuracy, "normalised@1", ("exact_match", "relaxed_accuracy_strict")),
    "relaxed_accuracy_strict": (relaxed_accuracy_strict, "pix2struct-stripped@1", ("exact_match", "relaxed_accuracy")),
    "relaxed_accuracy_units": (relaxed_accuracy_units, "normalised-units@1", ("exact_match", "relaxed_accuracy")),
    "json_match": (json_match, "exact-values@1", _EXACT),
    "json_fields": (json_fields, "aligned-values-anls@1", ("json_match", "field_totals")),
    "box_f1": (box_f1, "iou50-labels@1", ("box_accuracy", "detection")),
    "box_accuracy": (box_accuracy, "iou50-labels@1", ("detection",)),
    "box_iou": (box_iou, "assigned-labels@1", ("box_accuracy", "detection")),
    "point_accuracy": (point_accuracy, "in-box-labels@1", ("exact_match",)),
    "vqa_match": (vqa_match, "always-normalised@1", _EXACT),
    "vqa_accuracy": (vqa_accuracy, "always-normalised@1", _EXACT),
    "anls": (anls, "cleaned-lengths@1", _EXACT),
    "character_accuracy": (character_accuracy, "nfc-spaces@1", ("exact_match", "word_accuracy", "error_rates")),
    "word_accuracy": (word_accuracy, "nfc-spaces@1", ("exact_match", "character_accuracy", "error_rates")),
    "token_f1": (token_f1, "squad-unicode@1", ("exact_match", "chrf")),
    "rouge1": (rouge1, "unicode-words-f@1", _CAPTIONS),
    "rouge_l": (rouge_l, "unicode-words-f@1", _CAPTIONS),
    "rouge1_stemmed": (rouge1_stemmed, "porter-words-f@1", _CAPTIONS),
    "rouge_l_stemmed": (rouge_l_stemmed, "porter-words-f@1", _CAPTIONS),
    "sentence_chrf": (sentence_chrf, "sacrebleu-nfc@1", _CAPTIONS),
}
"""Name -> metric, what its variant is called, and the metrics to hold beside it."""

_OF_SETS: dict[str, tuple[CorpusMetric, str]] = {
    "field_totals": (field_totals, "aligned-values-anls@1"),
    "error_rates": (error_rates, "nfc-spaces@1"),
    "counting": (counting, "last-number-en-ru@1"),
    "detection": (detection, "coco-unscored@1"),
    "rouge": (rouge, "unicode-words@1"),
    "rouge_stemmed": (rouge_stemmed, "porter-words@1"),
    "rouge_package": (rouge_package, "pltrdy-1.0.1@1"),
    "bleu": (bleu, "sacrebleu-nfc@1"),
    "chrf": (chrf, "sacrebleu-nfc@1"),
    "cider_d": (cider_d, "unicode-words@1"),
}

_OF_CLASSES = {"alias_accuracy": "words-longest-first@1", "macro_f1": "words-longest-first@1"}
"""Metrics that exist for a list of classes only: a score per row, a table."""

METRICS: dict[str, Metric] = {name: metric for name, (metric, *_) in _OF_ROWS.items()}
"""Every metric that a config can name."""

CORPUS_METRICS: dict[str, CorpusMetric] = {name: metric for name, (metric, _) in _OF_SETS.items()}
"""Metrics of a whole test set."""


def variant(name: str) -> str:
    """ "relaxed_accuracy/normalised@1": what a result file calls a metric. The number rises when a score can change."""
    known = _OF_CLASSES.get(name) or (_OF_ROWS[name] if name in _OF_ROWS else _OF_SETS[name])[1]
    return f"{name}/{known}"


def beside(name: str, rows: Sequence[Row], labels: Labels | None = None) -> dict[str, float | None]:
    """What to hold beside a metric's value: exact matches, where the rest is format, and its suite's other numbers.

    Keys are `variant` names, of a table "variant: number"; None is withheld by its metric. With `labels`, the classes
    of the references, macro-F1 over them comes along.
    """
    found: dict[str, float | None] = {}
    tables: dict[str, CorpusMetric] = {}
    for other in _OF_ROWS[name][2] if name in _OF_ROWS else _EXACT:
        if other in METRICS:
            scores = [METRICS[other](prediction, references).value for prediction, references in rows]
            found[variant(other)] = sum(scores) / len(scores)
        else:
            tables[other] = CORPUS_METRICS[other]
    if labels is not None:
        tables["macro_f1"] = macro_f1(labels)
    for other, table in tables.items():
        found |= {f"{variant(other)}: {number}": value for number, value in table(rows).values.items()}
    return found


def metric_named(name: str, labels: Labels | None = None) -> Metric:
    """The row metric called `name`, made from `labels` where it needs them.

    Raises ValueError with the nearest name, for a metric of a whole set, or where the labels or a library are missing.
    """
    _expect_known(name, METRICS, "alias_accuracy", labels)
    return alias_accuracy(labels) if name == "alias_accuracy" and labels is not None else METRICS[name]


def corpus_metric_named(name: str, labels: Labels | None = None) -> CorpusMetric:
    """The metric of a whole set called `name`; raises ValueError as `metric_named` does."""
    _expect_known(name, CORPUS_METRICS, "macro_f1", labels)
    return macro_f1(labels) if name == "macro_f1" and labels is not None else CORPUS_METRICS[name]


def _expect_known(name: str, table: Mapping[str, object], of_classes: str, labels: Labels | None) -> None:
    """Raises before a run is trained, not when its answers are scored."""
    if name in table or (name == of_classes and labels is not None):
        if name.endswith("_stemmed"):
            stems("stemmed")
        return
    if name in _OF_CLASSES:
        raise ValueError(
            f"Expected the list of classes with {name}, got none; vlmft score and compare take --classes FILE"
        )
    nearest = difflib.get_close_matches(name, table, n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else "name one of them"
    if name in CORPUS_METRICS:
        advice = f"it is one number for a whole file, which vlmft score --metric {name} gives"
    raise ValueError(f"Expected one of the metrics {', '.join(table)}, got {name!r}; {advice}")
