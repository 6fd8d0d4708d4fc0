"""Format apart from skill, and what a test set can show."""

from __future__ import annotations

import pytest

from vlmft.evaluation.arms import pairs_of
from vlmft.evaluation.compare import adjusted, compare
from vlmft.evaluation.gains import (
    FormatAndSkill,
    detectable,
    format_and_skill,
    prompt_matrix,
    seeds_apart,
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
    assert found is not None and found.asked_otherwise == "untuned@bare"
    assert found.format_gain == pytest.approx(0.35)
    assert found.skill.comparison.difference == pytest.approx(0.05)
    assert found.skill.comparison.p_value == pytest.approx(2 / 2**5)
    assert found.skill.verdict == "not distinguishable"
    assert found.sentence.startswith(
        "Of +40.0 points, +35.0 are had by asking the untuned model otherwise (untuned@bare)"
    )


def test_a_gain_that_no_prompt_gives_is_skill() -> None:
    found = parted(untuned=20, fewshot=10, tuned=60)
    assert found is not None and (found.asked_otherwise, found.format_gain) == ("untuned", 0)
    assert found.skill.verdict == "better" and "none are had" in found.sentence
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


@pytest.mark.parametrize(
    ("n", "points"),
    [
        (100, (5.0, 8.8, 12.4, 15.2)),
        (500, (2.8, 4.0, 5.6, 6.8)),
        (1000, (2.0, 2.8, 4.0, 4.8)),
        (2500, (1.3, 1.8, 2.5, 3.1)),
    ],
)
def test_smallest_difference(n: int, points: tuple[float, ...]) -> None:
    """A table computed elsewhere, to a tenth of a point."""
    for discordance, expected in zip((0.05, 0.1, 0.2, 0.3), points, strict=True):
        assert 100 * smallest_difference(n, discordance) == pytest.approx(expected, abs=0.11)


def test_smallest_difference_by_simulation() -> None:
    """500 rows of which 10 % change, 70 of 100 of those for the better: a true difference of 4 points."""
    import numpy as np

    from vlmft.evaluation.compare import mcnemar_exact

    rng = np.random.default_rng(0)
    up = rng.binomial(500, 0.07, 2000)
    down = rng.binomial(500, 0.03, 2000)
    power = np.mean([mcnemar_exact(int(b), int(c)) < 0.05 for b, c in zip(down, up, strict=True)])
    assert smallest_difference(500) == pytest.approx(0.04, abs=0.001) and power == pytest.approx(0.8, abs=0.05)


def test_few_rows_show_little() -> None:
    assert smallest_difference(1) <= 1
    with pytest.raises(ValueError, match="at least one row"):
        smallest_difference(0)
    assert detectable(500, 500).startswith("500 rows show, in four cases of five, a difference of 4.0 points where 10%")
    assert detectable(500, 250).startswith("500 rows on 250 independent images show")


def test_seeds() -> None:
    assert seeds_apart([0.01, 0.03, 0.02]) == "3 seeds: mean +2.0 points, from +1.0 to +3.0"
