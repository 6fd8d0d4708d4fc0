"""Windows: the rows of one optimiser step, a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from vlmft.data.order import Mix, epoch_order


class WindowSampler(Sampler[list[int]]):
    """Yields the row positions of each window: of several ranks, those of `rank`, dealt like cards.

    The last window of an epoch may be smaller, and a rank may get none of it; no row is left out but by `mix`.

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
    ) -> None:
        self.n_rows, self.rows_per_step, self.seed, self.mix = n_rows, rows_per_step, seed, mix
        self.rank, self.n_ranks = rank, n_ranks
        self.epoch = 0
        self.served = 0
        """Windows of the first epoch asked for that were trained before: a resumed run begins after them."""

    @property
    def sampler(self) -> WindowSampler:
        """Trap: Lightning calls `set_epoch` on a loader's `batch_sampler.sampler`, never on `batch_sampler` itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-(self.n_rows if self.mix is None else sum(self.mix.rows())) // self.rows_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = (
            np.arange(self.n_rows) if self.seed is None else epoch_order(self.n_rows, self.seed, self.epoch, self.mix)
        )
        first, self.served = self.served * self.rows_per_step, 0
        for start in range(first, len(order), self.rows_per_step):
            yield order[start : start + self.rows_per_step][self.rank :: self.n_ranks].tolist()
