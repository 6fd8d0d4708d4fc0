"""What the language part sees of an image: made here, handed in here, through public doors of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmft.sample import EncodedImage

Features = list[torch.Tensor]
"""One tensor an image, (n_image_tokens, d_model), in reading order."""


def image_features(model: PreTrainedModel, images: Sequence[EncodedImage], *, grad: bool) -> Features:
    """Features in the model's dtype.

    Frozen (`grad=False`): one image a call, without autograd or autocast. Batch composition changes bits, so a feature
    has one definition, whether computed now or read from a cache. With `grad`, images go together where their shapes
    allow it.
    """
    if not grad:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            return [_see(model, [image])[0] for image in images]
    together = len({tuple(v.shape[1:] for v in image.arrays.values()) for image in images}) == 1
    return _see(model, images) if together else [_see(model, [image])[0] for image in images]


def encoder_outputs(features: Features) -> dict[str, BaseModelOutputWithPooling]:
    """The form in which `forward` and `generate` of transformers take features; empty where there is no image."""
    return {"image": BaseModelOutputWithPooling(pooler_output=features)} if features else {}


def _see(model: PreTrainedModel, images: Sequence[EncodedImage]) -> Features:
    names = [n for n in inspect.signature(model.get_image_features).parameters if n in images[0].arrays]
    device = model.device
    arrays = {n: torch.from_numpy(np.concatenate([i.arrays[n] for i in images])).to(device) for n in names}
    arrays = {n: a.to(model.dtype) if a.is_floating_point() else a for n, a in arrays.items()}
    pooled = model.get_image_features(**arrays).pooler_output
    return [f.reshape(-1, f.shape[-1]) for f in pooled]
