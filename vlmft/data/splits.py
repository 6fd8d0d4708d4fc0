"""What stands in which split, and that nothing stands in two.

Rows are told apart by what they show and not by their names: one chart under two file names is one chart.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from vlmft.config.check import ConfigError
from vlmft.sample import SPLITS, Split


def assign(
    groups: np.ndarray, names: Mapping[int, str], classes: np.ndarray, wanted: Mapping[Split, float], seed: int
) -> dict[Split, np.ndarray]:
    """Divides rows into the `wanted` splits (each a count of rows, or a share below 1) and train, by whole groups.

    `groups`: (n,) the number of each row's group, below 0 for rows that go nowhere; `names`: those of the groups;
    `classes`: (n,) the number of each row's class. Returns the rows of each split, ascending.

    The order in which groups are taken is that of a hash with the seed: a row that is added later moves few others.
    Of each class (of a group that of its first row) the same share is taken, as far as groups allow.
    """
    used, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    size = {int(group): int(n) for group, n in zip(used, sizes, strict=True) if group >= 0}
    class_of = {int(group): int(classes[row]) for group, row in zip(used, first, strict=True) if group >= 0}
    chance = {group: hashlib.sha256(f"{seed} {names[group]}".encode()).hexdigest() for group in size}
    strata: dict[int, list[int]] = {}
    for group in sorted(size, key=chance.__getitem__):
        strata.setdefault(class_of[group], []).append(group)
    place = {g: (i + 0.5) / len(stratum) for stratum in strata.values() for i, g in enumerate(stratum)}
    queue = sorted(size, key=lambda group: (place[group], chance[group]))
    found: dict[Split, np.ndarray] = {}
    for split, share in wanted.items():
        target = share if share >= 1 else round(share * sum(size.values()))
        taken: list[int] = []
        left: list[int] = []
        n_rows = 0
        for group in queue:
            if n_rows < target and n_rows + size[group] / 2 <= target and len(queue) - len(taken) > 1:
                taken.append(group)
                n_rows += size[group]
            else:
                left.append(group)
        queue, found[split] = left, np.flatnonzero(np.isin(groups, taken))
    return {"train": np.flatnonzero(np.isin(groups, queue)), **found}


def connected(n_contents: int, pairs: np.ndarray) -> np.ndarray:
    """(n_contents,) for each content the least that it hangs together with, over `pairs` (m, 2) of contents."""
    parent = list(range(n_contents))

    def root(content: int) -> int:
        while parent[content] != content:
            parent[content] = parent[parent[content]]
            content = parent[content]
        return content

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(content) for content in range(n_contents)], np.int64)


def assert_disjoint(ids: Mapping[Split, Sequence[str]], groups: Mapping[Split, np.ndarray] | None = None) -> None:
    """No row stands in two splits, or no group (-1: none); without `groups` by its id alone, which costs little.

    Raises:
        ConfigError: with the count and one pair of rows by name.
    """
    if groups is None:
        groups = {split: np.fromiter(map(hash, rows), np.int64, len(rows)) for split, rows in ids.items()}
    for first, second in itertools.combinations([split for split in SPLITS if split in ids], 2):
        known, there = groups[first], groups[second]
        shared = np.flatnonzero(np.isin(there, known) & (there != -1))  # no hash of Python's is -1
        if len(shared):
            twin = np.flatnonzero(known == there[shared[0]])[-1]
            raise ConfigError(
                f"data: {len(shared)} of {len(there)} {second} rows show what {first} rows show, such as "
                f"{ids[second][shared[0]]!r} and {ids[first][twin]!r}; mend the splits: a model that has seen the "
                f"{second} images cannot be tested on them"
            )
