from __future__ import annotations

import re

import pytest

from vlmft.metrics.vqa_accuracy import vqa_accuracy, vqa_match, vqa_normalised


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Dog.", "dog"),
        ("3.", "3"),
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("1,200", "1200"),
        ("red, blue", "red blue"),
        ("red/blue", "red blue"),
        ("ten-year", "10 year"),
        ("Two\tdogs\n", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("it's", "it's"),
        ("its", "its"),
        ("were", "were"),
        ("50%", "50%"),
        ("Чебурашка!", "чебурашка"),
        ("." * 40, ""),  # the original stops at 32 full stops
    ],
)
def test_normalised(text: str, normalised: str) -> None:
    assert vqa_normalised(text) == normalised


def test_the_ported_period_rule_keeps_what_ours_drops() -> None:
    """A published port mended a typo in the rule and now scores "3." wrong for 3."""
    assert re.sub(r"(?<!\d)\.(?!\d)", "", "3.") == "3."
    assert vqa_match("3.", ["3"]).value == 1


def test_match() -> None:
    assert vqa_match("a dog", ["cat", "The dog!"]).value == 1
    assert vqa_match(" the ", ["a"]).value == 0
    assert vqa_match(" the ", ["a"]).parsed is None
    with pytest.raises(ValueError, match="at least one reference"):
        vqa_match("a", [])


@pytest.mark.parametrize(("equal", "value"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_human_answers(equal: int, value: float) -> None:
    answers = ["Dog"] * equal + [f"other {i}" for i in range(10 - equal)]
    assert vqa_accuracy("a dog", answers).value == pytest.approx(value)


def test_one_reference_is_no_ten() -> None:
    """By the formula alone a single reference scores 0 by construction: there are no others."""
    assert vqa_accuracy("4", ["four"]).value == 1
    assert vqa_accuracy("5", ["four"]).value == 0
