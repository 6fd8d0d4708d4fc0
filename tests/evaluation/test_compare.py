"""Paired statistics against textbook formulas, exact distributions and a published before/after pair."""

from __future__ import annotations

import json
import math
import os
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vlmft.evaluation.compare import (
    adjusted,
    arm_interval,
    compare,
    holm,
    mcnemar_exact,
    rows_sentence,
    sign_flip_p_value,
)
from vlmft.evaluation.intervals import student_quantile, wilson_interval
from vlmft.evaluation.rows import connected_groups

PAIRED = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "fixtures/paired_chartqa"


def textbook_mcnemar(only_first: int, only_second: int) -> float:
    n, few = only_first + only_second, min(only_first, only_second)
    return float(min(Fraction(1), 2 * sum(Fraction(math.comb(n, i), 2**n) for i in range(few + 1))))


def log_space_mcnemar(only_first: int, only_second: int) -> float:
    n, few = only_first + only_second, min(only_first, only_second)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(few + 1)]
    largest = max(logs)
    return min(1.0, 2 * math.exp(largest) * sum(math.exp(value - largest) for value in logs))


@pytest.mark.parametrize("pair", [(0, 0), (0, 1), (0, 5), (6, 0), (1, 8), (2, 10), (7, 7), (69, 83), (310, 3)])
def test_mcnemar_equals_the_textbook_sum(pair: tuple[int, int]) -> None:
    assert mcnemar_exact(*pair) == pytest.approx(textbook_mcnemar(*pair), rel=1e-14)


def test_mcnemar_known_values_and_large_counts() -> None:
    assert mcnemar_exact(0, 5) == 0.0625
    assert mcnemar_exact(6, 0) == 0.03125
    assert mcnemar_exact(310, 3) == pytest.approx(6.13e-88, rel=1e-2)
    for pair in [(5000, 5100), (5300, 5000), (20_000, 20_500)]:  # 2.0**40500 overflows a float
        assert mcnemar_exact(*pair) == pytest.approx(log_space_mcnemar(*pair), rel=1e-8)
    assert mcnemar_exact(0, 5000) == 0.0
    with pytest.raises(ValueError, match="got -1"):
        mcnemar_exact(-1, 3)


@pytest.mark.parametrize(("total", "n"), [(1, 3), (50, 100), (648, 998), (7.25, 10), (999, 1000)])
def test_wilson_ends_lie_one_quantile_from_the_share(total: float, n: int) -> None:
    for end in wilson_interval(total, n):
        assert abs(total / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.959964, rel=1e-6)


def test_wilson_at_the_ends() -> None:
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(0, 10)[1] == pytest.approx(z2 / (10 + z2))
    assert wilson_interval(10, 10)[0] == pytest.approx(10 / (10 + z2))
    assert wilson_interval(10, 10)[1] == 1
    for total, n in [(0, 0), (-1, 5), (6, 5), (math.nan, 5)]:
        with pytest.raises(ValueError, match="Expected n >= 1"):
            wilson_interval(total, n)


def every_swap(sums: list[int]) -> float:
    totals = [sum(s * (-1) ** (bits >> i & 1) for i, s in enumerate(sums)) for bits in range(2 ** len(sums))]
    return sum(abs(total) >= abs(sum(sums)) for total in totals) / 2 ** len(sums)


@pytest.mark.parametrize("sums", [[-8, 0, 6, 2, -8], [3, 3, 3, -1, 2, 5, 1, 4], [20, 20, -20], [1] * 6, [7]])
def test_sign_flips_equal_all_their_combinations(sums: list[int]) -> None:
    """Whole numbers by their distribution, tenths by enumeration: many combinations tie with the data, and as floats
    some of them fall below it."""
    exact = pytest.approx(every_swap(sums))
    assert sign_flip_p_value(np.array(sums, dtype=float)) == (exact, "exact sign flips by group")
    assert sign_flip_p_value(np.array(sums) / 10) == (exact, "exact sign flips by group")


def test_sign_flips_of_rows_are_mcnemars() -> None:
    assert sign_flip_p_value(np.array([1.0] * 83 + [-1.0] * 69))[0] == pytest.approx(mcnemar_exact(69, 83), rel=1e-12)
    assert sign_flip_p_value(np.zeros(4))[0] == 1


def test_sign_flips_are_drawn_where_there_are_too_many() -> None:
    sums = np.random.default_rng(0).normal(0.4, 1.0, 40)
    p_value, name = sign_flip_p_value(sums)
    again = np.random.default_rng(1).choice([-1.0, 1.0], size=(200_000, 40)) @ sums
    # 10,000 draws of a share of a few hundredths: its standard error is 0.002 at most
    assert p_value == pytest.approx(float((abs(again) >= abs(sums.sum())).mean()), abs=0.006)
    assert name == "sign-flip permutation by group"
    assert sign_flip_p_value(np.full(40, 0.3))[0] == 1 / 10_001


def arms(only_first: int, only_second: int, both: int) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    first = [1.0] * only_first + [0.0] * only_second + [1.0] * both
    second = [0.0] * only_first + [1.0] * only_second + [1.0] * both
    ids = [f"row {i}" for i in range(len(first))]
    return dict(zip(ids, first, strict=True)), dict(zip(ids, second, strict=True)), {row_id: row_id for row_id in ids}


@pytest.mark.parametrize(
    ("only_first", "only_second", "verdict"),
    [
        (0, 6, "better"),
        (6, 0, "worse"),
        (0, 5, "not distinguishable"),  # Tango's interval excludes 0, McNemar p = 0.0625
        (8, 9, "not distinguishable"),
        (0, 0, "not distinguishable"),
    ],
)
def test_verdict(only_first: int, only_second: int, verdict: str) -> None:
    first, second, groups = arms(only_first, only_second, both=30)
    comparison = compare("untuned", first, "tuned", second, groups)
    assert comparison.verdict == verdict
    assert (comparison.only_first, comparison.only_second) == (only_first, only_second)
    assert comparison.difference == pytest.approx((only_second - only_first) / len(first))
    assert comparison.p_test == "exact McNemar"
    assert (comparison.interval[0] > 0 or comparison.interval[1] < 0) == (verdict != "not distinguishable")


@pytest.mark.parametrize("n", [6, 7, 8, 9, 10, 12, 15, 20, 27])
def test_p_value_interval_and_verdict_never_contradict(n: int) -> None:
    """Over all outcomes of n rows: McNemar's test is the more careful one, and the interval holds what it holds."""
    seen = set()
    for changed in range(n + 1):
        for only_second in range(changed // 2, changed + 1):
            comparison = compare(
                "a",
                *arms(changed - only_second, only_second, n - changed)[:1],
                "b",
                *arms(changed - only_second, only_second, n - changed)[1:],
            )
            excludes = comparison.interval[0] > 0 or comparison.interval[1] < 0
            assert excludes == (comparison.p_value < 0.05) == (comparison.verdict != "not distinguishable")
            assert comparison.interval[0] <= comparison.difference <= comparison.interval[1]
            seen.add(comparison.verdict)
    assert len(seen) == 2


def test_one_image_is_no_evidence() -> None:
    first, second, _ = arms(0, 40, both=0)
    comparison = compare("untuned", first, "tuned", second, dict.fromkeys(first, "the same image"))
    assert (comparison.p_value, comparison.n_groups, comparison.verdict) == (1.0, 1, "not distinguishable")
    assert comparison.interval == (-1.0, 1.0)
    assert (comparison.interval_method, comparison.rows_sentence) == ("Tango's score by group", "40 rows, 1 group")


def test_copies_are_no_evidence() -> None:
    """The defect: 20 copies of the answers on 6 images gave McNemar p = 1.9e-06 beside "not distinguishable"."""
    ids = [f"{image} {copy}" for image in range(6) for copy in range(20)]
    images = {row_id: row_id.split()[0] for row_id in ids}
    first = dict.fromkeys(ids, 0.0)
    second = {row_id: float(row_id.startswith("3 ")) for row_id in ids}
    comparison = compare("untuned", first, "tuned", second, images, "images")
    assert mcnemar_exact(0, 20) == pytest.approx(1.9e-6, rel=0.01)
    assert (comparison.p_value, comparison.verdict) == (1.0, "not distinguishable")
    assert comparison.rows_sentence == "120 rows, 6 images"
    low, high = comparison.interval
    assert low < 0 and high > 0.5  # one image of six
    one = {image: float(image == "3") for image in "012345"}
    alone, _, _ = arm_interval(one, {image: image for image in one})
    copied, method, n_groups = arm_interval(second, images)
    assert method == "Wilson by group" and n_groups == 6
    assert copied[0] <= alone[0] and copied[1] >= alone[1]
    all_right, _, _ = arm_interval(dict.fromkeys(ids, 1.0), images)
    assert all_right == wilson_interval(6, 6, student_quantile(6))


def test_fewer_than_six_groups_show_nothing() -> None:
    ids = [f"{image} {row}" for image in range(5) for row in range(30)]
    images = {row_id: row_id[0] for row_id in ids}
    comparison = compare("a", dict.fromkeys(ids, 0.0), "b", dict.fromkeys(ids, 1.0), images)
    assert comparison.p_value >= 2 / 2**5 and comparison.verdict == "not distinguishable"
    assert comparison.interval[0] <= 0
    ids += [f"6 {row}" for row in range(30)]
    images = {row_id: row_id[0] for row_id in ids}
    comparison = compare("a", dict.fromkeys(ids, 0.0), "b", dict.fromkeys(ids, 1.0), images)
    # by Tango's statistic, the larger of the two; all ways to swap give 2 / 2**6 = 0.031
    assert comparison.p_value == pytest.approx(0.0498, abs=1e-4) and comparison.verdict == "better"


@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("n", [1, 12, 100])
def test_no_change_is_no_proof_of_none(n: int, right: int) -> None:
    """The defect: without a row that changed the bootstrap gave [0, 0]; the rule of three says up to 3 / n."""
    scores = {str(i): float(right) for i in range(n)}
    comparison = compare("a", scores, "b", scores, {row_id: row_id for row_id in scores})
    low, high = comparison.interval
    assert (comparison.difference, comparison.p_value) == (0.0, 1.0)
    assert low == pytest.approx(-high) and min(0.99, 3 / n) <= high <= 5 / n
    graded = dict.fromkeys(scores, 0.5)
    low, high = compare("a", graded, "b", graded, {row_id: row_id for row_id in scores}).interval
    assert low == pytest.approx(-high) and 2 / (n + 2) <= high <= 1


def test_fractional_scores_use_the_sign_flip_test() -> None:
    first, second, groups = arms(0, 30, both=20)
    partial = {row_id: value * 0.5 for row_id, value in second.items()}
    comparison = compare("untuned", dict.fromkeys(first, 0.25), "tuned", partial, groups)
    assert comparison.p_test == "sign-flip permutation by group"
    assert comparison.verdict == "better"
    assert comparison.p_value == 1 / 10_001


def test_rows_that_cannot_be_paired_are_refused() -> None:
    first, second, groups = arms(1, 2, both=3)
    renamed = {("other" if row_id == "row 0" else row_id): value for row_id, value in second.items()}
    with pytest.raises(ValueError, match=r"1 \(row 0\) only in 'untuned' and 1 \(other\) only in 'tuned'"):
        compare("untuned", first, "tuned", renamed, groups)
    with pytest.raises(ValueError, match="got none"):
        compare("untuned", {}, "tuned", {}, {})
    with pytest.raises(ValueError, match=r"got nan in 'tuned' for row row 1"):
        compare("untuned", first, "tuned", {**second, "row 1": math.nan}, groups)
    with pytest.raises(ValueError, match=r"got none for 6 \(row 0, row 1, row 2, row 3, row 4, \.\.\.\)"):
        compare("untuned", first, "tuned", second, {})


def test_to_dict_is_json_and_ignores_the_row_order() -> None:
    first, second, groups = arms(3, 9, both=30)
    shuffled = dict(random.Random(1).sample(list(second.items()), len(second)))
    comparison = compare("untuned", first, "tuned", second, groups)
    assert compare("untuned", first, "tuned", shuffled, groups) == comparison
    parsed = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert parsed == comparison.to_dict()
    assert parsed["interval"] == list(comparison.interval)


@pytest.mark.skipif(not PAIRED.exists(), reason=f"no {PAIRED}; set VLMFT_REFERENCE_DATA")
def test_a_published_gain_is_not_distinguishable() -> None:
    arm = {}
    for name in ("baseline", "finetuned"):
        rows = [json.loads(line) for line in (PAIRED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        arm[name] = {row["id"]: float(row["relaxed"]) for row in rows}
        assert len(arm[name]) == 2500
    groups = {row_id: row_id for row_id in arm["baseline"]}
    comparison = compare("untuned", arm["baseline"], "tuned", arm["finetuned"], groups)
    assert (comparison.first_value, comparison.second_value) == (0.8468, 0.8524)
    assert (comparison.only_first, comparison.only_second) == (69, 83)
    assert comparison.p_value == pytest.approx(0.29, abs=0.005)
    assert comparison.interval == pytest.approx((-0.0040, 0.0152), abs=0.001)
    assert comparison.interval_method == "Tango's score"
    assert comparison.verdict == "not distinguishable"


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, and never below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_of_twenty_equal_arms_one_looks_better_without_holm() -> None:
    first, second, groups = arms(0, 6, both=30)
    alone = compare("untuned", first, "tuned", second, groups)
    same = compare("untuned", first, "copy", first, groups)
    assert alone.verdict == "better"
    (single,) = adjusted([alone])
    assert (single.verdict, single.p_value) == ("better", alone.p_value)
    table = adjusted([same, alone, same])
    assert [one.verdict for one in table] == ["not distinguishable"] * 3
    assert table[1].p_value == pytest.approx(3 * alone.p_value)
    assert table[1].verdict_sentence == "not distinguishable as one of 3 comparisons"
    assert table[0].verdict_sentence == single.verdict_sentence.replace("better", "not distinguishable")
    assert table[1].to_dict()["verdict"] == "not distinguishable"
    assert table[1].to_dict()["p_holm"] == table[1].p_value


def test_the_interval_of_one_arm() -> None:
    right = {str(i): float(i < 30) for i in range(40)}
    own = {row_id: row_id for row_id in right}
    assert arm_interval(right, own) == (wilson_interval(30, 40), "Wilson", 40)
    halves = {row_id: value / 2 for row_id, value in right.items()}
    (low, high), method, _ = arm_interval(halves, own)
    assert method == "Student's t" and low < 0.375 < high
    assert arm_interval(halves, own, is_share=True) == (wilson_interval(15, 40), "Wilson", 40)
    # rows of one image are no independent rows
    paired = {row_id: str(int(row_id) // 2) for row_id in right}
    (wide_low, wide_high), method, n_groups = arm_interval(right, paired)
    assert (method, n_groups) == ("Wilson by group", 20)
    assert wide_high - wide_low > 1.2 * (wilson_interval(30, 40)[1] - wilson_interval(30, 40)[0])


def test_the_interval_of_one_arm_has_a_width() -> None:
    """The defect: rows that are all right on two images gave 100 % to 100 %, and were said to be sure of it."""
    rows = [str(i) for i in range(12)]
    own, pairs = {row_id: row_id for row_id in rows}, {row_id: str(int(row_id) // 6) for row_id in rows}
    right, tenth = dict.fromkeys(rows, 1.0), dict.fromkeys(rows, 0.1)
    assert arm_interval(right, own) == (wilson_interval(12, 12), "Wilson", 12)
    assert arm_interval(right, pairs)[0] == (pytest.approx(2 / (2 + student_quantile(2) ** 2)), 1.0)
    (low, high), method, _ = arm_interval(tenth, own)
    assert 0 < low < 0.05 and high > 0.25 and method == "Student's t"
    beyond, few = {row_id: 3.0 + float(row_id) for row_id in rows}, dict.fromkeys(rows, 3.0)
    (low, high), _, _ = arm_interval(beyond, own)
    assert low < 3 + 5.5 < high
    # a range that nobody knows, and nothing to see of it
    assert arm_interval(few, own) == ((3.0, 3.0), "Student's t, of scores all alike", 12)
    assert arm_interval({"a": 1.0}, {"a": "a"})[0] == wilson_interval(1, 1)


def test_rows_hang_together_over_chains() -> None:
    images = {"a": ["1", "2"], "b": ["2", "3"], "c": ["4"], "d": ["3"], "e": [], "f": ["4"], "g": []}
    groups = connected_groups(images)
    assert groups["a"] == groups["b"] == groups["d"] != groups["c"] == groups["f"]
    assert len(set(groups.values())) == 4
    backwards = connected_groups(dict(reversed(images.items())))
    assert {frozenset(k for k in groups if groups[k] == g) for g in groups.values()} == {
        frozenset(k for k in backwards if backwards[k] == g) for g in backwards.values()
    }
    assert connected_groups({}) == {}


def test_rows_are_told_with_their_groups() -> None:
    assert rows_sentence(500, 500) == "500 rows"
    assert rows_sentence(120, 6, "images") == "120 rows, 6 images"
    assert (rows_sentence(20, 1, "images"), rows_sentence(1, 1)) == ("20 rows, 1 image", "1 row")
