"""Learning rates against their closed forms, and that every optimiser that a config can name does its work."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vlmft.config.schema import LrByPartConfig, OptimizationConfig, OptimizerName, Schedule
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
    config = OptimizationConfig(weight_decay=0.5)
    assert [group["weight_decay"] for group in parameter_groups({"b": parameters["b"]}, config, 1.0)] == [0.0]


NAMES = {
    "base_model.model.model.text_model.layers.0.q_proj.lora_A.default.weight": (2, 4),
    "base_model.model.model.text_model.layers.0.q_proj.lora_B.default.weight": (4, 2),
    "base_model.model.model.text_model.layers.0.q_proj.lora_magnitude_vector.default.weight": (4,),
    "base_model.model.model.connector.modality_projection.proj.weight": (4, 4),
    "base_model.model.model.vision_model.encoder.layers.0.q_proj.lora_A.default.weight": (2, 4),
    "base_model.model.model.vision_model.encoder.layers.0.q_proj.lora_B.default.weight": (4, 2),
}


def lrs_by_name(config: OptimizationConfig) -> dict[str, float]:
    """What each parameter is stepped with, of the optimiser that a run makes."""
    parameters = {name: torch.nn.Parameter(torch.ones(*shape)) for name, shape in NAMES.items()}
    places = {id(parameter): name for name, parameter in parameters.items()}
    groups = make_optimizer(parameters, config, lr=1e-4).param_groups
    found = {places[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert found.keys() == NAMES.keys() and sum(len(group["params"]) for group in groups) == len(NAMES)
    return found


def test_each_part_has_its_own_learning_rate() -> None:
    assert set(lrs_by_name(OptimizationConfig()).values()) == {1e-4}
    own = LrByPartConfig(connector=1e-5, vision=2e-6)
    found = lrs_by_name(OptimizationConfig(lr_by_part=own))
    assert [found[name] for name in NAMES] == [1e-4, 1e-4, 1e-4, 1e-5, 2e-6, 2e-6]


def test_lora_plus_is_for_matrices_b_alone() -> None:
    """On top of the part's own rate; the schedule then scales each group from its own peak."""
    config = OptimizationConfig(lr_by_part=LrByPartConfig(vision=2e-6), lora_plus_ratio=16)
    found = lrs_by_name(config)
    assert [found[name] for name in NAMES] == pytest.approx([1e-4, 16e-4, 1e-4, 1e-4, 2e-6, 32e-6])
    optimizer = make_optimizer({n: torch.nn.Parameter(torch.ones(*s)) for n, s in NAMES.items()}, config, lr=1e-4)
    peaks = [group["lr"] for group in optimizer.param_groups]
    make_schedule(optimizer, OptimizationConfig(warmup_steps=4), TOTAL)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([peak / 4 for peak in peaks])


def test_groups_are_as_before_without_them() -> None:
    """What a resumed run's optimiser state rests on: matrices, then vectors."""
    parameters = {name: torch.nn.Parameter(torch.ones(*shape)) for name, shape in NAMES.items()}
    groups = parameter_groups(parameters, OptimizationConfig(weight_decay=0.1), 1e-4)
    assert [(len(group["params"]), group["weight_decay"], group["lr"]) for group in groups] == [
        (5, 0.1, 1e-4),
        (1, 0.0, 1e-4),
    ]


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
