"""Learning rates against their closed forms, and that every optimiser that a config can name does its work."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vlmft.config.schema import OptimizationConfig, OptimizerName, Schedule
from vlmft.training.optim import make_optimizer, make_schedule, parameter_groups, warmup_steps

TOTAL = 20


def rates(**settings: Any) -> list[float]:
    """The learning rate of each step of a run of `TOTAL`, at peak 1, and the one after it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, OptimizationConfig(**settings), TOTAL)
    found = []
    for _ in range(TOTAL + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_by_steps_and_by_ratio() -> None:
    expected = [0.2, 0.4, 0.6, 0.8, 1.0]
    by_steps = rates(schedule=Schedule.constant, warmup_steps=5)
    by_ratio = rates(schedule=Schedule.constant, warmup_ratio=0.25)
    assert by_steps == by_ratio == pytest.approx(expected + [1.0] * (TOTAL - 4))
    assert warmup_steps(OptimizationConfig(warmup_steps=0, warmup_ratio=0.5), TOTAL) == 0  # steps win over the ratio


def test_linear_goes_to_zero() -> None:
    found = rates(schedule=Schedule.linear, warmup_steps=4)
    assert found[4:] == pytest.approx([1 - (step - 4) / 16 for step in range(4, TOTAL + 1)])
    assert found[TOTAL - 1] == pytest.approx(1 / 16)  # the last step that is taken still learns
    assert found[TOTAL] == 0.0


def test_cosine_goes_to_zero() -> None:
    found = rates(schedule=Schedule.cosine, warmup_steps=4)
    assert found[4:] == pytest.approx(
        [(1 + math.cos(math.pi * (s - 4) / 16)) / 2 for s in range(4, TOTAL + 1)], abs=1e-12
    )
    assert found[12] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", Schedule)
def test_edges(schedule: Schedule) -> None:
    assert rates(schedule=schedule, warmup_ratio=0.0)[0] == 1.0
    assert rates(schedule=schedule, warmup_steps=100)[TOTAL - 1] == pytest.approx(0.2)  # never ends: still warming up
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    later = make_schedule(optimizer, OptimizationConfig(schedule=schedule), 5)
    for _ in range(9):
        optimizer.step()
        later.step()
    assert optimizer.param_groups[0]["lr"] in (0.0, 1.0)  # past the end it does not go up again


def test_decay_is_for_matrices_alone() -> None:
    parameters = {"w": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = make_optimizer(parameters, OptimizationConfig(weight_decay=0.5), lr=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(parameters["w"], torch.full((2, 2), 0.95))  # 1 - 0.1 * 0.5: decoupled from the gradient
    assert torch.equal(parameters["b"], torch.ones(2))
    assert [group["weight_decay"] for group in parameter_groups({"b": parameters["b"]}, 0.5)] == [0.0]


@pytest.mark.parametrize("name", OptimizerName)
def test_every_optimiser_takes_our_settings(name: OptimizerName) -> None:
    matrix = torch.nn.Parameter(torch.randn(96, 64, generator=torch.Generator().manual_seed(0)))  # above bnb's 4096
    config = OptimizationConfig(optimizer=name, beta1=0.8, beta2=0.9, weight_decay=0.1)
    optimizer = make_optimizer({"w": matrix}, config, lr=0.01)
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.01, (0.8, 0.9), 0.1)
    sizes = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (matrix**2).mean()
        loss.backward()
        optimizer.step()
        sizes.append(float(loss.detach()))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


def test_an_optimiser_without_gradients_changes_nothing() -> None:
    # What skipping a window rests on.
    for name in OptimizerName:
        matrix = torch.nn.Parameter(torch.ones(96, 64))
        optimizer = make_optimizer({"w": matrix}, OptimizationConfig(optimizer=name, weight_decay=0.1), lr=0.01)
        matrix.grad = torch.ones_like(matrix)
        optimizer.step()
        before = matrix.detach().clone()
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        assert torch.equal(matrix, before), name
