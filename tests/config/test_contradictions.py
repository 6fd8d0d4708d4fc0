"""Ranges, choices, and truths across settings: each refused in one sentence, and no number without a range."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

from vlmft.config import schema, tool_schema
from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.config.schema import EvaluateConfig
from vlmft.config.setting_types import Constraint, Count, all_settings, constraints

SCHEMAS = (
    schema.TrainConfig,
    schema.EvaluateConfig,
    tool_schema.TraceConfig,
    tool_schema.ExportConfig,
    tool_schema.AskConfig,
    tool_schema.PlayConfig,
    tool_schema.GradeConfig,
    tool_schema.AnnotateConfig,
    tool_schema.JudgeConfig,
)


def is_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(is_number(inner) for inner in typing.get_args(annotation))


def numbers_without_a_range(group: type) -> set[str]:
    return {key for key, kind in all_settings(group).items() if is_number(kind) and not [*constraints(kind)]}


def test_every_number_has_a_range() -> None:
    assert len({key for root in SCHEMAS for key, kind in all_settings(root).items() if is_number(kind)}) > 25
    assert not {key for root in SCHEMAS for key in numbers_without_a_range(root)}


def test_a_number_without_a_range_is_seen() -> None:
    bare = dataclasses.make_dataclass("Bare", [("n", Optional[int]), ("share", float), ("name", str), ("r", Count)])
    assert numbers_without_a_range(dataclasses.make_dataclass("Root", [("bare", bare)])) == {"bare.n", "bare.share"}


RANGES = {
    found
    for root in SCHEMAS
    for _, kind in all_settings(root).items()
    if is_number(kind)
    for found in constraints(kind)
}


@pytest.mark.parametrize("limit", sorted(RANGES, key=lambda limit: limit.expected), ids=lambda limit: limit.expected)
@pytest.mark.parametrize("value", [math.nan, -math.inf, -2])
def test_nothing_takes_nan_or_minus_two(limit: Constraint, value: float) -> None:
    assert not limit.holds(value)


def test_what_evaluate_changes_is_checked_like_what_train_sets() -> None:
    trained, changed = all_settings(EvaluationConfig), all_settings(EvaluateConfig)
    for key, kind in trained.items():
        assert [*constraints(changed[f"evaluation.{key}"])] == [*constraints(kind)]


CONTRADICTORY = {
    ("seed=-1",): "seed: Expected a whole number >= 0, got -1",
    ("train.rows_per_step=0",): "train.rows_per_step: Expected a whole number >= 1, got 0",
    ("train.lr=nan",): "train.lr: Expected a number > 0, got nan",
    ("train.lr=inf",): "train.lr: Expected a number > 0, got inf",
    ("train.beta2=1",): "train.beta2: Expected a number in [0, 1), got 1",
    ("model.lora.dropout=1",): "model.lora.dropout: Expected a number in [0, 1), got 1",
    ("trainer.max_steps=0",): "trainer.max_steps: Expected -1 or a whole number >= 1, got 0",
    ("trainer.limit_train_batches=2.5",): "trainer.limit_train_batches: Expected a share up to 1.0 or a count >= 1,",
    ("trainer.limit_val_batches=-1",): "trainer.limit_val_batches: Expected 0, a share up to 1.0 or a count >= 1,",
    ("trainer.strategy=deepspeed",): "trainer.strategy: Expected auto, ddp, fsdp or a mapping with _target_,",
    ("trainer.profiler=simpel",): "trainer.profiler: Expected simple, advanced, pytorch or a mapping with _target_,",
    ("trainer.max_time=2h",): "trainer.max_time: Expected a time as DD:HH:MM:SS or a mapping such as {hours: 2}, got",
    ("trainer.fast_dev_run=-1",): "trainer.fast_dev_run: Expected true, false or a count of batches, got -1",
    ("callbacks.mine.patience=3",): "callbacks.mine: Expected a mapping with _target_: module.Class, got",
    ("logger.lightning.mine=csv",): "logger.lightning.mine: Expected a mapping with _target_: module.Class, got 'csv'",
    ("trainer.plugins=[SLURM]",): "trainer.plugins.0: Expected a mapping with _target_: module.Class, got 'SLURM'",
    ("ckpt_path=no/such",): "ckpt_path: Expected last, best or a checkpoint's folder, got 'no/such'",
    ("trainer.devices=0",): "trainer.devices: Expected a whole number >= 1, got 0",
    ("model=moondream2", "model.revision=2025-04-14"): "model.family: moondream2 of 2025-04-14 has other token ids",
    ("trainer.precision=bf16-true",): "trainer.precision: Expected auto, 32-true, bf16-mixed or 16-mixed,",
    ("trainer.accelerator=gpuu",): "trainer.accelerator: Expected auto, cpu, gpu, cuda or mps, got 'gpuu'",
    ("logger.mode=disabled",): "logger.mode: Expected auto, online or offline, got 'disabled'",
    (
        "evaluation.arms=[tuned,best]",
    ): "evaluation.arms: Expected one of untuned, fewshot, tuned, blank, shuffled, textonly, unt",
    ("evaluation.arms=[blank@bare]",): "evaluation.arms: Expected untuned or tuned before an @, got 'blank@bare'",
    ("evaluation.arms=[tuned@short]",): "evaluation.arms: Expected one of",
    ("evaluation.prompts=[short]",): "evaluation.prompts: Expected train, vendor or bare, got 'short'",
    ("evaluation.few_shot.choose=file",): "evaluation.few_shot.file: Expected a file of examples with choose=file",
    ("evaluation.arms=[]",): "evaluation.arms: Expected at least one arm, got none",
    ("model.train.language=frozen",): "model.train: Expected lora or full for at least one part, got frozen for all",
    ("model.train.language=full",): "model.train.language: full training needs weights that are not quantised",
    ("model.init=random", "model.train.connector=full"): "model.init: random weights are trained in full; ",
    ("model.lora.target_modules=[]",): "model.lora.target_modules: Expected at least one layer name, got none",
    (
        "train.early_stopping_patience=2",
        "trainer.limit_val_batches=0",
    ): "train.early_stopping_patience: needs validation",
    ("train.lr_by_part.vision=1e-5",): "train.lr_by_part.vision: this part is not trained; set model.train.vision=lora",
    ("train.lr_by_part.language=0",): "train.lr_by_part.language: Expected a number > 0, got 0",
    (
        "model.train.language=full",
        "model.quantization.mode=none",
        "train.lora_plus_ratio=16",
    ): "train.lora_plus_ratio: no part is trained by lora",
    ("data.name=a/b",): "data.name: Expected a name for a folder",
    ("model.name=..",): "model.name: Expected a name for a folder",
}


@pytest.mark.parametrize(("overrides", "said"), CONTRADICTORY.items())
def test_refused_in_a_sentence(overrides: tuple[str, ...], said: str, compose: Callable[..., object]) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(*overrides)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value) and " | " not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "trainer.limit_val_batches=0",
        "trainer.limit_train_batches=0.5",
        "trainer.val_check_interval=1000",
        "trainer.max_epochs=-1",
        "train.max_gradient_norm=0",
        "train.warmup_steps=0",
        "evaluation.canary_rows=0",
        'name="опыт-1"',
        "name=r16.b",
    ],
)
def test_edges_that_hold(override: str, compose: Callable[..., object]) -> None:
    compose(override)


EVALUATE = {
    (): "run: Expected run=<run folder>, or model= and data= for an untuned model",
    ("model=tiny",): "run: Expected run=<run folder>, or model= and data= for an untuned model",
    ("run=.", "model=tiny"): "run: Expected run= without model= and adapter=, got both",
    ("run=.", "adapter=x"): "run: Expected run= without model= and adapter=, got both",
    ("run=.", "adapters.tuned=x"): "adapters: Expected a name of letters, digits, - and _ that is no arm's yet",
    ("run=no/such/run",): "run: there is no folder 'no/such/run'; give the folder that train.py printed",
    ("model=tiny", "data=shapes", "split=vall"): "split: Expected train, val or test, got 'vall'",
    ("model=tiny", "data=shapes", "model.lora.r=0"): "model.lora.r: Expected a whole number >= 1, got 0",
    ("model=tiny", "data=shapes", "data.path=no/such"): "data.path: there is no file or folder 'no/such'",
    ("model=tiny", "data=shapes", "data.options.x=1"): "data.options.x: Shapes has no such option",
}


@pytest.mark.parametrize(("overrides", "said"), EVALUATE.items())
def test_evaluate_is_refused_in_a_sentence(
    overrides: tuple[str, ...], said: str, compose_evaluate: Callable[..., object]
) -> None:
    with pytest.raises(ConfigError) as refused:
        compose_evaluate(*overrides)
    assert str(refused.value).startswith(said)


def test_evaluate_takes_a_run_folder(compose_evaluate: Callable[..., schema.EvaluateConfig], tmp_path: Path) -> None:
    assert compose_evaluate(f"run={tmp_path}").run == str(tmp_path)
