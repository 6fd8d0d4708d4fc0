"""What the processes (ranks) of one run hand to each other. Which of them this one is, config/processes.py says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch.distributed

T = TypeVar("T")


def n_ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def gathered(value: T) -> list[T]:
    """`value` of every rank, in their order."""
    values: list[Any] = [value] * n_ranks()
    if n_ranks() > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def of_rank_0(value: T) -> T:
    """Rank 0's `value`, on every rank."""
    values: list[Any] = [value]
    if n_ranks() > 1:
        torch.distributed.broadcast_object_list(values)
    return values[0]  # type: ignore[no-any-return]


def undealt(hands: Sequence[Sequence[T]]) -> list[T]:
    """The list that was dealt to the ranks like cards, from every rank's share."""
    nothing = object()
    return [item for item in chain(*zip_longest(*hands, fillvalue=nothing)) if item is not nothing]  # type: ignore[misc]


def leave_ranks() -> None:
    """From here on this process is alone: nothing waits for the others any more."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
