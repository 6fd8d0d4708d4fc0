"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlmft.config.check import ConfigError
from vlmft.config.schema import OptimizationConfig, OptimizerName, Schedule
from vlmft.models.lora import part_of


def lr_of(name: str, config: OptimizationConfig, lr: float) -> float:
    """Peak learning rate of a parameter: its part's own, and more for matrices B under LoRA+ (arXiv 2402.12354)."""
    own: float | None = getattr(config.lr_by_part, part_of(name))
    rate = lr if own is None else own
    return rate * config.lora_plus_ratio if config.lora_plus_ratio is not None and ".lora_B." in name else rate


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], config: OptimizationConfig, lr: float
) -> list[dict[str, Any]]:
    """Matrices with decay, then vectors (biases, norms) without; of each, a group for each learning rate."""
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for vectors in (False, True):
        for name, parameter in parameters.items():
            if (parameter.ndim < 2) == vectors:
                groups.setdefault((vectors, lr_of(name, config, lr)), []).append(parameter)
    decay = {False: config.weight_decay, True: 0.0}
    return [{"params": g, "weight_decay": decay[vectors], "lr": rate} for (vectors, rate), g in groups.items()]


def make_optimizer(parameters: Mapping[str, torch.nn.Parameter], config: OptimizationConfig, lr: float) -> Optimizer:
    """The optimiser that `train.optimizer` names, at peak learning rate `lr`."""
    groups = parameter_groups(parameters, config, lr)
    betas = (config.beta1, config.beta2)
    if config.optimizer == OptimizerName.adamw:
        # Not fused: Lightning refuses gradient clipping beside a fused optimiser under bf16-mixed.
        return torch.optim.AdamW(groups, lr=lr, betas=betas)
    import bitsandbytes as bnb

    classes = {
        OptimizerName.adamw_8bit: bnb.optim.AdamW8bit,
        OptimizerName.paged_adamw_8bit: bnb.optim.PagedAdamW8bit,
        OptimizerName.lion: bnb.optim.Lion,
    }
    optimizer: Optimizer = classes[config.optimizer](groups, lr=lr, betas=betas)
    return optimizer


def total_steps(trainer: L.Trainer, n_windows: int) -> int:
    """Optimiser steps of a fit whose epochs have `n_windows` unless the Trainer limits them.

    Not `trainer.estimated_stepping_batches`, which drops a loader's state.

    Raises:
        ConfigError: the Trainer sets no end.
    """
    limit = trainer.limit_train_batches
    n_windows = min(n_windows, limit) if isinstance(limit, int) else int(n_windows * limit)
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        if trainer.max_steps < 0:
            raise ConfigError(
                "trainer.max_epochs: Expected an end of training, got -1 without trainer.max_steps; set one"
            )
        return trainer.max_steps
    steps = n_windows * trainer.max_epochs
    return min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps


def warmup_steps(config: OptimizationConfig, total_steps: int) -> int:
    """Optimiser steps of linear warm-up."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return round(config.warmup_ratio * total_steps)


def make_schedule(optimizer: Optimizer, config: OptimizationConfig, total_steps: int) -> LambdaLR:
    """Factor on the peak learning rate, stepped once an optimiser step: warm-up from 1/n, then the named course."""
    warmup = warmup_steps(config, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if config.schedule == Schedule.linear:
            return 1.0 - progress
        if config.schedule == Schedule.cosine:
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0

    return LambdaLR(optimizer, factor)
