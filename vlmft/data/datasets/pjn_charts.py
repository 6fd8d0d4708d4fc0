"""PJN_CHARTS: a small ChartQA, 1,200 train, 500 val and 500 test rows of the questions by people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlmft.data.dataset import Record
from vlmft.data.datasets.chartqa import ChartQA, Table, Tables
from vlmft.data.sources.tables import load_tables
from vlmft.sample import Message, Prompt, Sample, Split

ROWS: Mapping[Split, int] = {"train": 1200, "val": 500, "test": 500}
SEED = 42
SYSTEM = "You read charts. Answer with a single word, a number or a short phrase taken from the chart."


class PJNCharts(ChartQA):
    """PJN_CHARTS from the Hub or a folder of its files; or, with `path` to ChartQA in any form, the same choice.

    The choice is the first rows of `datasets.Dataset.shuffle(seed=42)` over the human rows of each split, which is
    numpy's PCG64 permutation. A label is a list of one text on the Hub; its text is what is taught.
    """

    name: ClassVar[str] = "pjn_charts"

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        hub_id: str = "krowiemlekommm/PJN_CHARTS",
        system: str | None = SYSTEM,
    ) -> None:
        super().__init__(path=path, revision=revision, sources=("human",), hub_id=hub_id)
        self.system = system

    def _load(self) -> Tables:
        if self.path is None or _is_chosen(Path(self.path).expanduser()):
            loaded = load_tables(self.path, self.hub_id, self.revision, {}).tables
            return {(split, "human"): Table(table.rows, table.numbers) for split, table in loaded.items()}
        return {key: Table(table.rows, chosen(table, ROWS[key[0]])) for key, table in super()._load().items()}

    def to_sample(self, record: Record) -> Sample:
        """As ChartQA's, the instruction in a system message instead of below the question."""
        sample = super().to_sample(record)
        if self.system is None:
            return sample
        (message,) = sample.prompt.messages
        asked = (message.content[0], record["query"].strip())
        prompt = Prompt((Message("system", (self.system,)), Message("user", asked)))
        return dataclasses.replace(sample, prompt=prompt)


def _is_chosen(root: Path) -> bool:
    """Whether the parquet files in a folder are PJN_CHARTS' own, which do not say who wrote a question."""
    file = next(root.rglob("*.parquet"), None)
    return file is not None and "human_or_machine" not in load_tables(str(file), None, None, {}).tables["train"].columns


def chosen(table: Table, n_rows: int) -> dict[int, None]:
    """The numbers of the first `n_rows` rows after the shuffle, in that order; all of a smaller table."""
    numbers = list(table.numbers)
    order = np.random.default_rng(SEED).permutation(len(numbers))[:n_rows].tolist()
    return dict.fromkeys(numbers[i] for i in order)
