"""Every statistic against scipy, statsmodels or a formula written out another way."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import linalg, optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa as reference_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from vlmft.evaluation.compare import arm_interval, compare, holm, mcnemar_exact, sign_flip_p_value
from vlmft.evaluation.grading import Verdict, cohens_kappa
from vlmft.evaluation.intervals import (
    Clusters,
    difference_interval,
    mean_interval,
    student_quantile,
    student_tail,
    tango_interval,
    wilson_interval,
)

DRAWN = random.Random(7)


@pytest.mark.parametrize("freedom", [0.1, 0.5, 1, 1.36, 2, 5, 29.3, 100, 500, 1e5])
def test_student(freedom: float) -> None:
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    for t in (1e-6, 0.01, 0.5, 1.0, 2.0, 5.0, 30.0):
        assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-8)


def test_student_without_freedom() -> None:
    assert math.isinf(student_quantile(0.0)) and math.isinf(student_quantile(-1.0))
    assert student_tail(0.0, 5) == student_tail(3.0, 0.0) == 0.5


@pytest.mark.parametrize("n", [1, 2, 7, 30, 998])
def test_wilson_is_statsmodels(n: int) -> None:
    for total in {0, 1, n // 3, n - 1, n}:
        expected = proportion_confint(total, n, method="wilson")
        assert wilson_interval(total, n) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_is_statsmodels() -> None:
    for first, second in [(0, 0), (0, 6), (3, 9), (69, 83), (400, 460), (1100, 1180), (2500, 2600)]:
        expected = mcnemar([[0, first], [second, 0]], exact=True).pvalue if first + second else 1.0
        assert mcnemar_exact(first, second) == pytest.approx(min(1.0, expected), rel=1e-9)


@pytest.mark.parametrize("pair", [(100_000, 101_000), (50_000, 60_000), (500_000, 501_000), (3, 1000), (999, 1100)])
def test_mcnemar_of_any_size(pair: tuple[int, int]) -> None:
    """scipy's incomplete beta function, which is right to about 1e-12 here."""
    assert mcnemar_exact(*pair) == pytest.approx(2 * stats.binom.cdf(min(pair), sum(pair), 0.5), rel=1e-9)


@pytest.mark.slow
def test_holm_is_statsmodels() -> None:
    for n in (1, 2, 5, 20):
        p_values = [DRAWN.random() ** 3 for _ in range(n)]
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([0.01, 0.01, 0.01]) == pytest.approx([0.03] * 3)  # ties


def test_kappa_is_statsmodels() -> None:
    for _ in range(20):
        n = DRAWN.randint(2, 60)
        pairs = [(DRAWN.random() < 0.6, DRAWN.random() < 0.5) for _ in range(n)]
        table = np.zeros((2, 2))
        for one, other in pairs:
            table[int(one), int(other)] += 1
        verdicts = [
            {(str(i), ""): Verdict(str(i), (), "", "accept" if pair[who] else "reject") for i, pair in enumerate(pairs)}
            for who in (0, 1)
        ]
        found = cohens_kappa("a", verdicts[0], "b", verdicts[1]).kappa
        expected = reference_kappa(table).kappa
        assert found is None if math.isnan(expected) else found == pytest.approx(expected)


def profile_statistic(only_first: int, only_second: int, n: int, difference: float) -> float:
    """The score statistic of a difference, its nuisance share found by a search of the likelihood."""

    def loss(share: float) -> float:
        shares = share + difference, share, 1 - 2 * share - difference
        counts = only_second, only_first, n - only_first - only_second
        return -sum(c * math.log(max(s, 1e-300)) for c, s in zip(counts, shares, strict=True))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    return (only_second - only_first - n * difference) / math.sqrt(n * (2 * share + difference - difference**2))


@pytest.mark.parametrize(
    ("only_first", "only_second", "n"), [(7, 1, 21), (0, 3, 20), (69, 83, 2500), (4, 4, 9), (2, 30, 60)]
)
def test_tango_by_the_likelihood(only_first: int, only_second: int, n: int) -> None:
    low, high = tango_interval(only_first, only_second, n)
    for end, sign in ((low, 1), (high, -1)):
        # the search of a flat likelihood is right to 1e-8, its root to about 1e-6
        assert sign * profile_statistic(only_first, only_second, n, end) == pytest.approx(1.959964, abs=1e-4)


def test_tango_of_a_published_table() -> None:
    """Airway hyper-responsiveness before and after transplantation: 1, 1, 7, 12 of 21 (Fagerland, Lydersen & Laake
    2014, "Recommended tests and confidence intervals for paired binomial proportions")."""
    assert tango_interval(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert tango_interval(1, 7, 21) == pytest.approx((0.026, 0.517), abs=5e-4)


def test_tango_at_the_ends() -> None:
    z2 = 1.959963984540054**2
    assert tango_interval(0, 0, 12) == pytest.approx((-z2 / (12 + z2), z2 / (12 + z2)))
    assert tango_interval(0, 12, 12)[1] == 1.0 and tango_interval(12, 0, 12)[0] == -1.0
    assert tango_interval(0, 5, 9, math.inf) == (-1.0, 1.0)


def clustered() -> Clusters:
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 9, 25)
    index = np.repeat(np.arange(25), sizes)
    return Clusters(rng.normal(0, 1, len(index)) + rng.normal(0, 0.7, 25)[index], index)


@pytest.mark.parametrize(("leverage", "power"), [(1, -0.5), (2, -1.0)])
def test_variance_between_groups_by_matrices(leverage: int, power: float) -> None:
    """CR2 and CR3 of a regression on nothing but its constant (Bell & McCaffrey 2002), as they are written down."""
    clusters = clustered()
    n = len(clusters.values)
    residuals, total = clusters.values - clusters.values.mean(), 0.0
    for group in range(25):
        own = residuals[clusters.index == group]
        leave = np.eye(len(own)) - np.full((len(own), len(own)), 1 / n)
        total += float(np.ones(len(own)) @ linalg.fractional_matrix_power(leave, power).real @ own) ** 2
    assert clusters.values.var() / clusters.effective_rows(leverage) == pytest.approx(total / n**2)


def test_many_groups_agree_with_the_bootstrap() -> None:
    """Of 300 groups of unequal size scipy's bootstrap by group has the same width, within 6 %."""
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 6, 300)
    index = np.repeat(np.arange(300), sizes)
    values = np.clip(0.1 + rng.normal(0, 0.2, len(index)) + rng.normal(0, 0.2, 300)[index], -1, 1)
    clusters = Clusters(values, index)
    data = (clusters.sums, clusters.sizes)
    reference = stats.bootstrap(
        data, lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, n_resamples=4000, rng=1, method="percentile"
    ).confidence_interval
    (low, high), _, method = difference_interval(clusters, np.stack([0.5 - values / 2, 0.5 + values / 2]))
    assert high - low == pytest.approx(reference.high - reference.low, rel=0.06)
    assert (low + high) / 2 == pytest.approx((reference.low + reference.high) / 2, abs=0.1 * (high - low))
    assert method == "Student's t by group"


def test_sign_flips_are_scipys() -> None:
    rng = np.random.default_rng(3)
    for sums in (rng.normal(0.5, 1, 9), rng.integers(-5, 7, 9).astype(float), np.array([0.25] * 7 + [-0.25])):
        expected = stats.permutation_test(
            (sums,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=np.inf
        ).pvalue
        assert sign_flip_p_value(sums)[0] == pytest.approx(expected)


def test_graded_rows_are_a_t_test_of_rows_and_two_more() -> None:
    differences = np.random.default_rng(5).normal(0.1, 0.2, 60).clip(-1, 1)
    most = float(abs(differences).max())
    error = np.concatenate([differences, [most, -most]]).std() / math.sqrt(62)
    mean = differences.sum() / 62
    (low, high), p_value, _ = difference_interval(
        Clusters(differences, np.arange(60)), np.stack([0 * differences, differences])
    )
    assert (low, high) == pytest.approx((mean - stats.t.ppf(0.975, 60) * error, mean + stats.t.ppf(0.975, 60) * error))
    assert p_value == pytest.approx(2 * stats.t.sf(mean / error, 60))


def test_odd_sets() -> None:
    """One row, one group, all ties, ids that come twice, what is no number."""
    one = compare("a", {"x": 0.0}, "b", {"x": 1.0}, {"x": "g"})
    assert (one.p_value, one.verdict) == (1.0, "not distinguishable") and one.interval[0] <= 0 and one.interval[1] == 1
    graded = compare("a", {"x": 0.2}, "b", {"x": 0.9}, {"x": "g"})
    assert graded.verdict == "not distinguishable" and graded.interval[0] <= 0 <= graded.interval[1]
    ties = compare("a", dict.fromkeys("xyz", 0.3), "b", dict.fromkeys("xyz", 0.3), dict.fromkeys("xyz", "g"))
    assert (ties.p_value, ties.difference) == (1.0, 0.0) and ties.interval[0] < 0 < ties.interval[1]
    assert arm_interval(dict.fromkeys("xyz", 0.3), dict.fromkeys("xyz", "g"))[0] == (0.0, 1.0)
    assert mean_interval(Clusters(np.array([1.0, 1.0]), np.array([0, 0])))[0] == (0.0, 1.0)
    with pytest.raises(ValueError, match="got nan in 'scores' for row x"):
        arm_interval({"x": math.nan}, {"x": "g"})
    with pytest.raises(ValueError, match="got 0 rows and 0 groups"):
        arm_interval({}, {})
    with pytest.raises(ValueError, match="got 2 rows and 3 groups"):
        Clusters.of(np.zeros(2), ["a", "b", "c"])
