"""Did it get better? Two arms on the same rows: an interval of the difference, a p-value, a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import betainc

from vlmft.evaluation.intervals import SIGNIFICANCE, Clusters, difference_interval, mean_interval
from vlmft.evaluation.numbers import SHARE, Unit, console, p_words

Verdict = Literal["better", "worse", "not distinguishable"]

SMALLEST_SIGNIFICANT = 6
"""Rows or groups that must all change the same way before any exact sign test gives p < 0.05 (2 / 2**6 = 0.031)."""
SEED = 12345
RESAMPLES = 10_000
FEW_GROUPS = 16
"""Up to here all 2**16 ways to swap the arms are tried."""
COUNTED = 10_000
"""Disagreements up to which a binomial tail is added up in whole numbers: hundredths of a second."""
_STEPS = 200_000_000
"""Upper limit of additions for an exact distribution: half a second."""
_DRAWS_AT_ONCE = 1_000_000
"""Bounds memory at about 20 MB, whatever the number of rows."""


@dataclass(frozen=True)
class Comparison:
    """Arm `second` against arm `first` on the same rows. Scores are per row, 0..1 for every metric of ours."""

    first: str
    second: str
    n: int
    n_groups: int
    """Independent units, such as images: questions on one image are right and wrong together."""
    first_value: float
    second_value: float
    difference: float
    """`second_value` - `first_value`."""
    interval: tuple[float, float]
    """95 % interval of `difference`. It excludes 0 where `p_value` is below 0.05, and nowhere else."""
    interval_method: str
    p_value: float
    p_test: str
    only_first: int
    """Rows in which the first arm scored higher; for scores of 0 and 1: only the first is right."""
    only_second: int
    verdict: Verdict
    kind: str = "groups"
    """What the groups are, such as images."""
    is_binary: bool = True
    """All scores are 0 or 1."""

    @property
    def rows_sentence(self) -> str:
        return rows_sentence(self.n, self.n_groups, self.kind)

    @property
    def n_sentence(self) -> str:
        """ "n = 500", or "n = 120 rows, 6 images"."""
        return f"n = {self.rows_sentence if self.n_groups < self.n else self.n}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: strings, finite numbers, and the interval as a list of two."""
        return {**asdict(self), "interval": list(self.interval)}


def compare(
    first_name: str,
    first: Mapping[str, float],
    second_name: str,
    second: Mapping[str, float],
    groups: Mapping[str, str],
    kind: str = "groups",
) -> Comparison:
    """Compares the scores of two arms by row id; `groups` names each row's independent unit, such as its image.

    Raises ValueError where the arms hold different ids, no row at all, a score that is not finite, or a row without a
    group. Depends neither on the order of the rows nor on anything random beyond `SEED`.
    """
    ids = sorted(expect_same_ids(first_name, first, second_name, second))
    scores = np.stack([_finite(first_name, first, ids), _finite(second_name, second, ids)])
    differences = scores[1] - scores[0]
    clusters = Clusters.of(differences, _groups_of(ids, groups))
    interval, method, p_value, p_test = paired_test(clusters, scores)
    difference = float(differences.mean())
    return Comparison(
        first=first_name,
        second=second_name,
        n=len(ids),
        n_groups=len(clusters.sizes),
        first_value=float(scores[0].mean()),
        second_value=float(scores[1].mean()),
        difference=difference,
        interval=interval,
        interval_method=method,
        p_value=p_value,
        p_test=p_test,
        only_first=int((differences < 0).sum()),
        only_second=int((differences > 0).sum()),
        verdict=_verdict(difference, p_value),
        kind=kind,
        is_binary=bool(np.isin(scores, [0.0, 1.0]).all()),
    )


def paired_test(clusters: Clusters, scores: np.ndarray) -> tuple[tuple[float, float], str, float, str]:
    """95 % interval of the mean difference and its method, two-sided p-value and its test, which never contradict:
    the interval excludes 0 where p < 0.05, and nowhere else.

    `clusters` has the differences, `scores` (2, n) both arms. For rows that are right or wrong and independent, the
    exact test of McNemar, whose p-value is below 0.05 only where Tango's statistic is beyond its quantile; else the
    larger p-value of sign flips by group, which assume no distribution, and of the interval's own test.
    """
    (low, high), p_interval, method = difference_interval(clusters, scores)
    if clusters.are_rows and np.isin(scores, [0.0, 1.0]).all():
        changes = int((clusters.values < 0).sum()), int((clusters.values > 0).sum())
        p_value, p_test = mcnemar_exact(*changes), "exact McNemar"
    else:
        p_value, p_test = max(sign_flip_p_value(clusters.sums), (p_interval, method))
    if p_value >= SIGNIFICANCE:  # what an exact test does not reject belongs to what is possible
        low, high = min(low, 0.0), max(high, 0.0)
    return (low, high), method, p_value, p_test


def _verdict(difference: float, p_value: float) -> Verdict:
    if p_value >= SIGNIFICANCE:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"


def rows_sentence(n: int, n_groups: int, kind: str = "groups") -> str:
    """ "500 rows", or "120 rows, 6 images" where rows share them."""
    units = "" if n_groups == n else f", {n_groups} {kind if n_groups > 1 else kind.removesuffix('s')}"
    return f"{n} row{'s' if n > 1 else ''}{units}"


@dataclass(frozen=True)
class Adjusted:
    """One of several comparisons with the same first arm, judged as one of several."""

    comparison: Comparison
    p_value: float
    """Holm's, for the whole table; equals the comparison's own where it is the only one."""
    verdict: Verdict
    """By the adjusted p-value; the interval is the comparison's own."""
    n_comparisons: int = 1

    @property
    def verdict_sentence(self) -> str:
        """The verdict; with the reason where it is another than the comparison's own p-value and interval say."""
        if self.verdict == self.comparison.verdict:
            return self.verdict
        return f"{self.verdict} as one of {self.n_comparisons} comparisons"

    def sentence(self, unit: Unit = SHARE) -> str:
        """The paired result of two arms, to be quoted alone; the verdict counts in how many were compared."""
        pair, several = self.comparison, self.n_comparisons > 1
        holm = f" (Holm for {self.n_comparisons}: {self.p_value:.2g})" if several else ""
        up, down = ("fixed", "broken") if pair.is_binary else ("up", "down")
        measured = console(
            f"{unit.difference(pair.difference)} (95 % interval {unit.difference_interval(pair.interval)})"
        )
        return (
            f"{pair.first} -> {pair.second}: {measured}, {pair.p_test} {p_words(pair.p_value)}{holm}, "
            f"{pair.only_second} rows {up}, {pair.only_first} {down}, {pair.n_sentence}: {self.verdict_sentence}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the comparison's, and "p_holm"; the verdict is the adjusted one."""
        return {**self.comparison.to_dict(), "p_holm": self.p_value, "verdict": self.verdict}


def adjusted(comparisons: Sequence[Comparison]) -> list[Adjusted]:
    """The comparisons of one table, in their order, with Holm's correction: of twenty equal arms one looks better."""
    p_values = holm([one.p_value for one in comparisons])
    return [
        Adjusted(one, p_value, _verdict(one.difference, p_value), len(comparisons))
        for one, p_value in zip(comparisons, p_values, strict=True)
    ]


def arm_interval(
    scores: Mapping[str, float], groups: Mapping[str, str], *, is_share: bool | None = None
) -> tuple[tuple[float, float], str, int]:
    """95 % interval of one arm's mean score, the name of its method, and the number of groups; see `mean_interval`.
    Raises ValueError as `compare` does."""
    ids = sorted(scores)
    clusters = Clusters.of(_finite("scores", scores, ids), _groups_of(ids, groups))
    return *mean_interval(clusters, is_share=is_share), len(clusters.sizes)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all tests together, in their order (Holm 1979, "A simple sequentially rejective ...")."""
    adjusted_values, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted_values[i] = largest
    return adjusted_values


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value that both arms are equally good, from the rows on which they disagree (McNemar 1947, exact).

    Twice the binomial tail at probability 1/2, at most 1; in whole numbers, which Python divides correctly, up to
    `COUNTED` disagreements. Raises ValueError on a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"Expected counts of rows, got {only_first!r} and {only_second!r}; count the disagreements")
    n, few = only_first + only_second, min(only_first, only_second)
    if n > COUNTED:
        return float(min(1.0, 2 * betainc(n - few, few + 1, 0.5)))
    ways = total = 1
    for k in range(few):
        ways = ways * (n - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / (1 << n))


def sign_flip_p_value(sums: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, str]:
    """Two-sided p-value that swapping the arms within groups changes nothing (Fisher's randomisation test), and which.

    `sums`: (n_groups,) each group's summed difference. All ways to swap count where sums are whole numbers or groups
    few; else the signs are drawn `resamples` times, and counting the data itself as one draw keeps the test valid.
    """
    sums = sums[abs(sums) > 1e-9 * float(abs(sums).max())]
    whole, span = np.rint(abs(sums)).astype(int), round(float(abs(sums).sum()))
    if whole.all() and np.allclose(abs(sums), whole, rtol=0, atol=1e-9) and len(sums) * span <= _STEPS:
        chance = np.ones(1)  # of each sum of the flipped ones
        for step in whole:
            flipped = np.zeros(len(chance) + step)
            flipped[: len(chance)] += chance / 2
            flipped[step:] += chance / 2
            chance = flipped
        totals = abs(span - 2 * np.arange(len(chance)))
        return min(1.0, float(chance[totals >= abs(round(float(sums.sum())))].sum())), "exact sign flips by group"
    observed = abs(sums.sum()) - 1e-9 * abs(sums).sum()  # a sum added up in another order must count as equal
    if len(sums) <= FEW_GROUPS:
        every = np.zeros(1)
        for step in sums:
            every = np.concatenate([every + step, every - step])
        return float((abs(every) >= observed).mean()), "exact sign flips by group"
    generator, step = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // len(sums))
    as_extreme = 0
    for start in range(0, resamples, step):
        drawn = generator.integers(2, size=(min(step, resamples - start), len(sums)), dtype=np.int8)
        as_extreme += int((abs(sums.sum() - 2 * (drawn @ sums)) >= observed).sum())
    return (1 + as_extreme) / (1 + resamples), "sign-flip permutation by group"


def expect_same_ids(
    first_name: str, first: Mapping[str, Any], second_name: str, second: Mapping[str, Any]
) -> list[str]:
    """The ids, in the order of `first`. Raises ValueError where there are none or the two differ, naming some."""
    if not first and not second:
        raise ValueError(f"Expected rows in {first_name!r} and {second_name!r}, got none; answer some questions first")
    if first.keys() != second.keys():
        raise ValueError(
            f"Expected the same row ids in {first_name!r} and {second_name!r}, got "
            f"{_some(first.keys() - second.keys())} only in {first_name!r} and "
            f"{_some(second.keys() - first.keys())} only in {second_name!r}; score both on the same rows"
        )
    return list(first)


def _some(ids: set[str]) -> str:
    """ "3 (a, b, c)", with at most five names."""
    if not ids:
        return "0"
    return f"{len(ids)} ({', '.join(sorted(ids)[:5])}{', ...' if len(ids) > 5 else ''})"


def _finite(name: str, scores: Mapping[str, float], ids: Sequence[str]) -> np.ndarray:
    values = np.array([scores[row_id] for row_id in ids], dtype=np.float64)
    if not np.isfinite(values).all():
        row_id = ids[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise ValueError(f"Expected finite scores, got {scores[row_id]!r} in {name!r} for row {row_id}; score it wrong")
    return values


def _groups_of(ids: Sequence[str], groups: Mapping[str, str]) -> list[str]:
    missing = set(ids) - groups.keys()
    if missing:
        raise ValueError(f"Expected a group for every row, got none for {_some(missing)}; pass each row's image group")
    return [groups[row_id] for row_id in ids]
