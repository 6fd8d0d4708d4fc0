"""Format apart from skill, and what a test set can show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vlmft.evaluation.arms import pairs_of
from vlmft.evaluation.compare import adjusted, compare, mcnemar_exact
from vlmft.evaluation.gains import (
    FormatAndSkill,
    best_of_several,
    best_tuned,
    detectable,
    format_and_skill,
    prompt_matrix,
    seeds_apart,
    seeds_interval,
    skill_pair,
    smallest_difference,
)

IDS = [str(i) for i in range(100)]
GROUPS = {i: i for i in IDS}


def scores(n_right: int) -> dict[str, float]:
    return {i: float(int(i) < n_right) for i in IDS}


def parted(**right: int) -> FormatAndSkill | None:
    """As an evaluation does it: the pair of skill among the others, judged with all of them."""
    every = {arm.replace("_", "@"): scores(n) for arm, n in right.items()}
    values = {arm: sum(s.values()) / 100 for arm, s in every.items()}
    pairs = {*pairs_of(list(every)), *filter(None, [skill_pair(values)])}
    judged = adjusted([compare(one, every[one], other, every[other], GROUPS) for one, other in sorted(pairs)])
    return format_and_skill(values, judged)


def test_a_gain_that_another_prompt_gives_too_is_format() -> None:
    found = parted(untuned=20, fewshot=30, untuned_bare=55, tuned=60, tuned_bare=58)
    assert found is not None and found.best_untuned_arm == "untuned@bare"
    assert found.format_gain == pytest.approx(0.35)
    assert found.skill.comparison.difference == pytest.approx(0.05)
    assert found.skill.comparison.p_value == pytest.approx(2 / 2**5)
    assert found.skill.verdict == "not distinguishable"
    assert found.sentence.startswith(
        "Of +40.0 points, +35.0 are format (untuned@bare has them without tuning); +5.0 (95 % interval "
    )


def test_a_gain_that_no_prompt_gives_is_skill() -> None:
    found = parted(untuned=20, fewshot=10, tuned=60)
    assert found is not None and (found.best_untuned_arm, found.format_gain) == ("untuned", 0)
    assert found.skill.verdict == "better" and "none is format" in found.sentence
    assert found.to_dict()["skill"]["difference"] == pytest.approx(0.4)


def test_the_verdict_on_skill_is_the_tables() -> None:
    """Alone it would be "better": p = 0.031 by McNemar, and three times that for three comparisons."""
    found = parted(untuned=20, fewshot=54, tuned=60)
    assert found is not None and found.skill.comparison.p_value == pytest.approx(2 / 2**6)
    assert found.skill.comparison.verdict == "better" and found.skill.verdict == "better"
    more = parted(untuned=20, fewshot=54, tuned=60, blank=59, untuned_bare=53, tuned_bare=53)
    assert more is not None and more.skill.p_value > 0.05 and more.skill.verdict == "not distinguishable"
    assert more.sentence.count("not distinguishable") == 1


def test_nothing_is_parted_without_another_way_of_asking() -> None:
    assert parted(untuned=20, tuned=60) is None
    assert parted(untuned=20, fewshot=60) is None
    assert parted(tuned=20, tuned_bare=60) is None


def test_matrix() -> None:
    values = {"untuned": 0.1, "fewshot": 0.15, "tuned": 0.5, "untuned@bare": 0.2, "tuned@bare": 0.4}
    assert prompt_matrix(values) == {"train": {"untuned": 0.1, "tuned": 0.5}, "bare": {"untuned": 0.2, "tuned": 0.4}}
    assert prompt_matrix({"untuned": 0.1, "tuned": 0.5}) == {}


def power(n: int, discordance: float, difference: float) -> float:
    """Of the exact test, summed over how many rows change and how many of these for the better."""
    better, total = (discordance + difference) / (2 * discordance), 0.0
    chance = stats.binom.pmf(np.arange(n + 1), n, discordance)
    for changed in np.flatnonzero(chance > 1e-9):
        fewest = [k for k in range(changed // 2) if mcnemar_exact(k, int(changed) - k) < 0.05]
        if fewest:
            tails = stats.binom.cdf(fewest[-1], changed, [better, 1 - better]).sum()
            total += float(chance[changed] * tails)
    return total


@pytest.mark.parametrize("discordance", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("n", [60, 100, 200, 500])
def test_smallest_difference_has_its_power(n: int, discordance: float) -> None:
    """The defect: of 60 rows 10 points were promised where 10 % change, six rows, which show it in 56 cases of 100."""
    found = smallest_difference(n, discordance)
    if found is None:
        assert power(n, discordance, discordance * 0.95) < 0.8
    else:
        assert 0.8 <= power(n, discordance, found) <= 0.93
    assert (found is None) == (n * discordance < 10)


def test_few_rows_show_little() -> None:
    assert smallest_difference(1) is None
    assert detectable(60, 60) == (
        "60 rows: if 30 % of the answers change, a difference of 21.1 points between two models is told from chance in "
        "four cases of five (where 10 % do, no difference shows); a smaller one can look like chance"
    )
    assert detectable(24, 24).startswith("24 rows are too few: where 30 % of the answers or less change, most")
    with pytest.raises(ValueError, match="at least one row"):
        smallest_difference(0)
    assert detectable(500, 500).startswith("500 rows: if 30 % of the answers change, a difference of 7.0 points ")
    assert "(4.2 points if 10 % do)" in detectable(500, 500)
    assert detectable(500, 250, "images").startswith("500 rows, 250 images: if 30 % of the answers change")
    assert detectable(500, 250)[len("500 rows, 250 groups") :] == detectable(250, 250)[len("250 rows") :]
    assert detectable(600, 5, "images") == (
        "600 rows, 5 images cannot show any difference of two arms at p < 0.05: that takes 6 images"
    )


def test_seeds() -> None:
    assert seeds_apart([0.01, 0.03, 0.02]) == "3 seeds: mean +2.0 points, from +1.0 to +3.0"


def test_the_interval_over_seeds() -> None:
    """By scipy's one-sample t."""
    expected = stats.ttest_1samp([0.01, 0.03, 0.05], 0).confidence_interval(0.95)
    assert seeds_interval([0.01, 0.03, 0.05]) == pytest.approx((expected.low, expected.high))


def test_the_best_of_equal_arms_is_no_better() -> None:
    """Four arms that are right half of the time, on 60 rows of 30 images: the best one's value lies above one half
    by what choosing gives, and a choice on the other half does not."""
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(60)]
    groups = {row_id: str(int(row_id) // 2) for row_id in ids}
    values, halves = [], []
    for _ in range(60):
        table = {arm: dict(zip(ids, rng.integers(2, size=60).astype(float), strict=True)) for arm in "abcd"}
        found = best_of_several(table, groups)
        assert found is not None and found.n_arms == 4
        assert found.value == max(sum(own.values()) / 60 for own in table.values())
        values.append(found.value)
        halves.append(found.split_half)
    # of 60 tables: a standard error of 0.005 and of 0.008
    assert np.mean(values) == pytest.approx(0.5 + 1.03 * 0.5 / 60**0.5, abs=0.015)
    assert np.mean(halves) == pytest.approx(0.5, abs=0.025)


def test_a_choice_is_told_and_repeats() -> None:
    table = {"tuned": scores(40), "later": scores(60), "last": scores(50)}
    found = best_of_several(table, GROUPS)
    assert found is not None and found == best_of_several(table, dict(reversed(GROUPS.items())))
    assert (found.arm, found.value, found.split_half) == ("later", 0.6, pytest.approx(0.6))  # best on any half
    assert found.sentence.startswith("later is the best of 3 candidates on these very rows, which flatters it: 60.0 %")
    assert found.to_dict()["sentence"] == found.sentence
    assert best_of_several({"tuned": scores(40), "later": scores(60)}, GROUPS) is None
    assert best_of_several(table, dict.fromkeys(IDS, "one image")) is None
    others = ("untuned", "untuned@bare", "blank", "fewshot", "untuned16", "shuffled@bare")
    arms = {**{arm: scores(90) for arm in others}, "tuned": scores(40), "tuned@bare": scores(60), "mine": scores(50)}
    found = best_tuned(arms, GROUPS)
    assert found is not None and (found.arm, found.n_arms) == ("tuned@bare", 3)
