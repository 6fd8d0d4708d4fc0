"""ChartLlama: questions on generated charts (Han et al. 2023, https://arxiv.org/abs/2311.16483), in LLaVA's form."""

from __future__ import annotations

import re
from typing import ClassVar

from vlmft.data.dataset import Record
from vlmft.data.datasets.chartqa import INSTRUCTION
from vlmft.data.datasets.messages import Messages
from vlmft.data.sources.conversations import Exchange, Slot, Turn
from vlmft.sample import BadRowError

GLUE = re.compile(r"\n\s*Question:\s*(.+?)\s*\n\s*Answer:\s*", re.DOTALL)
"""Between two answers of one row: the next question. The generator wrote several pairs where one was asked for."""


class ChartLlama(Messages):
    """One chart, one question. An answer into which further pairs are glued becomes one sample for each pair.

    `path` holds the JSON files and the unpacked images, whose paths "ours/box_chart/png/1.png" begin there or below
    its own "ours".
    """

    name: ClassVar[str] = "chartllama"
    metric: ClassVar[str] = "relaxed_accuracy"
    max_new_tokens: ClassVar[int] = 40

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        hub_id: str | None = None,
        instruction: str | None = INSTRUCTION,
    ) -> None:
        super().__init__(path=path, revision=revision, hub_id=hub_id, instruction=instruction)

    def exchanges(self, row: Record) -> list[tuple[Exchange, str]]:
        """The row's own question, then each that is glued into its answer, about the same chart.

        Raises:
            BadRowError: more than one exchange in the row, or an answer that still holds a question or an answer mark.
        """
        exchanges = super().exchanges(row)
        if len(exchanges) != 1:
            raise BadRowError(f"Expected one question and one answer, got {len(exchanges)} answers; fix the row")
        ((exchange, text),) = exchanges
        first, *glued = GLUE.split(text)
        pairs = [(exchange, first.strip())]
        slots = tuple(Slot() for _ in exchange.images)
        for question, answer in zip(glued[::2], glued[1::2], strict=True):
            pairs.append((Exchange((Turn("user", (*slots, question)),), exchange.images, False), answer.strip()))
        if incomplete := [answer for _, answer in pairs if not answer or re.search(r"(Question|Answer):", answer)]:
            raise BadRowError(f"Expected question and answer pairs, got {incomplete[0]!r} as an answer; fix the row")
        return pairs
