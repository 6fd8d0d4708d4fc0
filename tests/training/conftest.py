"""A small real model with adapters that do something, windows of real rows, and a way to fit without a run folder."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmft.config.schema import TrainConfig
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.models.lora import trainable
from vlmft.run.build import Built, build, resolved
from vlmft.run.fit import fit
from vlmft.sample import EncodedRow
from vlmft.training.callbacks import StepCheckpoint
from vlmft.training.interruption import StopRequest
from vlmft.training.metrics_file import METRICS_FILE, read_metrics
from vlmft.training.module import VLMModule
from vlmft.training.tracking import MetricsFile

SMALL = (
    "model=tiny_qwen2vl",
    "data=shapes",
    "data.options.train_rows=2000",
    "model.quantization.mode=none",
    "data.limit_train=24",
    "data.limit_val=8",
    "data.limit_test=8",
    "train.rows_per_step=8",
    "logger=none",
)
ANSWERS = ("3", "10", "seven items", "I count four of them", "5", "two and then six more", "8", "nine")
"""Of very different lengths, so that a mean of batch means is not the mean."""


@dataclasses.dataclass
class Bench:
    """What a training test works with."""

    config: TrainConfig
    built: Built

    def module(self, **train: Any) -> VLMModule:
        """A module outside a Trainer: its backward pass is plain."""
        config = dataclasses.replace(self.config.train, **train)
        module = VLMModule(self.built.family, self.built.model, self.config.model.train, config, 1e-3)
        module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]
        return module

    def rows(self, split: str = "train", answers: Sequence[str] = ANSWERS) -> list[EncodedRow]:
        samples = self.built.data.samples(self.built.data.ids[split][: len(answers)])  # type: ignore[index]
        renamed = [dataclasses.replace(s, answer=a, references=(a,)) for s, a in zip(samples, answers, strict=True)]
        return [self.built.family.encode(sample) for sample in renamed]


def stir(built: Built) -> None:
    """Gives every trained matrix a value: LoRA's B starts at zero, and then A has no gradient to compare."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(built.model).values():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def make_bench(compose: Callable[..., TrainConfig]) -> Callable[..., Bench]:
    """make_bench("model.lora.r=4", ...): as if newly built. A model is made once and put back to how it was."""
    made: dict[tuple[str, ...], tuple[Built, dict[str, torch.Tensor]]] = {}
    composed = functools.cache(compose)

    def bench(*overrides: str) -> Bench:
        config = copy.deepcopy(resolved(composed(*SMALL, *overrides)).config)
        key = tuple(override for override in overrides if override.startswith("model"))
        if key not in made:
            built = build(config.model, config.data, config.trainer, seed=config.seed)
            made[key] = built, {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
        built, state = made[key]
        built.model.load_state_dict(state)
        built.model.zero_grad(set_to_none=True)
        built.model.eval()
        ledger = Ledger(None, config.data.on_bad_row, config.data.bad_row_ceiling)
        rows, encode = config.train.rows_per_step, built.family.encode
        data = VLMDataModule(make_dataset(config.data), config.data, encode, ledger, rows, config.seed)
        return Bench(config, dataclasses.replace(built, data=data))

    return bench


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """For tests that leave the weights alone."""
    found = make_bench()
    stir(found.built)
    return found


@pytest.fixture
def gradients() -> Callable[[VLMModule, Sequence[EncodedRow]], tuple[float, dict[str, torch.Tensor]]]:
    """(loss, name -> gradient) of one window."""

    def found(module: VLMModule, rows: Sequence[EncodedRow]) -> tuple[float, dict[str, torch.Tensor]]:
        module.model.zero_grad(set_to_none=True)
        loss = float(module.window_backward(rows))
        return loss, {n: p.grad.clone() for n, p in trainable(module.model).items() if p.grad is not None}

    return found


@pytest.fixture
def distance() -> Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], float]:
    """Relative distance of two gradients, over all tensors together."""

    def found(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
        assert one.keys() == other.keys() and one
        total = sum(float(((one[n] - other[n]).double() ** 2).sum()) for n in one)
        size = sum(float((one[n].double() ** 2).sum()) for n in one)
        return float((total / size) ** 0.5)

    return found


@pytest.fixture
def run_fit(tmp_path: Path) -> Callable[..., Any]:
    """run_fit(bench) -> (checkpoints, module, metrics.jsonl lines)."""

    def fitted(bench: Bench) -> tuple[StepCheckpoint, VLMModule, list[dict[str, Any]]]:
        torch.manual_seed(bench.config.seed)
        loggers = [MetricsFile(tmp_path / METRICS_FILE)]
        checkpoints, module = fit(bench.config, bench.built, tmp_path, loggers, StopRequest())
        return checkpoints, module, read_metrics(tmp_path / METRICS_FILE)

    return fitted
