"""Error rates of characters and words: equal to jiwer's on texts that are normalised alike."""

from __future__ import annotations

import random
import unicodedata

import pytest

from vlmft.metrics import beside, metric_named
from vlmft.metrics.transcription import character_accuracy, error_rates, normalised, word_accuracy

LETTERS = "abc дё\u0301é,. "


def texts(draw: random.Random, n: int) -> list[str]:
    return ["x" + "".join(draw.choice(LETTERS) for _ in range(draw.randint(1, 30))) for _ in range(n)]


def test_equal_to_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    draw = random.Random(0)
    golds = texts(draw, 60)
    answers = [gold if draw.random() < 0.2 else other for gold, other in zip(golds, texts(draw, 60), strict=True)]
    table = error_rates([(answer, [gold]) for answer, gold in zip(answers, golds, strict=True)])
    clean = [[normalised(text) for text in some] for some in (golds, answers)]
    assert table.values["cer"] == pytest.approx(jiwer.cer(*clean))
    assert table.values["wer"] == pytest.approx(jiwer.wer(*clean))
    for gold, answer in zip(*clean, strict=True):
        assert character_accuracy(answer, [gold]).value == pytest.approx(max(0.0, 1 - jiwer.cer(gold, answer)))
        assert word_accuracy(answer, [gold]).value == pytest.approx(max(0.0, 1 - jiwer.wer(gold, answer)))


def test_what_counts_is_said() -> None:
    decomposed = unicodedata.normalize("NFD", "Ёж и café")
    assert decomposed != "Ёж и café"
    assert character_accuracy(f" {decomposed}\n", ["Ёж  и\tcafé"]).value == 1
    assert character_accuracy("Total", ["total"]).value == pytest.approx(4 / 5)
    assert word_accuracy("a b", ["a b."]).value == 0.5
    assert "NFC" in error_rates([("a", ["a"])]).notes[0]


def test_ends() -> None:
    assert character_accuracy("", ["abc"]).value == 0
    assert character_accuracy("", ["abc"]).parsed is None
    assert character_accuracy("much too long", ["ab"]).value == 0
    assert error_rates([("much too long", ["ab"])]).values["cer"] > 1  # type: ignore[operator]
    assert word_accuracy("b", ["a a", "b"]).value == 1
    with pytest.raises(ValueError, match="at least one row"):
        error_rates([])


def test_the_rates_stand_beside_the_accuracy() -> None:
    found = beside("character_accuracy", [("abd", ["abc"])])
    assert found["error_rates/nfc-spaces@1: cer"] == pytest.approx(1 / 3)
    assert metric_named("word_accuracy") is word_accuracy
