"""PJN_CHARTS: a small ChartQA, 1,200 train, 500 val and 500 test rows of the questions by people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vlmft.data.datasets.chartqa import MAKER, ChartQA
from vlmft.data.sources.table import Table, table_of
from vlmft.data.sources.tables import Loaded
from vlmft.sample import Split

ROWS: Mapping[Split, int] = {"train": 1200, "val": 500, "test": 500}
SEED = 42
SYSTEM = "You read charts. Answer with a single word, a number or a short phrase taken from the chart."


class PJNCharts(ChartQA):
    """PJN_CHARTS from the Hub or a folder of its files; or, with `path` to ChartQA in any form, the same choice.

    The choice is the first rows of `datasets.Dataset.shuffle(seed=42)` over the human rows of each split, which is
    numpy's PCG64 permutation. A label is a list of one text on the Hub; its text is trained on.
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
        """`system`: a system message in place of the instruction below each question; null keeps the instruction."""
        super().__init__(path=path, revision=revision, sources=("human",), hub_id=hub_id)
        self.system = system
        self.instruction = self.instruction if system is None else None

    def _load(self) -> Loaded:
        loaded = super()._load()
        for split, table in loaded.tables.items():
            if not _is_chosen(table):
                loaded.tables[split] = chosen(table, ROWS[split])
        return loaded

    def _of_sources(self, table: Table, place: str) -> Table:
        return table if _is_chosen(table) else super()._of_sources(table, place)


def _is_chosen(table: Table) -> bool:
    """Whether a table is of PJN_CHARTS' own files, which have no column for who wrote a question."""
    return "image" in table.columns and MAKER not in table.columns


def chosen(table: Table, n_rows: int) -> Table:
    """The first `n_rows` rows after the shuffle, in that order; all of a smaller table."""
    order = np.random.default_rng(SEED).permutation(len(table.numbers))[:n_rows]
    numbers = [table.numbers[place] for place in order.tolist()]
    rows = table.rows.select(numbers) if hasattr(table.rows, "select") else [table.rows[n] for n in numbers]
    return table_of([rows], table.folders, table.sources)
