"""Which rows are in which split, and that none is in two.

Rows are compared by their images, not by file names: one chart under two file names is one chart.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset, Ids
from vlmft.data.order import epoch_order
from vlmft.data.sources.table import Chained
from vlmft.data.survey.facts import FactsOfRows, group_sizes
from vlmft.sample import CLASS, SPLITS, BadRowError, Sample, Split


@dataclass(frozen=True)
class Splits:
    """Which rows are in which split."""

    ids: dict[Split, Ids]
    """`Ids.numbers` are places in `all_ids`."""
    declared: tuple[Split, ...]
    divided: tuple[Split, ...]
    """Splits that the source does not declare: their rows were taken from train."""
    largest_group: int
    """Different images in the largest group of near-duplicates, where they are grouped."""


def all_ids(index: Mapping[Split, Sequence[str]]) -> Ids:
    """The ids of all rows that a source declares, split after split."""
    return Ids(Chained([*index.values()]).__getitem__, np.arange(sum(map(len, index.values()))))


def filled(dataset: Dataset, index: Mapping[Split, Sequence[str]], config: DataConfig, known: FactsOfRows) -> Splits:
    """The declared splits; where val or test is not declared: taken from train by content, without the rows that cannot
    be read.

    Raises:
        ConfigError: they cannot be taken from the rows that there are.
        BadRowError: as the ledger raises it.
    """
    ends = np.cumsum([len(rows) for rows in index.values()], dtype=np.int64)
    numbers = {split: np.arange(end - len(index[split]), end) for split, end in zip(index, ends, strict=True)}
    train = numbers.get("train", np.zeros(0, np.int64))
    asked = {"test": config.test_rows, "val": config.val_rows}
    divided: list[Split] = []
    largest_group = 0
    for lacking, places in dataset.undeclared(index).items():
        missing = {split: asked[split] for split in lacking if asked[split] > 0}
        if missing and len(train):
            parts, largest = _divided(train[places], missing, config, known)
            divided += missing
            largest_group = max(largest_group, largest)
            numbers["train"] = np.setdiff1d(numbers["train"], train[places])
            for split, rows in parts.items():
                numbers[split] = np.sort(np.concatenate([numbers.get(split, rows[:0]), rows]))
    if config.group_near_duplicates and not divided:
        raise ConfigError(
            f"data.group_near_duplicates: {dataset.name} declares its splits, and no row is moved between those; "
            "remove it; the data card counts near-duplicates anyway"
        )
    ids = {split: known.ids.take(numbers.get(split, train[:0])) for split in SPLITS}
    return Splits(ids, tuple(index), tuple(dict.fromkeys(divided)), largest_group)


def _divided(
    pool: np.ndarray, missing: Mapping[Split, float], config: DataConfig, known: FactsOfRows
) -> tuple[dict[Split, np.ndarray], int]:
    """The rows of the pool by split, and the images in its largest group of near-duplicates."""
    facts = known.of(pool)
    groups = facts.groups(with_near_duplicates=config.group_near_duplicates)
    usable = int((groups >= 0).sum())
    if not usable:
        first = next(iter(known.ledger.bad.items()), ("none", "there are none"))
        raise ConfigError(f"data: none of {len(groups)} rows can be used; row {first[0]}: {first[1]}")
    if sum(share if share >= 1 else share * usable for share in missing.values()) >= usable:
        keys = ", ".join(f"data.{split}_rows={share:g}" for split, share in missing.items())
        raise ConfigError(f"{keys}: Expected fewer than the {usable} usable rows that there are; lower them")
    n_groups, largest = group_sizes(groups)
    if n_groups <= len(missing) and largest > 1:
        raise ConfigError(
            f"data: shared images, conversations or groups tie {usable} rows into {n_groups} groups, {largest} in "
            f"the largest, so that no {' and no '.join(missing)} can be taken from them; declare splits, or train "
            f"without ({' '.join(f'data.{split}_rows=0' for split in missing)})"
        )
    places_of = assign(groups, facts.group_names(groups), facts.rows["classes"], missing, config.split_seed)
    _, largest_group = group_sizes(groups[facts.pictures()[1]]) if config.group_near_duplicates else (0, 0)
    return {split: pool[places] for split, places in places_of.items()}, largest_group


def limited(
    splits: Splits, dataset: Dataset, config: DataConfig, seed: int, sample_of: Callable[[str], Sample]
) -> dict[Split, Ids]:
    """The rows of each split that `train_per_class` and `limit_*` leave; of val and test the same for every seed."""
    ids = dict(splits.ids)
    if config.train_per_class is not None:
        ids["train"] = _of_each_class(dataset.name, ids["train"], config.train_per_class, seed, sample_of)
    for split, rows in ids.items():
        limit = getattr(config, f"limit_{split}")
        if limit is not None and limit < 1:
            limit = max(1, round(limit * len(rows)))
        if limit is not None and limit < len(rows):
            order = epoch_order(len(rows), seed if split == "train" else config.split_seed, epoch=0)
            ids[split] = rows.take(np.sort(order[: int(limit)]))
    return ids


def _of_each_class(name: str, rows: Ids, most: int, seed: int, sample_of: Callable[[str], Sample]) -> Ids:
    """Bad rows have no class and stay: they are refused by name where they are used."""
    taken: Counter[str] = Counter()
    chosen = []
    for position in epoch_order(len(rows), seed, epoch=0).tolist():
        with contextlib.suppress(BadRowError):
            tags = sample_of(rows[position]).tags
            if CLASS not in tags:
                raise ConfigError(f"data.train_per_class: {name} knows no classes; leave it out")
            taken[tags[CLASS]] += 1
            if taken[tags[CLASS]] > most:
                continue
        chosen.append(position)
    return rows.take(np.sort(np.array(chosen, np.int64)))


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


def assert_disjoint(ids: Mapping[Split, Sequence[str]], groups: Mapping[Split, np.ndarray] | None = None) -> None:
    """No row, or no group (-1: none), is in two splits; without `groups` only ids are compared, which is fast.

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
                f"{ids[second][shared[0]]!r} and {ids[first][twin]!r}; fix the splits: a model that has seen the "
                f"{second} images cannot be tested on them"
            )
