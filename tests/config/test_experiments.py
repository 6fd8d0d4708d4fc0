"""conf/experiment/*.yaml: each published experiment with its published settings, and a header that says the rest."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from vlmft.config.entry import conf_dir
from vlmft.config.schema import TrainConfig
from vlmft.config.setting_types import value_at
from vlmft.metrics import CORPUS_METRICS, METRICS

ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDEFICS = {
    "model.name": "idefics9b",
    "model.quantization.mode": "nf4",
    "model.quantization.double_quant": True,
    "model.lora.r": 16,
    "model.lora.alpha": 32,
    "model.lora.dropout": 0.05,
    "model.lora.target_modules": ["q_proj", "k_proj", "v_proj"],
    "model.train.vision": "lora",
    "model.train.connector": "lora",
    "train.optimizer": "paged_adamw_8bit",
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "count_smolvlm256m": {
        "model.path": "HuggingFaceTB/SmolVLM-256M-Instruct",
        "data.options": {
            "hub_id": "leonardPKU/clevr_cogen_a_train",
            "image": "image",
            "question": "problem",
            "answer": "solution",
            "answer_pattern": r"<answer>\s*(\d+)\s*</answer>",
            "instruction": "Answer briefly.",
        },
        "data.limit_train": 3500,
        "data.val_rows": 350,
        "data.test_rows": 998,
        "data.metric": "count_accuracy",
        "model.quantization.mode": "nf4",
        "model.quantization.double_quant": True,
        "model.lora.r": 8,
        "model.lora.alpha": 8,
        "model.lora.dropout": 0.1,
        "model.lora.init": "gaussian",
        "model.lora.target_modules": ALL_SEVEN,
        "model.train.vision": "lora",
        "train.rows_per_batch": 2,
        "train.rows_per_step": 8,
        "train.warmup_steps": 20,
        "train.lr": 1e-4,
        "train.weight_decay": 0.01,
        "train.optimizer": "paged_adamw_8bit",
        "train.gradient_checkpointing": True,
        "trainer.max_epochs": 1,
    },
    "chartllama_moondream2": {
        "model.path": "vikhyatk/moondream2",
        "model.revision": "2025-06-21",
        "data.name": "chartllama",
        "data.limit_train": 1054,
        "data.test_rows": 118,
    },
    "pjn_charts_moondream2": {
        "model.path": "vikhyatk/moondream2",
        "model.revision": "2025-06-21",
        "data.name": "pjn_charts",
        "model.quantization.mode": "none",
        "model.train.language": "full",
        "model.train.vision": "frozen",
        "train.rows_per_batch": 8,
        "train.rows_per_step": 16,
        "train.optimizer": "adamw_8bit",
        "train.weight_decay": 0.0,
        "train.beta1": 0.9,
        "train.beta2": 0.95,
        "train.lr": 1e-5,
        "train.schedule": "cosine",
        "train.warmup_ratio": 0.1,
        "trainer.max_epochs": 1,
    },
    "pjn_charts_smolvlm": {
        "model.path": "HuggingFaceTB/SmolVLM-Base",
        "data.name": "pjn_charts",
        "seed": 42,
        "model.quantization.mode": "nf4",
        "model.lora.r": 8,
        "model.lora.alpha": 8,
        "model.lora.dropout": 0.1,
        "model.lora.target_modules": ALL_SEVEN,
        "model.train.vision": "lora",
        "train.rows_per_batch": 2,
        "train.rows_per_step": 8,
        "train.warmup_steps": 50,
        "train.lr": 1e-4,
        "train.weight_decay": 0.01,
        "train.optimizer": "adamw",
        "trainer.max_epochs": 1,
    },
    "pjn_charts_qwen2vl": {
        "model.path": "Qwen/Qwen2-VL-2B-Instruct",
        "data.name": "pjn_charts",
        "seed": 42,
        "model.lora.r": 8,
        "model.lora.alpha": 16,
        "model.lora.dropout": 0.05,
        "model.lora.target_modules": ["q_proj", "v_proj"],
        "model.train.vision": "frozen",
        "train.rows_per_step": 8,
        "trainer.max_epochs": 1,
    },
    "characters_qwen25vl": {
        "model.path": "Qwen/Qwen2.5-VL-3B-Instruct",
        "data.name": "characters",
        "data.val_rows": 0.15,
        "data.split_seed": 42,
        "seed": 42,
        "model.lora.r": 16,
        "model.lora.alpha": 32,
        "model.lora.dropout": 0.1,
        "model.lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "model.train.vision": "frozen",
        "train.lr": 3e-5,
        "train.rows_per_step": 2,
        "trainer.max_epochs": 25,
    },
    "sports_idefics": {
        **IDEFICS,
        "data.name": "sports",
        "data.train_per_class": 10,
        "data.options.question_text": "What sport is in this image?",
        "train.rows_per_batch": 4,
        "train.rows_per_step": 32,
        "train.lr": 2e-4,
        "trainer.max_epochs": 1,
    },
    "sports_captions_idefics": {
        **IDEFICS,
        "data.name": "sports_captions",
        "data.limit_train": 1600,
        "data.options.question_text": "What is a caption for this photo?",
        "train.rows_per_batch": 2,
        "train.rows_per_step": 16,
        "train.lr": 3e-5,
        "trainer.max_steps": 200,
    },
}
"""Experiment -> setting -> what was published."""
STEPS = {"count_smolvlm256m": (3500, 437), "pjn_charts_smolvlm": (1200, 150), "pjn_charts_qwen2vl": (1200, 150)}
"""Training rows and optimiser steps as published: one epoch."""


def header(name: str) -> str:
    lines = (conf_dir() / f"experiment/{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#") for line in lines[1:end])


def test_there_are_eight() -> None:
    assert len(PUBLISHED) == 8
    files = {file.stem for file in (conf_dir() / "experiment").glob("*.yaml")}
    assert files == {*PUBLISHED, "pretrain_tiny"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name: str, compose: Callable[..., TrainConfig]) -> None:
    config = compose(f"experiment={name}")
    for key, published in PUBLISHED[name].items():
        if key.startswith("data.options."):
            found = config.data.options[key.removeprefix("data.options.")]
        else:
            found = value_at(config, key)
        assert getattr(found, "name", found) == published, key
    rows, steps = STEPS.get(name, (0, 0))
    assert rows // config.train.rows_per_step == steps


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_says_what_to_know(name: str, compose: Callable[..., TrainConfig], tmp_path: Path) -> None:
    said = header(name)
    parts = ("Published:", "What differs:", "What cannot happen here:", "scale=smoke")
    assert all(said.count(part) == 1 for part in parts)
    commands = [line.split("#")[0] for line in said.splitlines() if "python train.py" in line]
    words = [shlex.split(command.replace("FOLDER", str(tmp_path))) for command in commands]
    assert words and all(found[:3] == ["python", "train.py", f"experiment={name}"] for found in words)
    advised = re.findall(r"\b(?:model|data)\.[a-z_.]+=\w+", said.replace("FOLDER", str(tmp_path)))
    compose(*dict.fromkeys([*words[-1][2:], *(setting for setting in advised if "path" not in setting)]))
    for metric in re.findall(r"--metric (\w+)", said):
        assert metric in {**METRICS, **CORPUS_METRICS}
