"""Did it get better? Two arms on the same rows: an interval of the difference, a p-value, a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["better", "worse", "not distinguishable"]

SIGNIFICANCE = 0.05
NORMAL_QUANTILE_975 = 1.959963984540054
SMALLEST_SIGNIFICANT = 6
"""Rows or groups that must all change the same way before any exact sign test gives p < 0.05 (2 / 2**6 = 0.031)."""
SEED = 12345
RESAMPLES = 10_000
"""The interval's ends then move by 0.05 points from seed to seed at 1,000 rows; by 0.3 with 200 resamples."""
MANY_GROUPS = 20_000
"""From here on groups that are alike are drawn by their number: one draw for all of a kind."""
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
    """95 % interval of `difference`, by `paired_bootstrap_interval`."""
    p_value: float
    p_test: str
    only_first: int
    """Rows in which the first arm scored higher; for scores of 0 and 1: only the first is right."""
    only_second: int
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: strings, finite numbers, and the interval as a list of two."""
        return {**asdict(self), "interval": list(self.interval)}


def compare(
    first_name: str,
    first: Mapping[str, float],
    second_name: str,
    second: Mapping[str, float],
    groups: Mapping[str, str],
) -> Comparison:
    """Compares the scores of two arms by row id; `groups` names each row's independent unit, such as its image.

    Raises ValueError where the arms hold different ids, no row at all, a score that is not finite, or a row without a
    group. Depends neither on the order of the rows nor on anything random beyond `SEED`.
    """
    ids = sorted(expect_same_ids(first_name, first, second_name, second))
    first_scores, second_scores = _finite(first_name, first, ids), _finite(second_name, second, ids)
    row_groups = _groups_of(ids, groups)
    differences = second_scores - first_scores
    only_first, only_second = int((differences < 0).sum()), int((differences > 0).sum())
    if np.isin([first_scores, second_scores], [0.0, 1.0]).all():
        p_test, p_value = "exact McNemar", mcnemar_exact(only_first, only_second)
    else:
        p_test, p_value = "sign-flip permutation by group", sign_flip_p_value(differences, row_groups)
    interval = paired_bootstrap_interval(differences, row_groups)
    n_groups = len(set(row_groups))
    return Comparison(
        first=first_name,
        second=second_name,
        n=len(ids),
        n_groups=n_groups,
        first_value=float(first_scores.mean()),
        second_value=float(second_scores.mean()),
        difference=float(differences.mean()),
        interval=interval,
        p_value=p_value,
        p_test=p_test,
        only_first=only_first,
        only_second=only_second,
        verdict=_verdict(interval, p_value, n_groups),
    )


def _verdict(interval: tuple[float, float], p_value: float, n_groups: int) -> Verdict:
    # Both must agree, because each is blind where the other sees. McNemar's test is exact for a handful of changed
    # rows, where the bootstrap is too sure (5 changes, all one way: an interval above 0, yet p = 0.0625), but it takes
    # the rows of one image for independent. The bootstrap knows groups, unless they are too few for it to vary.
    if p_value >= SIGNIFICANCE or n_groups < SMALLEST_SIGNIFICANT:
        return "not distinguishable"
    if interval[0] > 0:
        return "better"
    return "worse" if interval[1] < 0 else "not distinguishable"


@dataclass(frozen=True)
class Adjusted:
    """One of several comparisons with the same first arm, judged as one of several."""

    comparison: Comparison
    p_value: float
    """Holm's, for the whole table; equals the comparison's own where it is the only one."""
    verdict: Verdict
    """By the adjusted p-value; the interval is the comparison's own."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the comparison's, and "p_holm"; the verdict is the adjusted one."""
        return {**self.comparison.to_dict(), "p_holm": self.p_value, "verdict": self.verdict}


def adjusted(comparisons: Sequence[Comparison]) -> list[Adjusted]:
    """The comparisons of one table, in their order, with Holm's correction: of twenty equal arms one looks better."""
    p_values = holm([one.p_value for one in comparisons])
    return [
        Adjusted(one, p_value, _verdict(one.interval, p_value, one.n_groups))
        for one, p_value in zip(comparisons, p_values, strict=True)
    ]


def p_words(p_value: float) -> str:
    """ "p = 0.031"; a value too small for a float is no zero."""
    return f"p = {p_value:.2g}" if p_value > 0 else "p < 1e-300"


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all tests together, in their order (Holm 1979, "A simple sequentially rejective ...")."""
    found, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = largest
    return found


def mean_interval(scores: Mapping[str, float], groups: Mapping[str, str]) -> tuple[tuple[float, float], str]:
    """95 % interval of one arm's mean score, and the name of the method: Wilson's where rows are right or wrong, each
    a group of its own, else the bootstrap over groups; where groups are too few for that or all alike, Wilson's with
    the groups for rows. Scores outside 0..1 have no such way out, and the name says so. Raises ValueError as `compare`
    does."""
    ids = sorted(scores)
    values, row_groups = _finite("scores", scores, ids), _groups_of(ids, groups)
    if np.isin(values, [0.0, 1.0]).all() and len(set(row_groups)) == len(ids):
        return wilson_interval(float(values.sum()), len(ids)), "Wilson"
    sums, sizes = _group_sums(values, row_groups)
    # drawing from groups that are all alike gives a width of zero, and from very few nearly so
    alike = float(np.ptp(sums / sizes)) <= 1e-9 * float(abs(values).max())
    if not alike and len(sums) >= SMALLEST_SIGNIFICANT:
        return paired_bootstrap_interval(values, row_groups), "bootstrap by group"
    if values.min() >= 0 and values.max() <= 1:
        return wilson_interval(float(values.mean()) * len(sums), len(sums)), "Wilson by group"
    why = "which are all alike" if alike else f"of which {len(sums)} are too few"
    return paired_bootstrap_interval(values, row_groups), f"bootstrap by group, {why}"


def wilson_interval(total: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share `total / n` (Wilson 1927), inside 0..1 and never of zero width.

    `total` may be fractional: for scores between 0 and 1 the interval is then wider than need be, as their variance is
    at most that of a share. Raises ValueError unless n >= 1 and 0 <= total <= n.
    """
    if n < 1 or not 0 <= total <= n:
        raise ValueError(f"Expected n >= 1 and a total in 0..n, got total {total!r} and n {n!r}; score some rows first")
    share, z2 = total / n, NORMAL_QUANTILE_975**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # at both ends the formula is exact and its rounding is not
    return (0.0 if total == 0 else max(0.0, centre - half)), (1.0 if total == n else min(1.0, centre + half))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value that both arms are equally good, from the rows on which they disagree (McNemar 1947, exact).

    Twice the binomial tail at probability 1/2, at most 1. Summed in whole numbers, which neither overflow nor round:
    Python divides them correctly however long they are. Raises ValueError on a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"Expected counts of rows, got {only_first!r} and {only_second!r}; count the disagreements")
    n = only_first + only_second
    term = tail = 1
    for i in range(min(only_first, only_second)):
        term = term * (n - i) // (i + 1)
        tail += term
    p_value: float = 2 * tail / 2**n
    return min(1.0, p_value)


def paired_bootstrap_interval(
    differences: np.ndarray, groups: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `differences` (n,), resampling whole groups (Efron & Tibshirani 1993).

    Groups keep their rows together, so five questions on one image count as one observation. Takes seconds for 100,000
    groups. Raises ValueError without rows, or where `groups` has another length.
    """
    sums, sizes = _group_sums(differences, groups)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    if len(sums) >= MANY_GROUPS and len(set(zip(sums.tolist(), sizes.tolist(), strict=True))) <= MANY_GROUPS // 100:
        kinds, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
        drawn = generator.multinomial(len(sums), counts / len(sums), size=resamples)  # the same distribution
        means = (drawn @ kinds[0]) / (drawn @ kinds[1])
    else:
        for part in _parts(resamples, len(sums)):
            chosen = generator.integers(len(sums), size=(part.stop - part.start, len(sums)))
            means[part] = sums.take(chosen).sum(axis=1) / sizes.take(chosen).sum(axis=1)
    low, high = np.quantile(means, [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2])
    return float(low), float(high)


def sign_flip_p_value(
    differences: np.ndarray, groups: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED
) -> float:
    """Two-sided p-value that swapping the arms changes nothing, for scores of any kind (Fisher's randomisation test).

    The sign of each group's summed difference is drawn anew `resamples` times; counting the data itself as one draw
    keeps the test valid, so p is at least 1 / (resamples + 1). Raises ValueError as `paired_bootstrap_interval` does.
    """
    sums, _ = _group_sums(differences, groups)
    sums = sums[sums != 0]
    observed = abs(sums.sum()) - 1e-9 * abs(sums).sum()  # a sum added up in another order must count as equal
    generator = np.random.default_rng(seed)
    as_extreme = 0
    for part in _parts(resamples, len(sums)):
        flipped = generator.integers(2, size=(part.stop - part.start, len(sums)), dtype=np.int8)
        as_extreme += int((abs(sums.sum() - 2 * (flipped @ sums)) >= observed).sum())
    return (1 + as_extreme) / (1 + resamples)


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


def _group_sums(differences: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Per group: the sum of its differences and its number of rows, both float64 (n_groups,)."""
    if len(differences) == 0 or len(differences) != len(groups):
        raise ValueError(f"Expected one group per row, got {len(differences)} rows and {len(groups)} groups; pass both")
    number = {name: i for i, name in enumerate(sorted(set(groups)))}
    index = np.array([number[name] for name in groups])
    return np.bincount(index, weights=differences), np.bincount(index).astype(np.float64)


def _parts(resamples: int, n_groups: int) -> Iterator[slice]:
    step = max(1, _DRAWS_AT_ONCE // max(1, n_groups))
    for start in range(0, resamples, step):
        yield slice(start, min(start + step, resamples))
