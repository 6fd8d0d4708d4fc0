"""Several devices: every rank computes its share of a window's rows, and gradients are summed once a window.

What is summed are sums over the rows of one window, so that one rank and several differ by rounding alone. The ranks
are processes that Lightning starts: each runs the same command line, and only rank 0 prints and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning.pytorch.strategies import DDPStrategy

from vlmft.config.trainer_schema import TrainerConfig

T = TypeVar("T")


def local_rank() -> int:
    """Which device of this machine this process computes on: as set by the launcher, else 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def node() -> int:
    """Which of the machines this is: as set by the launcher, else 0."""
    return int(os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0")


def follows() -> bool:
    """Whether this process only computes: another one, rank 0, prints and writes."""
    return any(int(os.environ.get(name, "0")) > 0 for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))


def n_processes(trainer: TrainerConfig) -> int:
    """How many processes a run asks for: one for each device of each node."""
    return trainer.devices * trainer.num_nodes


def n_ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


class WindowRanks(DDPStrategy):
    """Lightning's processes and process group, without DistributedDataParallel round the model.

    DDP averages gradients at every backward pass; a window has several, and its loss is a mean over its tokens.
    """

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value summed over the ranks."""
    if n_ranks() == 1:
        return list(values)
    together = torch.tensor(values, dtype=torch.float64, device=device)
    return [float(value) for value in sum_over_ranks(together)]


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The tensor summed over the ranks, in place."""
    if n_ranks() > 1:
        torch.distributed.all_reduce(value)
    return value


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Every gradient becomes its sum over the ranks; a rank without one adds zeros."""
    if n_ranks() == 1:
        return
    trained = list(parameters)
    together = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    torch.distributed.all_reduce(together)
    for parameter, part in zip(trained, torch.split(together, [p.numel() for p in trained]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def gathered(value: T) -> list[T]:
    """`value` of every rank, in their order."""
    values: list[Any] = [value] * n_ranks()
    if n_ranks() > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def undealt(hands: Sequence[Sequence[T]]) -> list[T]:
    """The list that was dealt to the ranks like cards, from every rank's share."""
    nothing = object()
    return [item for item in chain(*zip_longest(*hands, fillvalue=nothing)) if item is not nothing]  # type: ignore[misc]


def leave_ranks() -> None:
    """After training rank 0 goes on alone; whatever sums over ranks by itself must not wait for the others."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
