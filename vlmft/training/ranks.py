"""Several devices: every rank computes its share of a window's rows, and gradients are summed once a window.

What is summed are sums over the rows of one window, so that one rank and several differ by rounding alone. The ranks
are processes that Lightning starts: each runs the same command line, and only rank 0 prints and writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import lightning as L
import torch
import torch.distributed
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
from lightning.pytorch.strategies import DDPStrategy

from vlmft.config.check import ConfigError
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.models.lora import trainable
from vlmft.models.ranks import gathered, n_ranks
from vlmft.training.interruption import StopRequest

PATIENCE = timedelta(hours=3)
"""How long a rank waits for the others, such as for rank 0, which looks at all rows alone."""


def n_processes(trainer: TrainerConfig) -> int:
    """How many processes a run asks for: one for each device of each node."""
    return trainer.devices * trainer.num_nodes


def is_shared_out(trainer: TrainerConfig) -> bool:
    """Whether the layers of the language part are sharded: one device alone has nobody to share them with."""
    return trainer.strategy == "fsdp" and n_processes(trainer) > 1


def start_ranks(trainer: TrainerConfig, device: torch.device) -> None:
    """Starts the other processes of a run and connects them; those that torchrun or srun has started are connected.

    Nothing where there is one process, where they are connected already, or where `trainer.strategy` is the user's own,
    which Lightning starts when training begins.
    """
    if n_processes(trainer) == 1 or not isinstance(trainer.strategy, str) or torch.distributed.is_initialized():
        return
    try:
        L.Fabric(
            accelerator=device.type,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            strategy=FabricDDPStrategy(timeout=PATIENCE),
            plugins=cluster_plugins(),
        ).launch()
    except ValueError as error:  # such as other numbers than SLURM has been given
        raise ConfigError(f"trainer.devices: {error}") from error


def cluster_plugins() -> list[Any]:
    """What Lightning is told where it would find something else: whether SLURM has started this run's processes.

    Raises:
        ConfigError: SLURM was to start several, but there was no `srun` to do it.
    """
    if "SLURM_JOB_ID" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    if int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return [LightningEnvironment()]  # Lightning would wait for processes that SLURM does not start
    if "SLURM_STEP_ID" not in os.environ:
        raise ConfigError("trainer: SLURM was asked for several tasks, and srun starts them: write srun before python")
    return [SLURMEnvironment(auto_requeue=False)]  # its own saves a checkpoint that we do not read; see interruption.py


def asked_anywhere(stop: StopRequest) -> bool:
    """Whether any rank was asked to stop: the same on all of them. Every rank has to call it."""
    numbers = [number for number in gathered(stop.number) if number is not None]
    if numbers:  # else left alone: a signal may have come while this rank waited for the others
        stop.number = max(numbers)
    return bool(numbers)


def check_together(stop: StopRequest) -> None:
    """`stop.check()` on all ranks at once: one that stopped alone would leave the others waiting."""
    if asked_anywhere(stop):
        stop.check()


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


def sum_gradients(model: torch.nn.Module) -> None:
    """Every gradient becomes its sum over the ranks; a rank without one adds zeros."""
    if n_ranks() == 1:
        return
    trained = list(trainable(model).values())
    together = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    torch.distributed.all_reduce(together)
    for parameter, part in zip(trained, torch.split(together, [p.numel() for p in trained]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
