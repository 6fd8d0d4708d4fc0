"""Settings that go to a library bear its names: compared with what is installed, for checking a config imports none."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

import vlmft
from vlmft.config import schema, trainer_schema
from vlmft.config.check import ConfigError
from vlmft.config.setting_types import constraints
from vlmft.config.synonyms import synonyms

PACKAGE = Path(vlmft.__file__).parent
OWN_SETTINGS = ("memory_gib", "threads")
SETTINGS_OF_THE_TRAINER = [
    field.name for field in dataclasses.fields(trainer_schema.TrainerConfig) if field.name not in OWN_SETTINGS
]
NOT_OF_THE_TRAINER = sorted(
    {key.removeprefix("trainer.") for key in synonyms() if key.startswith("trainer.")} - {*SETTINGS_OF_THE_TRAINER}
)


def keywords_of_calls(file: str, callee: str) -> list[str]:
    """The keywords that `file` passes wherever it calls `callee`, as it is written there; for `**name`, the keys of
    the dict literal that the file binds to that name."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == callee]
    assert calls, f"{file} calls no {callee}"
    dicts = {
        ast.unparse(node.target): node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    }
    found = []
    for keyword in (keyword for call in calls for keyword in call.keywords):
        if keyword.arg is not None:
            found.append(keyword.arg)
        else:
            found += [ast.literal_eval(key) for key in dicts[ast.unparse(keyword.value)].keys if key is not None]
    return found


def expect_known(names: list[str], callee: Callable[..., Any]) -> None:
    assert names
    assert set(names) <= set(inspect.signature(callee).parameters)


def test_the_reader_sees_a_wrong_name(tmp_path: Path) -> None:
    """The defect: a keyword that the library does not have."""
    file = tmp_path / "wrong.py"
    file.write_text("more: dict = {'aplha': 1}\nLora(r=1, **more)\n", encoding="utf-8")
    names = keywords_of_calls(str(file), "Lora")
    assert names == ["r", "aplha"]
    expect_known(["r", "alpha"], lambda r, alpha: None)
    with pytest.raises(AssertionError):
        expect_known(names, lambda r, alpha: None)


def test_trainer_settings_are_lightnings(
    compose: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning

    from vlmft.run.fit import make_trainer

    signature, passed = inspect.signature(lightning.Trainer), list[str]()

    def trainer(**arguments: Any) -> None:
        passed.extend(arguments)

    trainer.__signature__ = signature  # type: ignore[attr-defined]
    names = SETTINGS_OF_THE_TRAINER
    assert len(names) >= 10
    expect_known(names, lightning.Trainer)
    with monkeypatch.context() as patch:
        patch.setattr(lightning, "Trainer", trainer)
        make_trainer(compose("model=tiny", "data=shapes"), tmp_path, [], "val/metric", [])
    expect_known(passed, lightning.Trainer)
    assert set(names) <= set(passed), "a setting that never reaches the Trainer"
    arguments = set(inspect.signature(lightning.Trainer).parameters) - {"self"}
    assert arguments == {*names, *NOT_OF_THE_TRAINER}, "an argument that is neither taken nor refused"


@pytest.mark.parametrize("name", NOT_OF_THE_TRAINER)
def test_arguments_that_contradict_the_window_are_refused_with_what_takes_their_place(
    name: str, compose: Callable[..., Any]
) -> None:
    with pytest.raises((ConfigError, HydraException)) as refused:
        compose(f"++trainer.{name}=1")
    line = str(refused.value)
    assert re.match(rf"trainer\.{name}: (not known here; write )?", line)
    assert re.search(
        r"train\.(rows_per_batch|max_gradient_norm)|trainer\.devices|output_root|export|logger|callbacks=", line
    )


def choices(name: str) -> list[str]:
    """Of a setting of the Trainer, from "a, b or c"."""
    kind = typing.get_type_hints(trainer_schema.TrainerConfig, include_extras=True)[name]
    return re.split(", | or ", next(constraints(kind)).expected)


@pytest.mark.parametrize("precision", [name for name in choices("precision") if name != "auto"])
def test_precisions_are_lightnings(precision: str) -> None:
    from lightning.fabric import connector

    assert precision in typing.get_args(vars(connector)["_PRECISION_INPUT_STR"])


@pytest.mark.parametrize("accelerator", choices("accelerator"))
def test_accelerators_are_lightnings(accelerator: str) -> None:
    from lightning.pytorch.accelerators import AcceleratorRegistry

    assert accelerator in {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}


def test_lora_settings_are_pefts() -> None:
    import peft

    ours_to_theirs = {
        "r": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "target_modules": "target_modules",
        "init": "init_lora_weights",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
    }
    assert set(ours_to_theirs) == {field.name for field in dataclasses.fields(schema.LoraConfig)}
    expect_known(list(ours_to_theirs.values()), peft.LoraConfig)
    passed = keywords_of_calls("models/lora.py", "PeftLoraConfig")
    expect_known(passed, peft.LoraConfig)
    assert set(ours_to_theirs.values()) <= set(passed)


@pytest.mark.parametrize("init", schema.LoraInit)
def test_lora_initialisations_leave_the_base_weights_alone(init: schema.LoraInit) -> None:
    import peft
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    before = next(model.parameters()).detach().clone()
    value = True if init == schema.LoraInit.default else init.name
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=value))
    assert torch.equal(adapted.get_parameter("base_model.model.0.base_layer.weight"), before)
    row = torch.randn(1, 4)
    assert torch.equal(adapted(row), row @ before.T)  # B is zero


@pytest.mark.parametrize("name", schema.OptimizerName)
def test_optimizers_exist(name: schema.OptimizerName) -> None:
    import torch

    from vlmft.training.optim import make_optimizer

    weights = {"w": torch.nn.Parameter(torch.zeros(2, 2)), "b": torch.nn.Parameter(torch.zeros(2))}
    config = schema.OptimizationConfig(optimizer=name, weight_decay=0.1, beta1=0.8, beta2=0.9)
    optimizer = make_optimizer(weights, config, lr=1e-3)
    assert name.name.replace("_", "").removesuffix("8bit") in type(optimizer).__name__.lower()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {(group["lr"], tuple(group["betas"])) for group in optimizer.param_groups} == {(1e-3, (0.8, 0.9))}


@pytest.mark.parametrize("mode", schema.QuantizationMode)
@pytest.mark.parametrize("double_quant", [True, False])
def test_quantisation_modes_are_transformers(mode: schema.QuantizationMode, double_quant: bool) -> None:
    import torch
    from transformers import BitsAndBytesConfig

    from vlmft.models.load import quantization

    expect_known(keywords_of_calls("models/load.py", "BitsAndBytesConfig"), BitsAndBytesConfig)
    made = quantization(schema.QuantizationConfig(mode=mode, double_quant=double_quant), torch.bfloat16)
    if mode == schema.QuantizationMode.none:
        assert made is None
        return
    assert made is not None
    assert made.load_in_8bit == (mode == schema.QuantizationMode.int8)
    if made.load_in_4bit:
        assert (made.bnb_4bit_quant_type, made.bnb_4bit_use_double_quant) == (mode.name, double_quant)


@pytest.mark.parametrize("attention", [name for name in schema.Attention if name != schema.Attention.auto])
def test_attention_kernels_are_transformers(attention: schema.Attention) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert attention.name in {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}


def test_logger_settings_are_wandbs() -> None:
    import wandb

    passed = keywords_of_calls("training/tracking.py", "wandb.init")
    expect_known(passed, wandb.init)
    assert {"project", "entity", "mode", "tags"} <= {
        field.name for field in dataclasses.fields(trainer_schema.LoggerConfig)
    }
    assert {"project", "entity", "mode", "tags"} <= set(passed)
    assert set(keywords_of_calls("training/tracking.py", "wandb.Settings")) <= set(wandb.Settings.model_fields)
