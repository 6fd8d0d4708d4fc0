"""The only place where the rooms meet: settings in, model, data and their connections out."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import PIL.Image
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.config.schema import (
    DataConfig,
    Init,
    ModelConfig,
    OptimizationConfig,
    OptimizerName,
    QuantizationConfig,
    QuantizationMode,
    TrainConfig,
    TrainerConfig,
)
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import Ledger
from vlmft.evaluation.predict import Answerer
from vlmft.models import lora
from vlmft.models.family import Family, make_family
from vlmft.models.load import Source, computes_in_bf16, load_model, load_source, storage_dtype
from vlmft.run.memory_check import require_training, require_weights
from vlmft.run.start import found_data
from vlmft.sample import Image, Message, Prompt
from vlmft.training.ranks import local_rank


@dataclass
class Inferred:
    """A setting that the user left open: what it became, and why."""

    key: str
    value: Any
    origin: str


@dataclass
class Built:
    """What a run works with."""

    source: Source
    family: Family
    model: PreTrainedModel | PeftModel
    data: VLMDataModule
    device: torch.device
    fingerprint: dict[str, str]
    numerics: dict[str, str]
    """What else moves an answer, if only by rounding: device, storage dtype, attention, quantisation."""
    model_config: ModelConfig
    seed: int

    @property
    def base(self) -> PreTrainedModel:
        return lora.base_of(self.model)

    def unquantized(self) -> Built:
        """The untuned base in the storage dtype, loaded beside this one."""
        return self.other(replace(self.model_config, quantization=QuantizationConfig(mode=QuantizationMode.none)))

    def other(self, config: ModelConfig) -> Built:
        """Another model of the same architecture, loaded beside this one and asked in the same way.

        Raises:
            ConfigError: it cannot be loaded, or is of another architecture.
        """
        source, hf_config = load_source(config)
        mine = getattr(self.base.config, "model_type", None)
        if hf_config.model_type != mine:
            raise ConfigError(f"model.path: Expected a {mine} model, got a {hf_config.model_type} in {config.path!r}")
        return replace(
            self,
            model=load_model(config, source, hf_config, self.device, self.seed),
            fingerprint={**self.fingerprint, "base": base_of_run(config, source, self.seed)},
            numerics=numerics_of(config, self.device),
        )

    def answerer(self, evaluation: EvaluationConfig, poll: Callable[[], None] = lambda: None) -> Answerer:
        """Generation with this model, whatever adapter state it is in; `poll` is called before each batch."""
        return Answerer(
            self.family,
            self.base,
            evaluation.rows_per_batch,
            self.data.max_new_tokens,
            self.data.ledger.refuse,
            self.data.config.workers,
            poll,
        )


def pick_device(trainer: TrainerConfig) -> torch.device:
    """The device that `trainer.accelerator` means here.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked = {"gpu": "cuda"}.get(trainer.accelerator, trainer.accelerator)
    if asked == "auto":
        asked = next(kind for kind, there in kinds.items() if there)
    if not kinds.get(asked, False):
        raise ConfigError(
            f"trainer.accelerator: Expected auto, cpu, gpu or mps that is there, got {trainer.accelerator!r}"
        )
    there = torch.cuda.device_count() if asked == "cuda" else trainer.devices
    if trainer.devices > there:
        raise ConfigError(f"trainer.devices: Expected at most the {there} GPUs that are here, got {trainer.devices}")
    return torch.device(asked, local_rank()) if asked == "cuda" else torch.device(asked)


def pick_precision(trainer: TrainerConfig, device: torch.device) -> str:
    """Lightning's precision: what was asked for, or the best that the device computes in."""
    if trainer.precision != "auto":
        return trainer.precision
    if device.type != "cuda":
        return "32-true"
    return "bf16-mixed" if computes_in_bf16() else "16-mixed"


def refuse_what_it_cannot(config: TrainConfig, device: torch.device) -> None:
    """
    Raises:
        ConfigError: a precision or an optimiser that this kind of device does not have.
    """
    precision = config.trainer.precision
    if precision == "bf16-mixed" and device.type == "cuda" and not computes_in_bf16():
        raise ConfigError("trainer.precision: this GPU has no bf16, got bf16-mixed; set auto or 16-mixed")
    if precision == "16-mixed" and device.type == "cpu":  # Lightning would take bf16 instead
        raise ConfigError("trainer.precision: CPUs have no fp16 training, got 16-mixed; set auto or bf16-mixed")
    eight_bit = config.train.optimizer in (OptimizerName.adamw_8bit, OptimizerName.paged_adamw_8bit)
    if eight_bit and device.type == "mps":
        raise ConfigError(
            f"train.optimizer: bitsandbytes has none for Apple's GPUs, got {config.train.optimizer.name}; set adamw, "
            "or trainer.accelerator=cpu"
        )


def build(
    model_config: ModelConfig,
    data_config: DataConfig,
    trainer: TrainerConfig,
    *,
    seed: int,
    train: OptimizationConfig | None = None,
    resumes: bool = False,
    dataset: Dataset | None = None,
    ledger: Ledger | None = None,
    adapters: bool = True,
) -> Built:
    """Model on its device, adapters on it, data connected to the family's encoder. Writes nothing.

    Raises:
        ConfigError: something cannot be had, or is estimated not to fit: `train` is what it is to be trained with. A
            run that `resumes` is warned alone, for its settings cannot be changed any more.
    """
    dataset = dataset or found_data(data_config)
    ledger = ledger or Ledger(None, data_config.on_bad_row, data_config.bad_row_ceiling)
    source, hf_config = load_source(model_config)
    family = make_family(model_config, source, hf_config)
    family.allow(dataset.allow_tokens)
    rows_per_step = train.rows_per_step if train is not None else 1
    data = VLMDataModule(dataset, data_config, family.encode, ledger, rows_per_step, seed)
    device = pick_device(trainer)
    if train is None:
        require_weights(model_config, hf_config, device, trainer)
    else:
        told = require_training(model_config, source, hf_config, data, device, trainer, train, may_refuse=not resumes)
        print(f"  memory: {told}", flush=True)
    base = load_model(model_config, source, hf_config, device, seed)
    model = lora.attach(base, model_config, seed) if adapters else base
    if train is not None and train.gradient_checkpointing:
        lora.checkpoint_language(base)
    prints = fingerprint(family, base_of_run(model_config, source, seed))
    return Built(source, family, model, data, device, prints, numerics_of(model_config, device), model_config, seed)


def base_of_run(config: ModelConfig, source: Source, seed: int) -> str:
    """What tells one base from another: two seeds of random weights are two bases."""
    return f"{source.commit}, seed {seed}" if config.init == Init.random else source.commit


def numerics_of(config: ModelConfig, device: torch.device) -> dict[str, str]:
    mode = config.quantization.mode.name
    double = f"{mode}, double" if config.quantization.double_quant and mode in ("nf4", "fp4") else mode
    dtype = str(storage_dtype(device)).removeprefix("torch.")
    return {"device": device.type, "dtype": dtype, "attention": config.attention.name, "quantization": double}


_PROBE = Image(functools.partial(PIL.Image.new, "RGB", (64, 64)), "a black square")


def fingerprint(family: Family, commit: str) -> dict[str, str]:
    """What an adapter was trained under, each as a hash or commit: prompt format, processor, base."""
    parts = family.fingerprint_parts
    hashes = {name: _short(parts[name]) for name in sorted(parts)}
    shown = () if "text_only" in family.capabilities else (_PROBE,)
    probe = Prompt((Message("user", (*shown, "What is this?")),))
    return {
        **hashes,
        "prompt_ids": _short(family.encode_prompt("probe", probe).input_ids.tolist()),
        "base": commit,
    }


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_sha256(fingerprint: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()


def infer(config: TrainConfig) -> list[Inferred]:
    """Fills what the user left open, in place, and says what each became and where it came from."""
    found: list[Inferred] = []
    if config.train.lr is None:
        config.train.lr = config.model.default_lr
        found.append(Inferred("train.lr", config.train.lr, f"model.default_lr of {config.model.name}"))
    if config.trainer.max_epochs is None:
        if config.trainer.max_steps >= 0:
            config.trainer.max_epochs = -1
            found.append(Inferred("trainer.max_epochs", -1, "trainer.max_steps is set"))
        else:
            config.trainer.max_epochs = config.data.default_epochs
            found.append(Inferred("trainer.max_epochs", config.data.default_epochs, "data.default_epochs"))
    if config.train.rows_per_batch is None:
        config.train.rows_per_batch = config.train.rows_per_step
        found.append(Inferred("train.rows_per_batch", config.train.rows_per_step, "train.rows_per_step"))
    device = pick_device(config.trainer)
    found.append(Inferred("device", str(device), f"trainer.accelerator={config.trainer.accelerator}"))
    if config.trainer.precision == "auto":
        config.trainer.precision = pick_precision(config.trainer, device)
        found.append(Inferred("trainer.precision", config.trainer.precision, f"what {device.type} computes in"))
    refuse_what_it_cannot(config, device)
    return found
