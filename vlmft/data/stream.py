"""Training windows of a stream: rows in blocks, each shuffled by (seed, epoch, block), dealt to the ranks.

A block instead of a buffer that each row leaves and another enters: where a run goes on, a block is read again, while
what a buffer held would be lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch.utils.data

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Record
from vlmft.sample import GROUP, BadRow, BadRowError, EncodedRow, Sample


class Streamed(Protocol):
    """A dataset whose training rows come one after the other."""

    def training_rows(self, state: Mapping[str, Any] | None) -> tuple[Any, Iterator[Any]]:
        """The reader, whose `state_dict()` says where it is, and its rows from their beginning or from `state`."""

    def streamed_id(self, number: int) -> str: ...
    def record_of(self, row: Mapping[str, Any], row_id: str) -> Record: ...
    def to_sample(self, record: Record) -> Sample: ...


@dataclass(frozen=True)
class LeftOut:
    """A training row that shows what another split shows."""

    id: str


@dataclass(frozen=True)
class Mark:
    """Where a block begins."""

    window: int = 0
    """Number of its first window since training began."""
    epoch: int = 0
    block: int = 0
    state: Mapping[str, Any] | None = None
    """Of the reader, before the block; None: its beginning."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def shown_in(sample: Sample) -> set[str]:
    """What no other split may show: its images, or its text where it has none; and its group, where that is named."""
    contents = {image.sha256 for image in sample.prompt.images} or {sample.prompt.sha256}
    return contents | ({f"group {sample.tags[GROUP]}"} if GROUP in sample.tags else set())


class WindowStream(torch.utils.data.IterableDataset[list[Any]]):
    """Windows without end, epoch after epoch: of each, the rows of this rank, encoded, refused or left out."""

    def __init__(
        self,
        dataset: Streamed,
        encode: Callable[[Sample], EncodedRow],
        rows_per_step: int,
        block_rows: int,
        seed: int,
        ranks: tuple[int, int],
        held_out: set[str],
    ) -> None:
        self.dataset, self.encode, self.rows_per_step = dataset, encode, rows_per_step
        self.block_windows = max(1, block_rows // rows_per_step)
        self.seed, (self.rank, self.n_ranks), self.held_out = seed, ranks, held_out
        self.marks = [Mark()]
        self.trained = 0
        """Windows that are left out at first: a run goes on behind them."""

    def go_on(self, mark: Mark, trained: int) -> None:
        """Begins behind `trained` windows, of which the last are in the block of `mark`."""
        self.marks, self.trained = [mark], trained

    def mark_of(self, trained: int) -> Mark:
        """The block that the window behind `trained` windows is in; earlier ones are forgotten."""
        at = max(i for i, mark in enumerate(self.marks) if mark.window <= trained)
        self.marks = self.marks[at:]
        return self.marks[0]

    def __iter__(self) -> Iterator[list[Any]]:
        mark = self.marks[-1]
        window, skipped = mark.window, self.trained - mark.window
        for epoch in itertools.count(mark.epoch):
            rows, iterator = self.dataset.training_rows(mark.state if epoch == mark.epoch else None)
            for block in itertools.count(mark.block if epoch == mark.epoch else 0):
                if (epoch, block) != (mark.epoch, mark.block):
                    self.marks.append(Mark(window, epoch, block, rows.state_dict()))
                taken = list(itertools.islice(iterator, self.block_windows * self.rows_per_step))
                if not taken:
                    break
                for places in self._windows(len(taken), epoch, block):
                    window += 1
                    if skipped > 0:
                        skipped -= 1
                        continue
                    first = block * self.block_windows * self.rows_per_step
                    yield [self._encoded(first + place, taken[place]) for place in places[self.rank :: self.n_ranks]]
            if window == 0:
                raise ConfigError("data.streaming: Expected training rows behind those that are held out, got none")

    def _windows(self, n_rows: int, epoch: int, block: int) -> Iterator[list[int]]:
        order = np.random.Generator(np.random.PCG64([self.seed, epoch, block])).permutation(n_rows).tolist()
        yield from (order[i : i + self.rows_per_step] for i in range(0, n_rows, self.rows_per_step))

    def _encoded(self, number: int, row: Any) -> EncodedRow | BadRow | LeftOut:
        row_id = self.dataset.streamed_id(number)
        try:
            sample = self.dataset.to_sample(self.dataset.record_of(row, row_id))
            return LeftOut(row_id) if shown_in(sample) & self.held_out else self.encode(sample)
        except BadRowError as error:
            return BadRow(row_id, str(error))
