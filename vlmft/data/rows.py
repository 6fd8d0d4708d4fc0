"""The rows of one dataset: which rows are in which split, and each as a sample. Without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset, Ids
from vlmft.data.ledger import Ledger
from vlmft.data.order import Mix, epoch_order
from vlmft.data.splits import all_ids, filled, limited
from vlmft.data.survey.facts import FactsOfRows
from vlmft.sample import BadRow, BadRowError, Sample, Split


class Rows:
    """The rows of a dataset by split. Knows no tokenizer and no model."""

    def __init__(self, dataset: Dataset, config: DataConfig, ledger: Ledger, seed: int) -> None:
        """Raises ConfigError and BadRowError as `filled`."""
        self.dataset, self.config, self.ledger, self.seed = dataset, config, ledger, seed
        index = dataset.index()
        self.facts = FactsOfRows(dataset, all_ids(index), ledger)
        self.splits = filled(dataset, index, config, self.facts)
        """Before limits."""
        self.ids: dict[Split, Ids] = limited(self.splits, dataset, config, seed)

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
        return self.dataset.to_sample(self.dataset.read(row_id))

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

    def epoch_sentence(self) -> str:
        """What an epoch of several datasets holds; "" for one."""
        mix = self.mix()
        return "" if mix is None else mix.sentence()
