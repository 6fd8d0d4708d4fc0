"""95 % intervals of a mean and of a paired difference, for rows that are independent and for rows that share groups.

Which method, and why: exact enumeration and simulation in tests/evaluation/test_coverage.py. No torch; of scipy
`scipy.special` alone, for `scipy.stats` takes most of a second to import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

SIGNIFICANCE = 0.05
NORMAL_QUANTILE_975 = float(ndtri(0.975))
FEW_CHANGES = 10
"""Fewer groups than this that differ from the rest do not show how far a score can go: its whole range is taken."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Clusters:
    """Values of rows, and the independent units that they belong to, such as images."""

    values: np.ndarray
    """(n,) float64."""
    index: np.ndarray
    """(n,) the number of each row's group, from 0."""

    @classmethod
    def of(cls, values: np.ndarray, groups: Sequence[str]) -> Clusters:
        """Raises ValueError without rows, or where `groups` has another length."""
        if len(values) == 0 or len(values) != len(groups):
            raise ValueError(f"Expected one group per row, got {len(values)} rows and {len(groups)} groups; pass both")
        number = {name: i for i, name in enumerate(sorted(set(groups)))}
        return cls(np.asarray(values, dtype=np.float64), np.array([number[name] for name in groups]))

    @cached_property
    def sums(self) -> np.ndarray:
        return np.bincount(self.index, weights=self.values)

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.index).astype(np.float64)

    @property
    def are_rows(self) -> bool:
        """Every row is a group of its own."""
        return len(self.sizes) == len(self.values)

    @property
    def n_equal(self) -> float:
        """Groups of equal size that would weigh as these do: (sum of sizes)^2 / sum of squares (Kish 1965)."""
        return float(self.sizes.sum() ** 2 / (self.sizes**2).sum())

    @cached_property
    def are_alike(self) -> bool:
        """All values are equal, so that nothing says how groups hang together: each then counts as one row."""
        return float(self.values.var()) <= 1e-18 * float(np.square(self.values).max())

    @property
    def freedom(self) -> float:
        """Degrees of freedom of Student's t. n for rows, where 6 changes of 6 then just reach 5 %, as in McNemar's."""
        if self.are_rows or len(self.sizes) == 1:
            return float(len(self.values)) if self.are_rows else 0.0
        return self.n_equal - (not self.are_alike)

    def effective_rows(self, leverage: int) -> float:
        """Independent rows that would be worth as much: n over the design effect (Kish 1965), 1 to n.

        The variance of the mean between groups is that of linearised residuals, divided by 1 - share of the rows to
        the power `leverage`: 1 as in HC2, 2 as in HC3 (MacKinnon & White 1985), where few groups need more.
        """
        n = float(len(self.values))
        if self.are_rows:
            return n
        if len(self.sizes) == 1 or self.are_alike:
            return self.n_equal
        residuals = self.sums - self.sizes * self.values.mean()
        variance = float((residuals**2 / (1 - self.sizes / n) ** leverage).sum()) / n**2
        return max(1.0, min(n, float(self.values.var()) / variance)) if variance > 0 else n

    def method(self, name: str) -> str:
        return name if self.are_rows else f"{name} by group"


def mean_interval(clusters: Clusters, *, is_share: bool | None = None) -> tuple[Interval, str]:
    """95 % interval of one arm's mean score, and the name of its method.

    Wilson's for rows that are right or wrong; for graded scores Student's t over the rows and two more at the ends of
    what was seen, so that it has a width. Both count effective rows where rows share groups. `is_share` says that
    graded scores are means of right and wrong, for which Wilson's is wider than need be.
    """
    values = clusters.values
    n = clusters.effective_rows(leverage=2)
    if is_share if is_share is not None else bool(np.isin(values, [0.0, 1.0]).all()):
        quantile = NORMAL_QUANTILE_975 if clusters.are_rows else student_quantile(clusters.freedom)
        return wilson_interval(min(n, float(values.mean()) * n), n, quantile), clusters.method("Wilson")
    low, high = float(values.min()), float(values.max())
    within_one = _within_one(values)
    ends = (0.0, 1.0) if within_one and _few_differ(clusters) else (low, high)
    interval, _ = _between_ends(clusters, n, ends)
    name = "Student's t" if low < high or within_one else "Student's t, of scores all alike"
    return _inside(interval, 0.0, 1.0) if within_one else interval, clusters.method(name)


def difference_interval(clusters: Clusters, scores: np.ndarray) -> tuple[Interval, float, str]:
    """95 % interval of the mean paired difference, the p-value that belongs to it, and the name of its method.

    Tango's score interval where the `scores` of both arms are right or wrong, else Student's t over the rows and two
    more, one at each end of how far these scores can differ.
    """
    values, n = clusters.values, clusters.effective_rows(leverage=1)
    if np.isin(scores, [0.0, 1.0]).all():
        share = n / len(values)
        only_first, only_second = (share * float((sign * values > 0).sum()) for sign in (-1, 1))
        interval = tango_interval(only_first, only_second, n, student_quantile(clusters.freedom))
        changed = only_first + only_second
        score = (only_second - only_first) / math.sqrt(changed) if changed else 0.0
        return interval, 2 * student_tail(abs(score), clusters.freedom), clusters.method("Tango's score")
    within_one = _within_one(scores)
    end = float(abs(values).max())
    if _few_differ(clusters):
        end = 1.0 if within_one else max(end, float(np.ptp(scores)))
    interval, score = _between_ends(clusters, n, (-end, end))
    interval = _inside(interval, -1.0, 1.0) if within_one else interval
    return interval, 2 * student_tail(abs(score), clusters.freedom), clusters.method("Student's t")


def _within_one(values: np.ndarray) -> bool:
    return float(values.min()) >= 0 and float(values.max()) <= 1


def _few_differ(clusters: Clusters) -> bool:
    means = clusters.sums / clusters.sizes
    return int((abs(means - np.median(means)) > 1e-9 * float(abs(means).max())).sum()) < FEW_CHANGES


def _inside(interval: Interval, low: float, high: float) -> Interval:
    return max(low, interval[0]), min(high, interval[1])


def _between_ends(clusters: Clusters, n: float, ends: Interval) -> tuple[Interval, float]:
    """Student's t for `n` effective rows and one more at each end: what the rule of three is for shares; and the mean
    over its standard error."""
    values, low, high = clusters.values, *ends
    mean = (n * float(values.mean()) + low + high) / (n + 2)
    square = (n * float((values**2).mean()) + low**2 + high**2) / (n + 2)
    error = math.sqrt(max(0.0, square - mean**2) / (n + 2))
    half = student_quantile(clusters.freedom) * error if error else 0.0
    return (mean - half, mean + half), mean / error if error else 0.0


def wilson_interval(total: float, n: float, quantile: float = NORMAL_QUANTILE_975) -> Interval:
    """95 % score interval of a share `total / n` (Wilson 1927), inside 0..1 and never of zero width.

    Both may be fractional: for scores between 0 and 1 the interval is then wider than need be, as their variance is at
    most that of a share. Raises ValueError unless n >= 1 and 0 <= total <= n.
    """
    if not n >= 1 or not 0 <= total <= n:
        raise ValueError(f"Expected n >= 1 and a total in 0..n, got total {total!r} and n {n!r}; score some rows first")
    if math.isinf(quantile):
        return 0.0, 1.0
    share, z2 = total / n, quantile**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # at both ends the formula is exact and its rounding is not
    return (0.0 if total == 0 else max(0.0, centre - half)), (1.0 if total == n else min(1.0, centre + half))


def tango_interval(only_first: float, only_second: float, n: float, quantile: float = NORMAL_QUANTILE_975) -> Interval:
    """95 % score interval of the difference (only_second - only_first) / n of two paired shares (Tango 1998).

    The differences whose score statistic, with the variance that they themselves imply, stays within `quantile`. Never
    of zero width. Counts may be fractional.
    """
    if math.isinf(quantile):
        return -1.0, 1.0

    def statistic(difference: float) -> float:
        b = (2 * n - only_second + only_first) * difference - only_second - only_first
        root = math.sqrt(max(0.0, b * b + 8 * n * only_first * difference * (1 - difference)))
        variance = n * (max(0.0, (root - b) / (2 * n)) + difference * (1 - difference))
        distance = only_second - only_first - n * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    estimate = (only_second - only_first) / n
    found = []
    for end in (-1.0, 1.0):
        inside, outside = estimate, end
        for _ in range(60):  # halves: it falls from one end to the other
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(statistic(middle)) <= quantile else (inside, middle)
        found.append(outside if abs(outside) == 1 else inside)
    return found[0], found[1]


def student_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t with `freedom` degrees, for t >= 0; 1/2 without any freedom."""
    return float(stdtr(freedom, -t)) if freedom > 0 else 0.5


def student_quantile(freedom: float) -> float:
    """The t that 2.5 % lie above; infinite below a tenth of a degree, where an interval would be everything."""
    return -float(stdtrit(freedom, SIGNIFICANCE / 2)) if freedom >= 0.1 else math.inf
