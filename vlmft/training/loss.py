"""The loss: a sum and a count, so that a window's mean is the same however its rows are cut into batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over rows of -log p(target), in fp32 whatever the logits are in.

    Args:
        logits: (n, vocabulary) at the supervised positions alone.
        targets: (n,) int64.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")
