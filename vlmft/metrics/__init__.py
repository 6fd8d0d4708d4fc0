"""Metrics: pure functions (prediction, references) -> `Score`. No torch here; `mean_score.py` alone imports it.

What is no mean over rows is a function rows -> `Table`. What needs the list of classes is made from `Labels`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from vlmft.metrics.anls import anls
from vlmft.metrics.bleu_chrf import bleu, chrf, sentence_chrf
from vlmft.metrics.cider import cider_d
from vlmft.metrics.count_accuracy import count_accuracy
from vlmft.metrics.counting import counting
from vlmft.metrics.exact_match import exact_match
from vlmft.metrics.json_match import json_match
from vlmft.metrics.labels import Labels, alias_accuracy, macro_f1
from vlmft.metrics.relaxed_accuracy import relaxed_accuracy, relaxed_accuracy_strict, relaxed_accuracy_units
from vlmft.metrics.rouge import rouge, rouge1, rouge_l
from vlmft.metrics.rouge_package import rouge_package
from vlmft.metrics.rouge_stemmed import rouge1_stemmed, rouge_l_stemmed, rouge_stemmed, stems
from vlmft.metrics.score import Metric, Score
from vlmft.metrics.table import CorpusMetric, Row, Table
from vlmft.metrics.token_f1 import token_f1
from vlmft.metrics.vqa_accuracy import vqa_accuracy, vqa_match

__all__ = [
    "CORPUS_METRICS",
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

METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "count_accuracy": count_accuracy,
    "relaxed_accuracy": relaxed_accuracy,
    "relaxed_accuracy_strict": relaxed_accuracy_strict,
    "relaxed_accuracy_units": relaxed_accuracy_units,
    "json_match": json_match,
    "vqa_match": vqa_match,
    "vqa_accuracy": vqa_accuracy,
    "anls": anls,
    "token_f1": token_f1,
    "rouge1": rouge1,
    "rouge_l": rouge_l,
    "rouge1_stemmed": rouge1_stemmed,
    "rouge_l_stemmed": rouge_l_stemmed,
    "sentence_chrf": sentence_chrf,
}
"""Every metric that a config can name."""

CORPUS_METRICS: dict[str, CorpusMetric] = {
    "counting": counting,
    "rouge": rouge,
    "rouge_stemmed": rouge_stemmed,
    "rouge_package": rouge_package,
    "bleu": bleu,
    "chrf": chrf,
    "cider_d": cider_d,
}
"""Metrics of a whole test set."""

OF_CLASSES = {"alias_accuracy": "a score per row", "macro_f1": "a table"}
"""Metrics that exist for a list of classes only."""

SUITES: dict[str, tuple[str, ...]] = {
    "charts": ("exact_match", "relaxed_accuracy_strict", "relaxed_accuracy"),
    "counts": ("count_accuracy", "counting"),
    "classes": ("exact_match", "alias_accuracy", "macro_f1"),
    "captions": ("chrf", "rouge", "bleu", "cider_d"),
    "names": ("exact_match", "token_f1", "chrf"),
    "documents": ("exact_match", "anls"),
}
"""What to look at together, by kind of data; the first of each is what one number would be."""

_BESIDE: dict[str, tuple[str, ...]] = {
    "relaxed_accuracy": ("exact_match", "relaxed_accuracy_strict"),
    "relaxed_accuracy_strict": ("exact_match", "relaxed_accuracy"),
    "relaxed_accuracy_units": ("exact_match", "relaxed_accuracy"),
    "count_accuracy": ("exact_match", "counting"),
    "exact_match": ("token_f1",),
    "token_f1": ("exact_match", "chrf"),
    "sentence_chrf": ("exact_match", *SUITES["captions"]),
    "rouge1": ("exact_match", *SUITES["captions"]),
    "rouge_l": ("exact_match", *SUITES["captions"]),
    "rouge1_stemmed": ("exact_match", *SUITES["captions"]),
    "rouge_l_stemmed": ("exact_match", *SUITES["captions"]),
}

_VARIANTS: dict[str, str] = {
    "exact_match": "nfc-casefold@1",
    "count_accuracy": "last-number-en-ru@1",
    "relaxed_accuracy": "normalised@1",
    "relaxed_accuracy_strict": "pix2struct-stripped@1",
    "relaxed_accuracy_units": "normalised-units@1",
    "json_match": "exact-values@1",
    "vqa_match": "always-normalised@1",
    "vqa_accuracy": "always-normalised@1",
    "anls": "cleaned-lengths@1",
    "token_f1": "squad-unicode@1",
    "rouge1": "unicode-words-f@1",
    "rouge_l": "unicode-words-f@1",
    "rouge1_stemmed": "porter-words-f@1",
    "rouge_l_stemmed": "porter-words-f@1",
    "sentence_chrf": "sacrebleu-nfc@1",
    "counting": "last-number-en-ru@1",
    "rouge": "unicode-words@1",
    "rouge_stemmed": "porter-words@1",
    "rouge_package": "pltrdy-1.0.1@1",
    "bleu": "sacrebleu-nfc@1",
    "chrf": "sacrebleu-nfc@1",
    "cider_d": "unicode-words@1",
    "alias_accuracy": "words-longest-first@1",
    "macro_f1": "words-longest-first@1",
}


def variant(name: str) -> str:
    """ "relaxed_accuracy/normalised@1": what a result file calls a metric. The number rises when a score can change."""
    return f"{name}/{_VARIANTS[name]}"


def beside(name: str, rows: Sequence[Row], labels: Labels | None = None) -> dict[str, float | None]:
    """What to hold beside a metric's value: exact matches, where the rest is format, and its suite's other numbers.

    Keys are `variant` names, of a table "variant: number"; None is withheld by its metric. With `labels`, the classes
    of the references, macro-F1 over them comes along.
    """
    found: dict[str, float | None] = {}
    for other in _BESIDE.get(name, ("exact_match",)):
        if other in METRICS:
            scores = [METRICS[other](prediction, references).value for prediction, references in rows]
            found[variant(other)] = sum(scores) / len(scores)
        else:
            values = CORPUS_METRICS[other](rows).values
            found |= {f"{variant(other)}: {number}": value for number, value in values.items()}
    if labels is not None:
        values = macro_f1(labels)(rows).values
        found |= {f"{variant('macro_f1')}: {number}": value for number, value in values.items()}
    return found


def metric_named(name: str, labels: Labels | None = None) -> Metric:
    """The row metric called `name`, made from `labels` where it needs them.

    Raises ValueError with the nearest name, for a metric of a whole set, or where the labels or a library are missing.
    """
    if name == "alias_accuracy" and labels is not None:
        return alias_accuracy(labels)
    if name in METRICS:
        _expect_stemmer(name)
        return METRICS[name]
    raise ValueError(_advice(name, METRICS))


def corpus_metric_named(name: str, labels: Labels | None = None) -> CorpusMetric:
    """The metric of a whole set called `name`; raises ValueError as `metric_named` does."""
    if name == "macro_f1" and labels is not None:
        return macro_f1(labels)
    if name in CORPUS_METRICS:
        _expect_stemmer(name)
        return CORPUS_METRICS[name]
    raise ValueError(_advice(name, CORPUS_METRICS))


def _expect_stemmer(name: str) -> None:
    """Told before a run is trained, not when its answers are scored."""
    if name.endswith("_stemmed"):
        stems("stemmed")


def _advice(name: str, table: Mapping[str, object]) -> str:
    if name in OF_CLASSES:
        return f"Expected the list of classes with {name}, got none; vlmft score and compare take --classes FILE"
    nearest = difflib.get_close_matches(name, table, n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else "name one of them"
    if name in CORPUS_METRICS:
        advice = f"it is one number for a whole file, which vlmft score --metric {name} gives"
    return f"Expected one of the metrics {', '.join(table)}, got {name!r}; {advice}"
