"""Scores and summaries, on the published counting experiment whose leaked evaluation scored 100 %."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from vlmft.evaluation.compare import compare
from vlmft.evaluation.score import (
    ArmSummary,
    ScoredRow,
    cut_off,
    score_answers,
    summarise,
    too_few,
    unequal_treatment,
    warnings,
)
from vlmft.metrics import metric_named
from vlmft.sample import Answer

COUNTING = (
    Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "fixtures/counting_predictions"
)
needs_counting = pytest.mark.skipif(not COUNTING.exists(), reason=f"no {COUNTING}; set VLMFT_REFERENCE_DATA")


def scored(texts: Sequence[str], golds: Sequence[str], metric: str = "count_accuracy") -> dict[str, ScoredRow]:
    answers = {f"row {i}": Answer(text, "stop", 1) for i, text in enumerate(texts)}
    return score_answers(answers, references_of(golds), metric_named(metric))


def references_of(golds: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {f"row {i}": (gold,) for i, gold in enumerate(golds)}


def summary_of(texts: Sequence[str], golds: Sequence[str], seconds: float | None = None) -> ArmSummary:
    return summarise("tuned", scored(texts, golds), references_of(golds), "count_accuracy", seconds)


def published(arm: Literal["zero_shot", "tuned", "tuned_leaked"]) -> tuple[list[str], list[str]]:
    with (COUNTING / f"{arm}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert len(rows) == 998
    return [row[0] for row in rows], [row[1] for row in rows]


@needs_counting
def test_the_published_arms() -> None:
    untuned, tuned = published("zero_shot"), published("tuned")
    assert untuned[1] == tuned[1]
    assert summary_of(*untuned).value == 648 / 998 == pytest.approx(0.6493, abs=5e-5)
    assert summary_of(*tuned).value == 341 / 998
    first, second = ({row_id: row.score.value for row_id, row in scored(*arm).items()} for arm in (untuned, tuned))
    comparison = compare("untuned", first, "tuned", second, {row_id: row_id for row_id in first})
    assert (comparison.only_first, comparison.only_second) == (310, 3)
    assert comparison.p_value == pytest.approx(6.13e-88, rel=1e-2)
    assert comparison.difference == pytest.approx(-307 / 998)
    assert comparison.verdict == "worse"


@needs_counting
def test_the_published_collapse_and_leak_are_called_out() -> None:
    assert warnings(summary_of(*published("zero_shot"))) == []
    tuned = summary_of(*published("tuned"))
    assert (tuned.top_answer, tuned.top_share) == ("9", 782 / 998)
    assert tuned.majority_share == 140 / 998
    (sentence,) = warnings(tuned)
    assert sentence == (
        "tuned: 78.4 % of 998 answers are '9', while the most frequent reference fits 14.0 % of the questions; "
        "it has collapsed to one answer."
    )
    leaked = summary_of(*published("tuned_leaked"))
    assert (leaked.value, leaked.verbatim) == (1.0, 998)
    (sentence,) = warnings(leaked)
    assert "all 998 answers are right" in sentence
    assert "look for the answers in the prompts" in sentence


def test_every_row_counts() -> None:
    golds = ["3", "3", "4", "5"]
    references = references_of(golds)
    answers = {
        "row 3": Answer("five", "stop", 1),
        "row 0": Answer("3", "stop", 1),
        "row 2": Answer("there are so", "length", 8),
        "row 1": Answer("many", "stop", 1),
    }
    rows = score_answers(answers, references, metric_named("count_accuracy"))
    assert list(rows) == list(references)
    assert rows["row 2"].finish == "length"
    summary = summarise("tuned", rows, references, "count_accuracy", seconds=2.0)
    assert (summary.n, summary.value, summary.parse_failures, summary.truncated) == (4, 0.5, 2, 1)
    assert (summary.verbatim, summary.top_answer, summary.top_share) == (1, "3", 0.25)
    assert (summary.majority_share, summary.answers_per_second) == (0.5, 2.0)
    assert summary.interval == pytest.approx((0.15004, 0.84996), abs=1e-5)


def test_ids_must_match() -> None:
    answers = {"a": Answer("3", "stop", 1)}
    with pytest.raises(ValueError, match=r"1 \(b\) only in 'references' and 0 only in 'answers'"):
        score_answers(answers, {"a": ["3"], "b": ["3"]}, metric_named("count_accuracy"))
    with pytest.raises(ValueError, match=r"1 \(row 1\) only in 'references'"):
        summarise("tuned", scored(["3"], ["3"]), references_of(["3", "4"]), "count_accuracy", None)
    with pytest.raises(ValueError, match="got none"):
        summarise("tuned", {}, {}, "count_accuracy", None)


def test_an_unusable_reference_names_its_row() -> None:
    with pytest.raises(ValueError, match=r"got 'many'.*\(row row 1\)"):
        scored(["3", "3"], ["3", "many"])


def test_small_tests_say_what_they_cannot_show() -> None:
    found = too_few(summary_of(["3", "4"] * 20, ["3", "5"] * 20))
    assert found == ["With 40 rows a difference below 15.0 points (6 rows) cannot be distinguished from chance."]
    assert too_few(summary_of(["3"] * 100, ["3"] * 100)) == []
    (sentence,) = too_few(summary_of(["3"] * 3, ["3"] * 3))
    assert "no difference between two arms can be distinguished from chance" in sentence


def test_few_images_say_what_they_cannot_show() -> None:
    texts, golds = ["3", "4"] * 60, ["3", "5"] * 60
    rows, references = scored(texts, golds), references_of(golds)

    def text(n_images: int) -> str:
        groups = {row_id: str(int(row_id.split()[1]) % n_images) for row_id in rows}
        found = summarise("tuned", rows, references, "count_accuracy", groups=groups, kind="images")
        assert (found.n, found.n_groups, found.interval_method) == (120, n_images, "Wilson by group")
        (sentence,) = too_few(found)
        return sentence

    assert (
        "With 120 rows, 5 images no difference between two arms can be distinguished from chance, which takes 6"
        in text(5)
    )
    assert (
        text(9)
        == "With 120 rows, 9 images no difference can be distinguished from chance in which fewer than 6 images change."
    )


@pytest.mark.parametrize(
    ("what", "text", "finish"),
    [
        ("not parsed", "many", "stop"),
        ("cut at the length limit", "3 and then", "length"),
        ("empty or refused", "I'm sorry, but I can't count 3 things.", "stop"),
        ("empty or refused", "Извините, тут 3 предмета.", "stop"),
    ],
)
def test_unequal_treatment(what: str, text: str, finish: Literal["stop", "length"]) -> None:
    """Ten of 40 answers of one arm are treated otherwise: worth 0 to 10 rows, whatever they are."""
    golds = ["3"] * 40
    references, metric = references_of(golds), metric_named("count_accuracy")
    own = {row_id: row_id for row_id in references}
    plain = score_answers({row_id: Answer("3", "stop", 1) for row_id in references}, references, metric)
    odd = {
        row_id: Answer(text, finish, 1) if i < 10 else Answer("4" if i < 20 else "3", "stop", 1)
        for i, row_id in enumerate(references)
    }
    rows = score_answers(odd, references, metric)
    found = [one for one in unequal_treatment("untuned", plain, "tuned", rows, own) if what in one]
    (sentence,) = found
    assert sentence == (
        f"Unequal treatment: 0.0 % of the answers of untuned and 25.0 % of tuned are {what}. All wrong or all right, "
        "they would put untuned at 100.0 % to 100.0 % and tuned at 50.0 % to 75.0 %: a difference of -50.0 to -25.0 "
        "points."
    )
    assert unequal_treatment("a", rows, "b", rows, own) == []
    # ten rows of one image are one odd image
    assert unequal_treatment("a", plain, "b", rows, {r: str(int(r.split()[1]) // 10) for r in own}) == []


def test_no_false_alarms() -> None:
    yes_no = (["1"] * 99 + ["2"], ["1"] * 60 + ["2"] * 40)
    assert warnings(summary_of(*yes_no)) == []  # one answer for nearly all, but it is right for most
    assert warnings(summary_of(["three"] * 50 + ["4"] * 50, ["3"] * 50 + ["4"] * 50)) == []  # right, in its own words


@pytest.mark.parametrize("texts", [["3"] * 3, ["?"] * 3])
def test_to_dict_is_json(texts: list[str]) -> None:
    summary = summary_of(texts, ["3"] * 3)
    parsed = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert parsed == summary.to_dict()
    assert parsed["interval"] == list(summary.interval)


def test_answers_that_were_cut_are_told_for_every_arm() -> None:
    references = {str(n): ("7",) for n in range(50)}
    answers = {row: Answer("7", "stop", 1) for row in references}
    cut = {**answers, **{str(n): Answer("7", "length", 1) for n in range(10)}}
    arms = [
        summarise(name, score_answers(given, references, metric_named("exact_match")), references, "exact_match")
        for name, given in (("untuned", cut), ("tuned", answers))
    ]
    (sentence,) = cut_off(arms)
    assert sentence.startswith("Answers were cut at data.max_new_tokens: untuned 20.0 %, tuned 0.0 %.")
    assert cut_off(arms[1:]) == []
