"""Reading a count out of text. Of 200 real outputs of a published run 22.5 % hold no answer that its authors count."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from vlmft.metrics.counting import count_accuracy, extract_count
from vlmft.metrics.numerals import NUMBER_WORDS

OUTPUTS = (
    Path(__file__).parents[2]
    / os.environ.get("VLMFT_REFERENCE_DATA", "../shared")
    / "fixtures/raw_counting_outputs/qwen2vl_2b_superclevr200.jsonl"
)

CASES: list[tuple[str, int | None]] = [
    ("7", 7),
    (" 7.\n", 7),
    ("7.0", 7),
    ("\uff17", 7),  # full width
    ("Ten", 10),
    ("sixteen", 16),
    ("Forty-two", 42),
    ("a hundred", 100),
    ("восемь", 8),
    ("Вижу двадцать пять кубов.", 25),
    ("две", 2),
    ("1,200", 1200),
    ("1\u202f200", 1200),  # narrow no-break space
    ("-3", -3),
    ("\u22123", -3),
    ("3-4", 4),
    ("2.5", None),
    ("50%", None),
    ("the 2nd row", None),
    ("None", None),  # also what a broken pipeline prints: no zero
    ("", None),
    ("often many", None),
    ("a stone sphere", None),
    ("a two-tone sphere", None),
    ("B2", None),
    ("9" * 5000, None),  # int() refuses that many digits
    ("3 red and 4 blue, total 7", 7),
    ("1. A car\n2. A bus\nSo there are two.", 2),
    ("**7**", 7),
    ("The answer is 3, I think.", 3),
    ("**Final answer:** 3", 3),
    ("Ответ: пять", 5),
    ("\\boxed{7}", 7),
    ("8 cubes <answer> 3 </answer>", 3),
    ("<answer>3", 3),  # `</answer>` was the stop string
    ("<answer>Q</answer> there are 3", None),
    ("<answer>B. 9</answer>", None),
    ("<think>I see 3 cubes", None),
    ("<think>I see 3 cubes</think>4", 4),
    ("I see 3 cubes</think>4", 4),  # `<think>` stood in the prompt
]


@pytest.mark.parametrize(("text", "count"), CASES)
def test_extract_count(text: str, count: int | None) -> None:
    assert extract_count(text) == count


def replacing_extractor(text: str) -> int | None:
    """A published defect: replaces number words inside other words, then takes the first digits."""
    for value, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    ):
        text = text.replace(word, str(value))
    found = re.search(r"\d{1,15}", text)
    return int(found[0]) if found else None


def test_the_table_catches_a_naive_extractor() -> None:
    wrong = {text for text, count in CASES if replacing_extractor(text) != count}
    assert {"sixteen", "a stone sphere", "often many", "Ten", "1,200", "2.5", "восемь"} <= wrong


def test_number_words_cover_0_to_100_in_both_languages() -> None:
    latin = {value for word, value in NUMBER_WORDS.items() if word.isascii()}
    cyrillic = {value for word, value in NUMBER_WORDS.items() if not word.isascii()}
    assert latin == cyrillic == set(range(101))
    assert all(extract_count(f"Я вижу {word}") == value for word, value in NUMBER_WORDS.items())


def test_score() -> None:
    assert count_accuracy("There are seven", ["7"]).value == 1
    assert count_accuracy("seven", ["8", "seven"]).parsed == "7"
    unparsed = count_accuracy("many", ["7"])
    assert (unparsed.value, unparsed.parsed) == (0, None)
    with pytest.raises(ValueError, match="at least one reference"):
        count_accuracy("7", [])
    with pytest.raises(ValueError, match="got 'many'"):
        count_accuracy("7", ["7", "many"])


@pytest.mark.skipif(not OUTPUTS.exists(), reason=f"no {OUTPUTS}; set VLMFT_REFERENCE_DATA")
def test_real_outputs() -> None:
    rows = [json.loads(line) for line in OUTPUTS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 200
    scores = [count_accuracy(row["output"], [str(row["reference"])]) for row in rows]
    assert sum(score.parsed is None for score in scores) == 45
    assert sum(score.value for score in scores) == 96  # the 48.0 % that the run's authors report
