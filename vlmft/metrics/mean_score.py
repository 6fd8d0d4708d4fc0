"""The one torchmetrics class: a metric's mean over rows, summed over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchmetrics

from vlmft.metrics.score import Metric


class MeanScore(torchmetrics.Metric):
    """Mean of a `Metric` over all rows seen. Its states are sums, so cutting into batches or ranks changes nothing.

    `sums_over_ranks=False` where each rank is given all rows.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: torch.Tensor
    """() float32, as Apple's devices lack float64: the sum of scores, exact to 16 million where they are 0 or 1."""
    num: torch.Tensor
    """() int64, rows seen."""
    unparsed: torch.Tensor
    """() int64, rows in which the metric found no answer. They count in `num`, with score 0."""

    def __init__(self, metric: Metric, *, sums_over_ranks: bool = True) -> None:
        super().__init__(sync_on_compute=sums_over_ranks)
        self.metric = metric
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("unparsed", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Adds rows: one prediction and its references each. Raises ValueError where their numbers differ."""
        if len(predictions) != len(references):
            raise ValueError(
                f"Expected references for {len(predictions)} predictions, got {len(references)}; pass both for each row"
            )
        scores = [self.metric(text, accepted) for text, accepted in zip(predictions, references, strict=True)]
        self.total += sum(score.value for score in scores)
        self.num += len(scores)
        self.unparsed += sum(score.parsed is None for score in scores)

    def compute(self) -> dict[str, float | int]:
        """`value` (mean, 0..1), `num` and `unparsed` over all ranks. Raises ValueError before the first row."""
        if self.num == 0:
            raise ValueError("Expected at least one scored row, got 0; a mean over nothing is no result")
        return {
            "value": float(self.total / self.num),
            "num": int(self.num),
            "unparsed": int(self.unparsed),
        }
