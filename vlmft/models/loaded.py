"""A model that can be asked: its weights on a device, its family, and what tells it from another one."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import PIL.Image
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.family import Family
from vlmft.models.load import Source, load_model, load_source, storage_dtype
from vlmft.models.lora import base_of, trainable
from vlmft.models.shared_images import attention_of
from vlmft.sample import Image, Message, Prompt

NO_ADAPTER = "none"
TUNED = "default"
"""PEFT's name of the adapter that the arm `tuned` means."""
_PROBE = Image(functools.partial(PIL.Image.new, "RGB", (64, 64)), "a black square")


@dataclass
class LoadedModel:
    """Weights, with adapters or without, and all that is needed to ask them."""

    model_config: ModelConfig
    source: Source
    family: Family
    model: PreTrainedModel | PeftModel
    device: torch.device
    seed: int

    @property
    def base(self) -> PreTrainedModel:
        return base_of(self.model)

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """What an adapter is trained under, each as a hash or commit: prompt format, processor, base."""
        return fingerprint(self.family, base_name(self.model_config, self.source, self.seed))

    @property
    def fingerprint_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()

    @property
    def numerics(self) -> dict[str, str]:
        """What else moves an answer, if only by rounding: device, storage dtype, attention, quantisation."""
        quantization = self.model_config.quantization
        mode = quantization.mode.name
        double = f"{mode}, double" if quantization.double_quant and mode in ("nf4", "fp4") else mode
        dtype = str(storage_dtype(self.device)).removeprefix("torch.")
        attention = attention_of(self.base)
        return {"device": self.device.type, "dtype": dtype, "attention": attention, "quantization": double}

    def unquantized(self) -> LoadedModel:
        """The untuned base in the storage dtype, loaded beside this one."""
        return self.other(replace(self.model_config, quantization=QuantizationConfig(mode=QuantizationMode.none)))

    def other(self, config: ModelConfig) -> LoadedModel:
        """Another model of the same architecture, loaded beside this one and asked in the same way.

        Raises:
            ConfigError: it cannot be loaded, or is of another architecture.
        """
        source, hf_config = load_source(config)
        mine = getattr(self.base.config, "model_type", None)
        if hf_config.model_type != mine:
            raise ConfigError(f"model.path: Expected a {mine} model, got a {hf_config.model_type} in {config.path!r}")
        model = load_model(config, source, hf_config, self.device, self.seed)
        return LoadedModel(config, source, self.family, model, self.device, self.seed)

    def adapter_sha256(self, adapter: str = TUNED) -> str:
        """Hash over names and values of all trained parameters; "none" where there are none."""
        parameters = _trained(self.model, adapter)
        if not parameters:
            return NO_ADAPTER
        digest = hashlib.sha256()
        for name in sorted(parameters):
            digest.update(name.encode())
            digest.update(parameters[name].detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()


def _trained(model: PreTrainedModel | PeftModel, adapter: str) -> Mapping[str, torch.nn.Parameter]:
    """The trained parameters, or a loaded adapter's, under the names that they were trained with."""
    if adapter == TUNED and (found := trainable(model)):
        return found
    mark = f".{adapter}."
    return {n.replace(mark, f".{TUNED}."): p for n, p in model.named_parameters() if ".lora_" in n and mark in n}


def base_name(config: ModelConfig, source: Source, seed: int) -> str:
    """What tells one base from another: two seeds of random weights are two bases."""
    return f"{source.commit}, seed {seed}" if config.init == Init.random else source.commit


def fingerprint(family: Family, base: str) -> dict[str, str]:
    """Prompt format and processor as hashes, and the base's name."""
    parts = family.fingerprint_parts
    hashes = {name: _short(parts[name]) for name in sorted(parts)}
    shown = () if "text_only" in family.capabilities else (_PROBE,)
    probe = Prompt((Message("user", (*shown, "What is this?")),))
    return {**hashes, "prompt_ids": _short(family.encode_prompt("probe", probe).input_ids.tolist()), "base": base}


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
