"""The rows of one dataset: which rows are in which split, and each as a sample. Without torch."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset, Ids, Record
from vlmft.data.images import stored_bytes
from vlmft.data.ledger import Ledger
from vlmft.data.order import Mix, epoch_order
from vlmft.data.other_answers import with_answer
from vlmft.data.splits import all_ids, filled, limited
from vlmft.data.survey.facts import FactsOfRows
from vlmft.sample import BadRow, BadRowError, Sample, Split

KEPT_ROWS, KEPT_BYTES = 4_096, 128 << 20
"""Rows that stay in memory for whoever looks at them next, and the bytes of images that are stored in them."""


class Rows:
    """The rows of a dataset by split. Knows no tokenizer and no model."""

    def __init__(self, dataset: Dataset, config: DataConfig, ledger: Ledger, seed: int) -> None:
        """Raises ConfigError and BadRowError as `filled`, and ConfigError for a mixture that is to come by image."""
        if config.group_by_image and dataset.weights():  # a row that comes twice would come twice in one window
            raise ConfigError("data.group_by_image: Expected one dataset, got a mixture; leave it out")
        self.dataset, self.config, self.ledger, self.seed = dataset, config, ledger, seed
        self._kept: OrderedDict[str, tuple[Record, Sample, int]] = OrderedDict()
        self._kept_bytes, self._refused = 0, dict[str, str]()
        self._image_groups: np.ndarray | None = None
        index = dataset.index()
        self.facts = FactsOfRows(dataset, all_ids(index), ledger, self.sample)
        self.splits = filled(dataset, index, config, self.facts)
        """Before limits."""
        self.ids: dict[Split, Ids] = limited(self.splits, dataset, config, seed, self.sample)

    @property
    def divided(self) -> tuple[Split, ...]:
        """Splits that the source does not declare: their rows were taken from train."""
        return self.splits.divided

    @property
    def metric_name(self) -> str:
        return self.config.metric or self.dataset.metric

    @property
    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens or self.dataset.max_new_tokens

    def sample(self, row_id: str) -> Sample:
        """Stages 1 and 2 for one row.

        Raises:
            BadRowError: as the dataset says, without its id.
        """
        return self._row(row_id)[1]

    def with_answer(self, row_id: str, answer: str) -> tuple[Sample, bool]:
        """The row with another gold answer, and whether that is in its source record, too."""
        return with_answer(self.dataset, self._row(row_id)[0], answer)

    def _row(self, row_id: str) -> tuple[Record, Sample, int]:
        """Record, sample, and the bytes of the images in it; the rows that were asked for last are not read again."""
        if row_id in self._kept:
            self._kept.move_to_end(row_id)
            return self._kept[row_id]
        if row_id in self._refused:
            raise BadRowError(self._refused[row_id])
        try:
            record = self.dataset.read(row_id)
            sample = self.dataset.to_sample(record)
        except BadRowError as error:
            self._refused[row_id] = str(error)
            raise
        row = (record, sample, sum(map(stored_bytes, sample.prompt.images)))
        self._kept[row_id] = row
        self._kept_bytes += row[2]
        while len(self._kept) > KEPT_ROWS or self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1][2]
        return row

    def samples(self, row_ids: Sequence[str]) -> list[Sample]:
        """The rows as samples, without bad ones, which go to the ledger."""
        samples = []
        for row_id in row_ids:
            try:
                samples.append(self.sample(row_id))
                self.ledger.admit(row_id)
            except BadRowError as error:
                self.ledger.refuse(BadRow(row_id, str(error)))
        return samples

    def some(self, split: Split, most: int | None, seed: int) -> Ids:
        """All rows of a split, or the first `most` of a seeded shuffle, in the order of the split."""
        ids = self.ids[split]
        few = most is not None and most < len(ids)
        return ids.take(np.sort(epoch_order(len(ids), seed, epoch=0)[:most])) if few else ids

    def some_samples(self, split: Split, most: int) -> list[Sample]:
        """The first `most` rows of a shuffle of a split, in the order of the split, without bad ones."""
        samples = []
        for row_id in self.some(split, most, seed=0):
            with contextlib.suppress(BadRowError):
                samples.append(self.sample(row_id))
        return samples

    def mix(self) -> Mix | None:
        """How often each training row comes in an epoch; None where each comes once."""
        weights = self.dataset.weights()
        if not weights:
            return None
        names = list(weights)
        part = [names.index(row_id.partition("/")[0]) for row_id in self.ids["train"]]
        return Mix(np.array(part, np.int64), weights)

    def image_groups(self) -> np.ndarray:
        """(n,) a number for each training row: rows that show the same images have the same, and those without an image
        have one each."""
        if self._image_groups is None:
            numbers = self.ids["train"].numbers
            shown: list[list[int]] = [[] for _ in range(len(numbers))]
            for row, content in self.facts.of(numbers).shown_images().tolist():
                shown[row].append(content)
            keys = [",".join(map(str, sorted(some))) or f"row {row}" for row, some in enumerate(shown)]
            self._image_groups = np.unique(keys, return_inverse=True)[1].reshape(-1)
        return self._image_groups

    def epoch_sentence(self) -> str:
        """What is special in an epoch: rows of several datasets, or rows that come by their images; "" for none."""
        if self.config.group_by_image:
            n_rows, n_groups = len(self.ids["train"]), self.image_groups().max(initial=-1) + 1
            return (
                f"rows that show the same images come in one window (data.group_by_image): {n_rows:,} rows, "
                f"{n_groups:,} groups; windows are less varied than with rows in any order"
            )
        mix = self.mix()
        return "" if mix is None else mix.sentence()
