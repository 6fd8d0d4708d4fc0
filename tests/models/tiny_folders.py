"""A tiny model of any architecture, saved and loaded as a user's; and pictures of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedModel

from benchmarks.tiny_models import Tiny, save
from vlmft.config.schema import Init, ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.family import GenericFamily, make_family
from vlmft.models.load import load_model, load_source


def drawn(width: int, height: int, seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def loaded(tiny: Tiny, folder: Path) -> tuple[GenericFamily, PreTrainedModel]:
    """Random weights in 32 bit, all frozen."""
    save(tiny, folder)
    plain = QuantizationConfig(mode=QuantizationMode.none)
    config = ModelConfig(name="x", path=str(folder), init=Init.random, quantization=plain)
    source, model_config = load_source(config)
    family = make_family(config, source, model_config)
    model = load_model(config, source, model_config, torch.device("cpu"), seed=0)
    return family, model  # type: ignore[return-value]
