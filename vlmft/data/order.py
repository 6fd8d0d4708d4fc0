"""The order of rows in an epoch, and its windows, each one optimiser step: functions of (seed, epoch).

Without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mix:
    """How often rows come in an epoch where some come more often than others."""

    part: np.ndarray
    """(n_rows,) the number of each row's part."""
    weights: Mapping[str, float]
    """Name of each part -> how often each of its rows comes. Of 1.5, half of the rows come twice, others in each
    epoch."""

    def rows(self) -> list[int]:
        """Rows of an epoch, part by part."""
        sizes = np.bincount(self.part, minlength=len(self.weights)).tolist()
        return [round(size * weight) for size, weight in zip(sizes, self.weights.values(), strict=True)]

    def sentence(self) -> str:
        """Such as "an epoch has 20 rows of shapes (10 x 2), 5 rows of mine (5 x 1)"."""
        sizes = np.bincount(self.part, minlength=len(self.weights)).tolist()
        parts = zip(self.rows(), self.weights.items(), sizes, strict=True)
        counts = (f"{n:,} rows of {name} ({size:,} x {weight:g})" for n, (name, weight), size in parts)
        return f"an epoch has {', '.join(counts)}"

    def drawn(self, chance: np.random.Generator) -> np.ndarray:
        drawn = []
        for number, n_rows in enumerate(self.rows()):
            rows = np.flatnonzero(self.part == number)
            whole = n_rows // max(1, len(rows))
            drawn += [np.repeat(rows, whole), chance.permutation(rows)[: n_rows - whole * len(rows)]]
        return np.concatenate(drawn)


def epoch_order(
    n_rows: int, seed: int, epoch: int, mix: Mix | None = None, groups: np.ndarray | None = None
) -> np.ndarray:
    """(n_rows,) int64 permutation for one epoch, the same on every machine; with `mix`, of as many rows as that has.

    `groups`: (n_rows,) the number of each row's group, from 0; those of one group come one after another.
    """
    chance = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = chance.permutation(n_rows if mix is None else mix.drawn(chance))
    if groups is None:
        return order
    turn = chance.permutation(groups.max(initial=0) + 1)
    return order[np.argsort(turn[groups[order]], kind="stable")]


class WindowSampler:
    """Yields the row positions of each window: with several ranks, those of `rank`, assigned round-robin.

    The last window of an epoch may be smaller, and a rank may get none of it; only `mix` leaves rows out. Rows of one
    of the `groups` come in one window, or where they do not fit in the next one, too; and as far as may be to one rank.

    Without a seed the rows come in their own order. Lightning calls `set_epoch` before each epoch.
    """

    def __init__(
        self,
        n_rows: int,
        rows_per_step: int,
        seed: int | None,
        rank: int = 0,
        n_ranks: int = 1,
        mix: Mix | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        self.n_rows, self.rows_per_step, self.seed, self.mix, self.groups = n_rows, rows_per_step, seed, mix, groups
        self.rank, self.n_ranks = rank, n_ranks
        self.epoch = 0
        self.served = 0
        """Windows of the first epoch that are already trained: a resumed run begins after them."""

    @property
    def sampler(self) -> WindowSampler:
        """Trap: Lightning calls `set_epoch` on a loader's `batch_sampler.sampler`, never on `batch_sampler` itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-(self.n_rows if self.mix is None else sum(self.mix.rows())) // self.rows_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.n_rows)
        if self.seed is not None:
            order = epoch_order(self.n_rows, self.seed, self.epoch, self.mix, self.groups)
        first, self.served = self.served * self.rows_per_step, 0
        for start in range(first, len(order), self.rows_per_step):
            window = order[start : start + self.rows_per_step]
            if self.groups is None:
                yield window[self.rank :: self.n_ranks].tolist()
            else:
                yield np.array_split(window, self.n_ranks)[self.rank].tolist()
