"""How far off counts are; classes read out of free text."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from vlmft.metrics.counting import counting
from vlmft.metrics.labels import AMBIGUOUS, NONE, Labels, alias_accuracy, macro_f1
from vlmft.metrics.table import Row

COUNTING = (
    Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "fixtures/counting_predictions"
)

SPORTS = Labels(
    {
        "tennis": [],
        "table tennis": ["ping pong"],
        "basketball": [],
        "wheelchair basketball": [],
        "rowing": [],
        "axe throwing": [],
        "canoe slamon": ["canoe slalom"],
        "hockey": [],
        "hockey on grass": [],
        "judo": [],
        "luge": [],
    }
)


def test_counting() -> None:
    rows: list[Row] = [("3", ["3"]), ("five", ["4"]), ("9", ["6"]), ("many", ["4"]), ("7", ["5", "8"])]
    table = counting(rows)
    assert table.values == {"within_1": 3 / 5, "mae": 5 / 4, "bias": 3 / 4}
    assert table.lists["per_true_count"] == [
        {"count": 3, "n": 1, "accuracy": 1.0, "bias": 0.0},
        {"count": 4, "n": 2, "accuracy": 0.0, "bias": 1.0},
        {"count": 5, "n": 1, "accuracy": 0.0, "bias": -1.0},
        {"count": 6, "n": 1, "accuracy": 0.0, "bias": 3.0},
    ]
    assert "4 of 5 rows" in table.notes[0]


def test_counting_of_what_holds_no_number() -> None:
    assert counting([("many", ["3"])]).values == {"within_1": 0.0, "mae": None, "bias": None}
    with pytest.raises(ValueError, match="got none"):
        counting([])
    with pytest.raises(ValueError, match="Expected a whole number as reference, got 'many'"):
        counting([("3", ["many"])])


@pytest.mark.skipif(not COUNTING.exists(), reason=f"no {COUNTING}; set VLMFT_REFERENCE_DATA")
def test_the_published_arms() -> None:
    def table(arm: str) -> dict[str, float | None]:
        with (COUNTING / f"{arm}.csv").open(encoding="utf-8", newline="") as file:
            rows: list[Row] = [(row[0], (row[1],)) for row in list(csv.reader(file))[1:]]
        assert len(rows) == 998
        return counting(rows).values

    assert table("zero_shot")["within_1"] == pytest.approx(0.8517, abs=5e-5)
    assert table("zero_shot")["mae"] == pytest.approx(0.519, abs=5e-4)
    assert table("tuned")["mae"] == pytest.approx(1.57, abs=5e-3)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Table Tennis.", "table tennis"),
        ("This is table tennis", "table tennis"),  # "label in text" finds tennis, too
        ("wheelchair basketball, I think", "wheelchair basketball"),
        ("I see hockey on grass", "hockey on grass"),  # begins with another label
        ("axe throwing", "axe throwing"),  # "rowing" stands in it
        ("They are axe-throwing!", "axe throwing"),
        ("canoe slalom", "canoe slamon"),
        ("ping-pong", "table tennis"),
        ("tennis or judo", AMBIGUOUS),
        ("tennis, tennis", "tennis"),
        ("football", NONE),
        ("ludo", NONE),
        ("", NONE),
        ("<think>tennis?</think> The answer is judo", "judo"),
    ],
)
def test_labels_read(text: str, label: str) -> None:
    assert SPORTS.read(text) == label


def test_containment_over_counts() -> None:
    """The defect that whole words and longest-first guard against."""
    assert [name for name in SPORTS.names if name in "axe throwing"] == ["rowing", "axe throwing"]
    assert [name for name in SPORTS.names if name in "this is table tennis"] == ["tennis", "table tennis"]


def test_alias_accuracy() -> None:
    metric = alias_accuracy(SPORTS)
    assert metric("It is canoe slalom.", ["canoe slamon"]).value == 1
    assert (metric("tennis or judo", ["judo"]).value, metric("tennis or judo", ["judo"]).parsed) == (0, None)
    assert (metric("luge", ["judo"]).value, metric("luge", ["judo"]).parsed) == (0, "luge")
    for odd in (["polo"], ["judo", "luge"]):
        with pytest.raises(ValueError, match="Expected references of one class of the list"):
            metric("judo", odd)


def test_labels_that_share_a_spelling_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 'B' of 'b' and of 'a'|got 'b' of 'b' and of 'a'"):
        Labels({"a": ["B"], "b": []})
    for odd in ({}, {"?": []}):
        with pytest.raises(ValueError, match="Expected"):
            Labels(odd)


GOLD = "a a a b b c".split()
SAID = ["a", "b", "what", "b", "a", "a or b"]


def test_macro_f1_by_hand_and_by_scikit_learn() -> None:
    """Expected: scikit-learn 1.9.1, f1_score(average="macro", labels=[a, b, c, d], zero_division=0)."""
    rows: list[Row] = [(said, (gold,)) for said, gold in zip(SAID, GOLD, strict=True)]
    table = macro_f1(Labels({name: [] for name in "abcd"}))(rows)
    f1_a, f1_b = 2 * 1 / (3 + 2), 2 * 1 / (2 + 2)
    assert table.values["macro_f1"] == pytest.approx((f1_a + f1_b) / 4)
    assert table.values == {
        "macro_f1": pytest.approx(0.225),
        "accuracy": 2 / 6,
        "unparsed": 1 / 6,
        "ambiguous": 1 / 6,
    }
    assert table.lists["worst_confusions"][0] == {"reference": "a", "prediction": NONE, "n": 1}
    assert {"reference": "c", "prediction": AMBIGUOUS, "n": 1} in table.lists["worst_confusions"]
    assert "2 of them" not in " ".join(table.notes) and "1 of them have no row" in table.notes[1]


def test_the_divisor_of_macro_f1_is_not_the_predictions_choice() -> None:
    """The defect: averaged over the classes that occur, one stray answer moves the score of all the others."""
    few = macro_f1(Labels({name: [] for name in "abcdefgh"}))
    assert few([("a", ["a"])]).values["macro_f1"] == pytest.approx(1 / 8)
    # the other defect: an unread answer coded as -1 is charged to a class by index arithmetic
    table = few([("a", ["a"]), ("what", ["b"]), ("b", ["b"])])
    per_class = {line["class"]: line["f1"] for line in table.lists["per_class"]}
    assert (per_class["a"], per_class["b"]) == (1.0, pytest.approx(2 / 3))
