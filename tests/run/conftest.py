"""Whole runs of the small random model, made once and looked at by many tests."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmft.config.schema import EvaluateConfig, TrainConfig
from vlmft.data.base import VLMDataModule
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.run.build import Built, build, infer
from vlmft.run.reevaluate import reevaluate
from vlmft.run.train import train
from vlmft.training.metrics_file import METRICS_FILE, read_metrics

SMALL = (
    "model=tiny_qwen2vl",
    "data=shapes",
    "data.options.train_rows=2000",
    "data.limit_train=32",
    "data.limit_val=16",
    "data.limit_test=24",
    "train.rows_per_step=8",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "evaluation.rows_per_batch=8",
    "evaluation.canary_rows=4",
    "evaluation.arms=[untuned,tuned]",
    "logger=none",
)
TRAINING_ALONE = ("preflight=false", "test=false", "model.quantization.mode=none", "data.max_new_tokens=1")


@dataclasses.dataclass
class Run:
    """A folder, and what was printed while it came about."""

    folder: Path
    output: str

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "summary.json").read_text(encoding="utf-8")))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder / METRICS_FILE)

    def steps(self, key: str) -> list[int]:
        """Steps at which a value was logged."""
        return [line["step"] for line in self.metrics if key in line]

    def predictions(self, arm: str) -> bytes:
        return (self.folder / "predictions" / f"{arm}.jsonl").read_bytes()


def called(action: Callable[[], Path]) -> Run:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        folder = action()
    return Run(folder, output.getvalue())


@pytest.fixture(scope="session")
def train_small(compose: Callable[..., TrainConfig]) -> Callable[..., Run]:
    """train_small(root, "key=value", ...): a run of some seconds."""

    def trained(root: Path, *overrides: str) -> Run:
        config = compose(*SMALL, f"output_root={root}", *overrides)
        return called(lambda: train(config))

    return trained


@pytest.fixture
def fit_small(train_small: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """fit_small("key=value", ...): training alone, without preflight and test."""
    return lambda *overrides: train_small(tmp_path, *TRAINING_ALONE, *overrides)


@pytest.fixture(scope="session")
def evaluate_small(compose_evaluate: Callable[..., EvaluateConfig]) -> Callable[..., Run]:
    """evaluate_small("run=...", ...): what evaluate.py does."""

    def evaluated(*overrides: str) -> Run:
        config = compose_evaluate("evaluation.arms=[untuned,tuned]", *overrides)
        return called(lambda: reevaluate(config))

    return evaluated


@pytest.fixture(scope="session")
def trained(train_small: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that most tests look at, with all three arms. Not to be changed; copy it."""
    root = tmp_path_factory.mktemp("runs")
    return train_small(root, "name=standard", "evaluation.arms=[untuned,tuned,blank]")


@pytest.fixture(scope="session")
def make_built(compose: Callable[..., TrainConfig]) -> Callable[..., tuple[TrainConfig, Built]]:
    """make_built("key=value", ...) -> (config, what a run works with), as if newly built: a model is made only once."""
    made: dict[tuple[str, ...], tuple[Built, dict[str, torch.Tensor], list[bool]]] = {}

    def built_for(*overrides: str) -> tuple[TrainConfig, Built]:
        config = compose(*SMALL, *overrides)
        infer(config)
        key = tuple(override for override in overrides if override.startswith("model"))
        if key not in made:
            found = build(config.model, config.data, config.trainer, seed=config.seed)
            state = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
            made[key] = found, state, [parameter.requires_grad for parameter in found.model.parameters()]
        found, state, flags = made[key]
        for name, tensor in found.model.state_dict().items():  # not load_state_dict: 4-bit weights do not take it
            tensor.copy_(state[name])
        for parameter, flag in zip(found.model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        found.model.zero_grad(set_to_none=True)
        found.model.eval()
        ledger = Ledger(None, config.data.on_bad_row, config.data.bad_row_ceiling)
        dataset, rows = make_dataset(config.data), config.train.rows_per_step
        data = VLMDataModule(dataset, config.data, found.family.encode, ledger, rows, config.seed)
        return config, dataclasses.replace(found, data=data)

    return built_for
