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


@dataclass(frozen=True)
class Window:
    """The rows of one rank, and the block that they are in: what a run goes on from travels with them, for the stream
    itself may be in another process."""

    rows: list[Any]
    mark: Mark


def shown_in(sample: Sample) -> set[str]:
    """What no other split may show: its images, or its text where it has none; and its group, where that is named."""
    contents = {image.sha256 for image in sample.prompt.images} or {sample.prompt.sha256}
    return contents | ({f"group {sample.tags[GROUP]}"} if GROUP in sample.tags else set())


class WindowStream(torch.utils.data.IterableDataset[Window]):
    """Windows without end, epoch after epoch: of each, the rows of this rank, encoded, refused or left out.

    It begins behind `trained` windows, of which the last are in the block of `mark`.
    """

    def __init__(
        self,
        dataset: Streamed,
        encode: Callable[[Sample], EncodedRow],
        rows_per_step: int,
        block_rows: int,
        seed: int,
        ranks: tuple[int, int],
        held_out: set[str],
        mark: Mark = Mark(),
        trained: int = 0,
    ) -> None:
        self.dataset, self.encode, self.rows_per_step = dataset, encode, rows_per_step
        self.block_windows = max(1, block_rows // rows_per_step)
        self.seed, (self.rank, self.n_ranks), self.held_out = seed, ranks, held_out
        self.mark, self.trained = mark, trained

    def __iter__(self) -> Iterator[Window]:
        first = mark = self.mark
        window, skipped = first.window, self.trained - first.window
        for epoch in itertools.count(first.epoch):
            rows, iterator = self.dataset.training_rows(first.state if epoch == first.epoch else None)
            for block in itertools.count(first.block if epoch == first.epoch else 0):
                if (epoch, block) != (first.epoch, first.block):
                    mark = Mark(window, epoch, block, rows.state_dict())
                taken = list(itertools.islice(iterator, self.block_windows * self.rows_per_step))
                if not taken:
                    break
                for places in self._windows(len(taken), epoch, block):
                    window += 1
                    if skipped > 0:
                        skipped -= 1
                        continue
                    number, own = block * self.block_windows * self.rows_per_step, places[self.rank :: self.n_ranks]
                    yield Window([self._encoded(number + place, taken[place]) for place in own], mark)
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
