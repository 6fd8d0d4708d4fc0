"""The names and values that people bring from other tools: each works, or gets one line that says what to write."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import vlmft
from vlmft.config import schema, tool_schema
from vlmft.config.check import ConfigError, nearest_key
from vlmft.config.entry import conf_dir
from vlmft.config.setting_types import all_settings
from vlmft.config.synonyms import SETTING, instead, synonyms
from vlmft.data.datasets.columns import Columns
from vlmft.data.datasets.messages import Messages

LEGAL = all_settings(schema.TrainConfig)
ANYWHERE = {*LEGAL, *all_settings(schema.EvaluateConfig), *all_settings(tool_schema.ExportConfig)}
TEXTS = [(name, value, text) for name, values in synonyms().items() for value, text in values.items()]


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        vlmft.compose(*overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def settings_that_are_not_there(text: str) -> list[str]:
    options = {f"data.options.{name}" for way in (Columns, Messages) for name in inspect.signature(way).parameters}
    return [setting for setting in SETTING.findall(text) if setting not in ANYWHERE | options]


def test_the_table_is_read() -> None:
    assert len(synonyms()) > 150 and all(isinstance(text, str) and text for _, _, text in TEXTS)


def test_every_setting_named_in_the_table_exists() -> None:
    assert {name: odd for name, _, text in TEXTS if (odd := settings_that_are_not_there(text))} == {}
    for name, _, text in TEXTS:
        for group, choice in re.findall(r"\b(model|data|trainer|logger|callbacks)=(\w+)\b(?!\.)", text):
            assert (conf_dir() / group / f"{choice}.yaml").is_file() or choice in ("FOLDER", "NAME"), name


def test_a_setting_that_does_not_exist_is_seen() -> None:
    assert settings_that_are_not_there("train.lrr={}; train.lr=3") == ["train.lrr"]


def test_a_setting_of_ours_is_in_the_table_for_some_values_alone() -> None:
    ours = {name: patterns for name, patterns in synonyms().items() if name in LEGAL}
    assert ours and [name for name, patterns in ours.items() if "*" in patterns] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "text"), TEXTS)
def test_what_is_to_be_written_composes(name: str, value: str, text: str, tmp_path: Path) -> None:
    """With a value that the pattern takes; placeholders, as N and FOLDER, get one that fits."""
    if not SETTING.match(text):
        return
    written = text.partition(";")[0]
    if "{}" in written:
        key = SETTING.findall(next(word for word in written.split() if "{}" in word))[0]
        written = written.replace("{}", example(key, value, str(tmp_path)))
    written = re.sub(r"=\d+\*N\b|=N\b", "=2", written.replace("{rows}", "8")).replace("FOLDER", str(tmp_path))
    others = ["model.train.connector=lora"] if "model.train.language=frozen" in written else []
    vlmft.compose(*written.split(), *others)


def example(key: str, value: str, folder: str) -> str:
    """Some value of a setting, by its type or, for what is carried over from the table, its pattern."""
    known: dict[str, str] = {
        "ckpt_path": "last",
        "data": "shapes",
        "data.metric": "exact_match",
        "data.options.hub_id": "a/b",
        "data.path": folder,
        "logger": "csv",
        "model.attention": "sdpa",
        "model.lora.target_modules": "[q_proj]" if value == "[[]*" else "q_proj",
        "model.path": "a/b",
        "model.quantization.mode": "nf4",
        "trainer.accelerator": "cpu",
    }
    kind = re.search(r"\b(bool|int|float)\b", re.sub(r"expected='[^']*'", "", repr(LEGAL.get(key, ""))))
    return known.get(key) or {"bool": "true", "int": "1", "float": "0.1"}.get(kind[1] if kind else "", "x")


SAID: dict[tuple[str, ...], str] = {
    ("output_dir=x",): "output_dir: not known here; write output_root=x",
    ("max_length=512",): "write model.max_length_tokens=512",
    ("max_seq_length=512",): "write model.max_length_tokens=512",
    ("cutoff_len=512",): "write model.max_length_tokens=512",
    ("load_in_4bit=True",): "write model.quantization.mode=nf4",
    ("load_in_8bit=true",): "write model.quantization.mode=int8",
    ("lora_alpha=32", "lora_rank=8"): "lora_alpha, lora_rank: not known here; write model.lora.alpha=32 model.lora.r=8",
    ("lora_dropout=0.1",): "write model.lora.dropout=0.1",
    ("lora_target=q_proj",): "write model.lora.target_modules=[q_proj]",
    ("target_modules=[q_proj,v_proj]",): "write model.lora.target_modules=[q_proj,v_proj]",
    ("target_modules=all-linear",): "target_modules: leave it out; by default every linear layer",
    ("per_device_train_batch_size=4",): "write train.rows_per_batch=4 train.rows_per_step=4",
    ("gradient_accumulation_steps=8",): "write train.rows_per_batch=N train.rows_per_step=8*N",
    (
        "per_device_train_batch_size=4",
        "gradient_accumulation_steps=8",
    ): "per_device_train_batch_size: not known here; write train.rows_per_batch=4 train.rows_per_step=32",
    (
        "per_device_train_batch_size=4",
        "gradient_accumulation_steps=8",
        "trainer.devices=2",
    ): "write train.rows_per_batch=4 train.rows_per_step=64",
    ("num_train_epochs=3",): "write trainer.max_epochs=3",
    ("learning_rate=1e-4",): "write train.lr=1e-4",
    ("trainer.learning_rate=1e-4",): "write train.lr=1e-4",
    ("warmup_ratio=0.1",): "write train.warmup_ratio=0.1",
    ("lr_scheduler_type=cosine_with_restarts",): "write train.schedule=cosine",
    ("weight_decay=0.01",): "write train.weight_decay=0.01",
    ("max_grad_norm=0.3",): "write train.max_gradient_norm=0.3",
    ("bf16=true",): "write trainer.precision=bf16-mixed",
    ("fp16=true", "bf16=false"): "fp16: not known here; write trainer.precision=16-mixed | bf16: leave it out",
    ("report_to=none",): "write logger=none",
    ("report_to=tensorboard",): "write logger=tensorboard",
    ("run_name=mine",): "write name=mine",
    ("model_name_or_path=Qwen/Qwen2-VL-2B-Instruct",): "write model=qwen2vl",
    ("dataset=HuggingFaceM4/ChartQA",): "write data=chartqa",
    ("eval_steps=100",): "write trainer.val_check_interval=100",
    ("save_steps=100",): "write trainer.val_check_interval=100 (a checkpoint is made at each validation)",
    ("logging_steps=5",): "write trainer.log_every_n_steps=5",
    ("resume_from_checkpoint=true",): "write resume=true",
    ("resume_from_checkpoint=out/checkpoint-3",): "write ckpt_path=out/checkpoint-3",
    ("freeze_vision_tower=false",): "write model.train.vision=lora",
    ("gradient_checkpointing=true",): "write train.gradient_checkpointing=true",
    ("trainer.accumulate_grad_batches=4",): "write train.rows_per_batch=N train.rows_per_step=4*N",
    ("trainer.gradient_clip_val=1.0",): "write train.max_gradient_norm=1.0",
    ("trainer.devices=-1",): "trainer.devices=-1: not known here; write trainer.devices=N (nvidia-smi -L lists",
    ("trainer.devices=auto",): "trainer.devices=auto: not known here; write trainer.devices=N",
    ("trainer.devices=[0,1]",): "trainer.devices=[0,1]: not known here; write trainer.devices=N (which ones, CUDA_VI",
    ("callbacks=default",): "callbacks=default: not known here; write callbacks=none (a bar and checkpoints every run",
    ("train=false",): "train: python evaluate.py run=RUN_FOLDER evaluates",
    ("model=Qwen/Qwen2-VL-2B-Instruct",): "model=Qwen/Qwen2-VL-2B-Instruct: not known here; write model=qwen2vl",
    (
        "model=org/other",
        "+lr=3",
    ): "model=org/other, lr: not known here; write model=auto model.path=org/other train.lr=3",
    ("data=HuggingFaceM4/ChartQA",): "write data=chartqa",
    ("data=org/set",): "write data=columns data.options.hub_id=org/set",
    ("data=./mine.csv",): "write data=columns data.path=./mine.csv (data=imagefolder",
    ("++learning_rate=1e-4",): "learning_rate: not known here; write train.lr=1e-4",
}


@pytest.mark.parametrize(("overrides", "said"), SAID.items())
def test_the_line(overrides: tuple[str, ...], said: str) -> None:
    line = refusal(*overrides)
    assert line.startswith(said) if ": " in said.partition("write")[0] else said in line


WORKS = [
    "task_name=mine",
    "ckpt_path=last",
    "ckpt_path=.",
    "trainer=gpu",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "callbacks=lr_monitor",
    "callbacks=[lr_monitor,timer]",
    "debug=default",
    "debug=fdr",
    "seed=3",
    "tags=[a,b]",
    "logger=[wandb,csv]",
]


@pytest.mark.parametrize("override", WORKS)
def test_what_is_named_as_elsewhere(override: str) -> None:
    vlmft.compose(override)


def test_models_by_their_hub_id() -> None:
    ids = {
        yaml.safe_load(file.read_text(encoding="utf-8"))["path"]: file.stem for file in conf_dir().glob("model/*.yaml")
    }
    ids = {path: f"model={name}" for path, name in ids.items() if re.fullmatch(r"[\w.-]+/[\w.-]+", path)}
    assert len(ids) >= 5
    assert {path: text for path, text in synonyms()["model"].items() if "*" not in path} == ids


def test_evaluation_gets_what_it_has(compose_evaluate: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        compose_evaluate("model=tiny", "data=shapes", "per_device_eval_batch_size=8")
    assert str(refused.value).endswith("write evaluation.rows_per_batch=8")
    assert instead(["learning_rate=1e-4"], all_settings(schema.EvaluateConfig), "") is None


def test_a_command_that_is_refused_for_something_else() -> None:
    assert instead(["model=org/other", "seed=x"], LEGAL, "seed: Expected a whole number, got 'x'") is None
    assert instead(["seedd=3"], LEGAL, "seedd: no such setting") is None


def test_a_name_without_a_value() -> None:
    """As in a stored config, of which the line knows the keys alone."""
    assert nearest_key("train.learning_rate", [*LEGAL]) == "did you mean 'train.lr'?"
    assert nearest_key("hub_token", [*LEGAL]).startswith("leave it out; the token is read from HF_TOKEN")
