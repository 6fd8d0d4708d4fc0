"""ROUGE over stems against rouge-score, the library that published figures come from."""

from __future__ import annotations

import random
import sys

import pytest

from vlmft.metrics import corpus_metric_named, metric_named
from vlmft.metrics.rouge import _porter, _stem, rouge1_stemmed, rouge_l_stemmed, rouge_of, rouge_stemmed, stems

pytest.importorskip("nltk", reason="no nltk; pip install 'vlmft[rouge]'")

WORDS = (
    "the runner runs running ran quickly charts charted generalization generalisations ponies pony flies dying was "
    "increased increasing increase relational conditional sky skies news 2010 3.5 it's U.S. agreed plastered"
).split()


def texts(n: int) -> list[tuple[str, str]]:
    draw = random.Random(5)
    return [(" ".join(draw.choices(WORDS, k=9)), " ".join(draw.choices(WORDS, k=12))) for _ in range(n)]


def test_the_numbers_of_rouge_score() -> None:
    """The same integers are divided: only the last rounding of a float may differ."""
    library = pytest.importorskip("rouge_score.rouge_scorer", reason="no rouge-score")
    scorer = library.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    moved = 0
    for prediction, reference in texts(200):
        mine, theirs = rouge_of(prediction, [reference], stems), scorer.score(reference, prediction)
        for name, found in mine.items():
            expected = theirs[name]
            assert (found.recall, found.precision, found.f) == pytest.approx(tuple(expected[i] for i in (1, 0, 2)))
        moved += mine != rouge_of(prediction, [reference])
    assert moved > 100  # without stems the numbers are others


def test_stems_and_what_has_none() -> None:
    assert stems("Runs running quickly, was") == ["run", "run", "quickli", "was"]
    assert stems("runs") == ["run"] and stems("red") == ["red"]
    assert stems("Бегает бегал") == ["бегает", "бегал"]
    assert rouge1_stemmed("he runs", ["he running"]).value == 1
    assert rouge_l_stemmed("charts increased", ["chart increases"]).value == 1
    table = rouge_stemmed([("the runner runs quickly home", ["the runners running quickly home"])])
    assert table.values["rouge1_f"] == 1 and "use_stemmer=True" in table.notes[-1]


def test_without_the_library_it_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    for cached in (_porter, _stem):
        cached.cache_clear()
    with pytest.raises(ValueError, match=r"Expected nltk for its Porter stemmer, got none; .*'vlmft\[rouge\]'"):
        metric_named("rouge1_stemmed")
    with pytest.raises(ValueError, match="Expected nltk"):
        corpus_metric_named("rouge_stemmed")
