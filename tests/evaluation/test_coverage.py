"""How often the intervals hold the truth and the tests cry wolf: exact enumeration for independent rows, simulation
for rows that share images. A 95 % interval is held to 93 %, a test at 5 % to 6 %."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from scipy.special import expit

from vlmft.evaluation.compare import mcnemar_exact, paired_test
from vlmft.evaluation.intervals import Clusters, difference_interval, mean_interval, tango_interval

HELD = 0.93
SHARES = (0.0, 0.0005, 0.002, 0.01, 0.03, 0.08, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
"""Of rows that only one arm gets right: near 0 where arms agree (shares near 0 or 1, or high correlation)."""


def paired_rows(only_first: int, only_second: int, n: int) -> tuple[Clusters, np.ndarray]:
    first = np.repeat([1.0, 0.0, 1.0], [only_first, only_second, n - only_first - only_second])
    second = np.repeat([0.0, 1.0, 1.0], [only_first, only_second, n - only_first - only_second])
    return Clusters(second - first, np.arange(n)), np.stack([first, second])


def exact_coverage(n: int, most: int, bounds: dict[tuple[int, int], tuple[float, float]]) -> Iterator[float]:
    """For each pair of shares: the chance that the interval holds their difference; outcomes with more than `most`
    changes are left out, and pairs of shares that make them likelier than 1e-6."""
    only_first, only_second = np.array(list(bounds)).T
    low, high = np.array(list(bounds.values())).T
    log = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    same = n - only_first - only_second
    ways = log[n] - log[only_first] - log[only_second] - log[same]
    for p_first, p_second in product(SHARES, SHARES):
        if p_first <= p_second and p_first + p_second <= 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = (
                    np.where(count > 0, count * np.log(share), 0.0)
                    for count, share in ((only_first, p_first), (only_second, p_second), (same, 1 - p_first - p_second))
                )
                chance = np.exp(ways + sum(terms))
            difference = p_second - p_first
            if chance.sum() > 1 - 1e-6:
                yield float(chance[(low <= difference + 1e-9) & (difference - 1e-9 <= high)].sum())


def bounds_of(n: int, most: int) -> dict[tuple[int, int], tuple[float, float]]:
    return {
        (a, b): paired_test(*paired_rows(a, b, n))[0]
        for a in range(most + 1)
        for b in range(most + 1 - a)
        if a + b <= n
    }


def held_for_rows(n: int) -> float:
    most = min(n, 190)
    found = list(exact_coverage(n, most, bounds_of(n, most)))
    assert len(found) >= 30  # of 500 rows those shares that make more than `most` changes unlikely
    return min(found)


@pytest.mark.parametrize("n", [5, 6, 10, 15, 20])
def test_differences_of_rows_are_held(n: int) -> None:
    assert held_for_rows(n) >= HELD


@pytest.mark.slow
@pytest.mark.parametrize("n", [*range(7, 20), 22, 25, 28, 30, 35, 40, 50, 75, 100, 200, 500])
def test_differences_of_any_number_of_rows_are_held(n: int) -> None:
    assert held_for_rows(n) >= HELD


def test_the_defects_are_seen() -> None:
    """Tango's with the normal quantile and no word of McNemar's test, and Wald's, which has no width without changes:
    neither holds what it promises."""
    pairs = [(a, b) for a in range(16) for b in range(16 - a)]
    plain = {(a, b): tango_interval(a, b, 15) for a, b in pairs}
    assert min(exact_coverage(15, 15, plain)) < 0.92
    wald = {}
    for a, b in pairs:
        half = 1.96 * math.sqrt(a + b - (b - a) ** 2 / 15) / 15
        wald[a, b] = ((b - a) / 15 - half, (b - a) / 15 + half)
    assert min(exact_coverage(15, 15, wald)) < 0.2
    assert mcnemar_exact(0, 15) < 0.05


# --- rows that share images

SHAPES = {
    "6x30": [30] * 6,
    "8x25": [25] * 8,
    "10x20": [20] * 10,
    "30x4": ([1, 2, 3, 4, 5, 6, 7] * 5)[:30],
    "15x8": [8] * 15,
    "50x2": [2] * 50,
    "12 unequal": [2, 3, 3, 4, 5, 6, 8, 10, 12, 15, 25, 30],
    "one of 8 large": [2, 3, 4, 5, 5, 6, 10, 60],
}
WORLDS = {
    "half right": (0.0, 1.0, 1.0, 0.0, False),
    "mostly right": (2.5, 1.0, 0.7, 0.0, False),
    "nearly all right": (4.0, 1.0, 0.5, 0.0, False),
    "independent": (0.0, 0.0, 0.0, 0.0, False),
    "copies": (0.0, 1.0, 1.0, 0.0, True),
    "images decide": (0.0, 3.0, 2.0, 0.0, False),
    "an effect": (0.0, 1.0, 1.0, 1.5, False),
    "an effect at the top": (2.5, 1.0, 0.7, 1.0, False),
    "an effect in copies": (0.0, 1.0, 0.5, 2.0, True),
}
"""Log odds of a right answer; standard deviations between images, and between arms on an image; effect; whether all
rows of an image are copies of one."""


class Drawn:
    """What `n` draws of a world came to."""

    def __init__(self, shape: str, world: str, n: int, seed: int = 0) -> None:
        sizes = np.array(SHAPES[shape])
        level, between, own, effect, are_copies = WORLDS[world]
        rng = np.random.default_rng(seed)
        index = np.repeat(np.arange(len(sizes)), sizes)
        spread = math.hypot(between, own)
        many = rng.normal(0, spread, 400_000)
        truth = [float(expit(level + by + many).mean()) for by in (0.0, effect)]
        false, held, held_arm, contradicted = 0, 0, [0, 0], 0
        for _ in range(n):
            odds = level + rng.normal(0, between, (1, len(sizes))) + rng.normal(0, own, (2, len(sizes)))
            odds += np.array([[0.0], [effect]])
            drawn = rng.random((2, len(sizes)))[:, index] if are_copies else rng.random((2, len(index)))
            scores = (drawn < expit(odds)[:, index]).astype(float)
            (low, high), _, p_value, _ = paired_test(Clusters(scores[1] - scores[0], index), scores)
            false += p_value < 0.05
            held += low <= truth[1] - truth[0] <= high
            contradicted += (p_value < 0.05) != (low > 0 or high < 0)
            for arm in (0, 1):
                (low, high), _ = mean_interval(Clusters(scores[arm], index))
                held_arm[arm] += low <= truth[arm] <= high
        self.false, self.held, self.held_arms = false / n, held / n, [one / n for one in held_arm]
        self.contradicted = contradicted


@pytest.mark.parametrize(
    "shape", ["10x20", *(pytest.param(s, marks=pytest.mark.slow) for s in ("6x30", "8x25", "30x4"))]
)
def test_questions_on_one_image_raise_no_false_alarm(shape: str) -> None:
    """The defect: McNemar's test over rows and the percentile bootstrap gave 7 to 10 % false verdicts here."""
    found = Drawn(shape, "half right", 2000)
    assert found.false <= 0.06
    assert min(found.held, *found.held_arms) >= HELD
    assert found.contradicted == 0


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_questions_on_one_image_in_any_world(shape: str, world: str) -> None:
    """Two standard errors of 2,000 draws are one point below `HELD`."""
    found = Drawn(shape, world, 2000, seed=1)
    if WORLDS[world][3] == 0:
        assert found.false <= 0.06
    assert found.held >= HELD - 0.01
    assert min(found.held_arms) >= HELD - 0.01
    assert found.contradicted == 0


def test_rows_taken_for_independent_raise_false_alarms() -> None:
    """The defect, seen: no effect, 10 images of 20 questions that are right and wrong together, McNemar over rows."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        odds = rng.normal(0, 1, (2, 10)) + rng.normal(0, 1, 10)
        right = rng.random((2, 10, 20)) < expit(odds)[:, :, None]
        alarms += mcnemar_exact(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())) < 0.05
    assert alarms / 300 > 0.25


# --- graded scores


def graded(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    if kind == "few changed":
        return np.where(rng.random(n) < 0.05, rng.uniform(0.1, 1, n), 0.0)
    if kind == "some changed":
        return np.where(rng.random(n) < 0.3, rng.uniform(0.1, 1, n) * rng.choice([1, 1, 1, -1], n), 0.0)
    if kind == "all changed":
        return np.clip(rng.normal(0.05, 0.15, n), -1, 1)
    return rng.exponential(0.1, n).clip(0, 1)


GRADED = {"few changed": 0.05 * 0.55, "some changed": 0.3 * 0.55 / 2, "all changed": 0.05, "skewed": 0.1}


@pytest.mark.parametrize("n", [5, 12, 40, 120, 500])
@pytest.mark.parametrize("kind", GRADED)
def test_graded_differences_are_held(kind: str, n: int) -> None:
    """400 draws: one standard error is 1.1 points, two below 93 % are 91 %. Signs are flipped where that is quick."""
    rng, held = np.random.default_rng(n), 0
    for _ in range(400):
        differences = graded(kind, rng, n)
        scores = np.stack([0.5 - differences / 2, 0.5 + differences / 2])
        clusters = Clusters(differences, np.arange(n))
        (low, high), _, _ = difference_interval(clusters, scores)
        held += low <= GRADED[kind] <= high
        if n <= 12:
            (low, high), _, p_value, _ = paired_test(clusters, scores)
            assert (p_value < 0.05) == (low > 0 or high < 0)
    assert held / 400 >= 0.91
