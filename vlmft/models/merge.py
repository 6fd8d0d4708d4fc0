"""An adapter added into the weights that it was trained beside: a model that needs no PEFT."""

from __future__ import annotations

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The weights that a quantised model computes with, in fp32: the adapter was trained beside these."""
    if getattr(model, "is_quantized", False):
        model = model.dequantize()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():  # not model.to(): that would round buffers, such as rotary frequencies
        parameter.data = parameter.data.float()
    return model


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter added in, exact to rounding in fp32.

    Raises:
        ConfigError: the base is quantised. Merging would quantise the sum anew, which moved logits as far as they are
            large (measured 0.79 at a scale of 0.72).
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, (Linear4bit, Linear8bitLt))]
    if layers:
        raise ConfigError(
            f"form: Expected weights in 16 or 32 bit to merge into, got {len(layers)} quantised layers ({layers[0]}); "
            "dequantise the base first"
        )
    whole: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator, assignment]
    return whole


def rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """All weights in `dtype`; buffers stay."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
