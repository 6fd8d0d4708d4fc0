"""Paired statistics against textbook formulas, exact distributions and a published before/after pair."""

from __future__ import annotations

import json
import math
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vlmft.evaluation.compare import (
    adjusted,
    compare,
    holm,
    mcnemar_exact,
    mean_interval,
    paired_bootstrap_interval,
    sign_flip_p_value,
    wilson_interval,
)

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
    assert mcnemar_exact(*pair) == textbook_mcnemar(*pair)


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


def binomial_quantile(n: int, share: Fraction, quantile: Fraction) -> int:
    below = Fraction(0)
    for k in range(n + 1):
        below += math.comb(n, k) * share**k * (1 - share) ** (n - k)
        if below >= quantile:
            return k
    raise AssertionError("a distribution reaches 1")


def test_bootstrap_has_the_exact_distribution_of_resampled_shares() -> None:
    differences = np.array([1.0] * 60 + [0.0] * 140)
    low, high = paired_bootstrap_interval(differences, [f"image {i}" for i in range(200)])
    share = Fraction(60, 200)
    assert abs(low * 200 - binomial_quantile(200, share, Fraction(1, 40))) <= 1
    assert abs(high * 200 - binomial_quantile(200, share, Fraction(39, 40))) <= 1


def unequal_groups() -> tuple[np.ndarray, list[str]]:
    source = random.Random(3)
    groups = [f"image {i}" for i in range(60) for _ in range(source.randint(1, 5))]
    lift = {name: source.gauss(1.0, 0.2) for name in sorted(set(groups))}
    return np.array([lift[name] + source.gauss(0, 0.1) for name in groups]), groups


def naive_bootstrap(differences: np.ndarray, groups: list[str], resamples: int) -> tuple[float, float]:
    source = random.Random(5)
    rows: dict[str, list[float]] = {}
    for name, difference in zip(groups, differences, strict=True):
        rows.setdefault(name, []).append(float(difference))
    means = []
    for _ in range(resamples):
        drawn = [value for name in source.choices(list(rows), k=len(rows)) for value in rows[name]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[round(0.025 * resamples)], means[round(0.975 * resamples)]


def test_bootstrap_equals_a_naive_loop_over_unequal_groups() -> None:
    differences, groups = unequal_groups()
    expected = naive_bootstrap(differences, groups, resamples=4000)
    assert paired_bootstrap_interval(differences, groups) == pytest.approx(expected, abs=0.01)


def test_bootstrap_counts_groups_and_not_rows() -> None:
    differences, groups = unequal_groups()
    once = paired_bootstrap_interval(differences, groups)
    nine_times = paired_bootstrap_interval(np.repeat(differences, 9), [name for name in groups for _ in range(9)])
    assert nine_times == pytest.approx(once)
    # the defect this guards against: rows taken for independent
    low, high = paired_bootstrap_interval(np.repeat(differences, 9), [str(i) for i in range(9 * len(differences))])
    assert high - low < 0.4 * (once[1] - once[0])


def test_bootstrap_repeats_and_ignores_the_row_order() -> None:
    differences, groups = unequal_groups()
    once = paired_bootstrap_interval(differences, groups)
    assert paired_bootstrap_interval(differences, groups) == once
    assert paired_bootstrap_interval(differences[::-1], groups[::-1]) == pytest.approx(once, abs=1e-12)
    assert paired_bootstrap_interval(differences, groups, seed=1) != once


def test_bootstrap_of_many_groups_is_bounded_in_time() -> None:
    started = time.process_time()
    differences = np.random.default_rng(0).normal(0.01, 1.0, size=100_000)
    low, high = paired_bootstrap_interval(differences, [str(i) for i in range(100_000)], resamples=2000)
    assert time.process_time() - started < 10  # a fifth of the resamples, on slower machines too
    half = 1.96 * differences.std() / math.sqrt(100_000)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.1 * half)


def test_sign_flips_equal_all_their_combinations() -> None:
    tenths = [-8, 0, 6, 2, -8]  # many combinations tie with the data, and as floats some of them fall below it
    totals = [sum(s * (-1) ** (bits >> i & 1) for i, s in enumerate(tenths)) for bits in range(32)]
    exact = sum(abs(total) >= abs(sum(tenths)) for total in totals) / 32
    assert sign_flip_p_value(np.array(tenths) / 10, list("abcde")) == pytest.approx(exact, abs=0.02)
    assert sign_flip_p_value(np.zeros(4), list("abcd")) == 1
    assert sign_flip_p_value(np.full(40, 0.5), ["one image"] * 40) == 1


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
        (0, 5, "not distinguishable"),  # the interval excludes 0, McNemar p = 0.0625
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


def test_one_image_is_no_evidence() -> None:
    first, second, _ = arms(0, 40, both=0)
    comparison = compare("untuned", first, "tuned", second, dict.fromkeys(first, "the same image"))
    assert comparison.p_value < 0.001
    assert comparison.n_groups == 1
    assert comparison.verdict == "not distinguishable"


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
    assert table[1].to_dict()["verdict"] == "not distinguishable"
    assert table[1].to_dict()["p_holm"] == table[1].p_value


def test_the_interval_of_one_arm() -> None:
    right = {str(i): float(i < 30) for i in range(40)}
    own = {row_id: row_id for row_id in right}
    assert mean_interval(right, own) == (wilson_interval(30, 40), "Wilson")
    halves = {row_id: value / 2 for row_id, value in right.items()}
    (low, high), method = mean_interval(halves, own)
    assert method == "bootstrap by group" and low < 0.375 < high
    # rows of one image are no independent rows
    paired = {row_id: str(int(row_id) // 2) for row_id in right}
    (wide_low, wide_high), method = mean_interval(right, paired)
    assert method == "bootstrap by group"
    assert wide_high - wide_low > 1.2 * (wilson_interval(30, 40)[1] - wilson_interval(30, 40)[0])


def test_the_interval_of_one_arm_has_a_width() -> None:
    """The defect: rows that are all right on two images gave 100 % to 100 %, and were said to be sure of it."""
    rows = [str(i) for i in range(12)]
    own, pairs = {row_id: row_id for row_id in rows}, {row_id: str(int(row_id) // 6) for row_id in rows}
    right, half = dict.fromkeys(rows, 1.0), dict.fromkeys(rows, 0.1)
    assert mean_interval(right, own) == (wilson_interval(12, 12), "Wilson")
    assert mean_interval(right, pairs) == (wilson_interval(2, 2), "Wilson by group")
    (low, high), method = mean_interval(half, own)
    assert (low, high) == pytest.approx(wilson_interval(1.2, 12)) and method == "Wilson by group"
    thirds = {row_id: str(int(row_id) % 7) for row_id in rows}  # seven groups of one or two rows, of 0.1 each
    assert mean_interval(half, thirds)[0] == pytest.approx(wilson_interval(0.7, 7))
    mixed = {row_id: float(row_id == "0") for row_id in rows}
    assert mean_interval(mixed, pairs) == (pytest.approx(wilson_interval(1 / 6, 2)), "Wilson by group")
    beyond, few = {row_id: 3.0 + float(row_id) for row_id in rows}, dict.fromkeys(rows, 3.0)
    assert mean_interval(beyond, own)[1] == "bootstrap by group"
    assert mean_interval(beyond, pairs)[1] == "bootstrap by group, of which 2 are too few"
    assert mean_interval(few, own) == ((3.0, 3.0), "bootstrap by group, which are all alike")


def test_many_alike_groups_have_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(3)
    differences = source.choice([-1.0, 0.0, 1.0], p=[0.2, 0.55, 0.25], size=3000)
    groups = [str(i // 2) for i in range(2000)] + [f"alone {i}" for i in range(1000)]
    drawn_one_by_one = paired_bootstrap_interval(differences, groups)
    monkeypatch.setattr("vlmft.evaluation.compare.MANY_GROUPS", 2000)
    assert paired_bootstrap_interval(differences, groups) != drawn_one_by_one  # it did go the other way
    assert paired_bootstrap_interval(differences, groups) == pytest.approx(drawn_one_by_one, abs=0.001)
