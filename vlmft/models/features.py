"""What the language part sees of an image: made here, handed in here, through public doors of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmft.config.check import ConfigError
from vlmft.models.feature_cache import FeatureCache
from vlmft.models.lora import part_of
from vlmft.sample import EncodedImage, on_device

Features = list[torch.Tensor]
"""One tensor an image, (n_image_tokens, d_model), in reading order. Where the language part takes image features in
several of its layers (Qwen3-VL's deepstack), they stand side by side: (n_image_tokens, (1 + n_layers) * d_model)."""

See = Callable[[PreTrainedModel, Sequence[EncodedImage]], Features]
PIXELS_AT_ONCE = 1 << 24
"""Values of pixels that go through a GPU's tower at once: 21 images or tiles of 512 x 512."""
KNOWN_OUTPUTS = {"last_hidden_state", "pooler_output", "hidden_states", "attentions", "deepstack_features"}


class PerImage(list[torch.Tensor]):
    """Features of each image for models that want a list, and one tensor for those that want one."""

    def to(self, *where: Any) -> torch.Tensor:
        return torch.cat(self).to(*where)


def see(model: PreTrainedModel, images: Sequence[EncodedImage]) -> Features:
    """Features by the model's own `get_image_features`.

    Raises:
        ConfigError: the model makes more of an image than features, which its language part would miss.
    """
    names = [n for n in inspect.signature(model.get_image_features).parameters if n in images[0].arrays]
    device, dtype = model.device, vision_dtype(model)
    arrays = {n: on_device(torch.from_numpy(np.concatenate([i.arrays[n] for i in images])), device) for n in names}
    arrays = {n: a.to(dtype) if a.is_floating_point() else a for n, a in arrays.items()}
    output = model.get_image_features(**arrays)
    if odd := {name for name, value in output.items() if value is not None} - KNOWN_OUTPUTS:
        raise ConfigError(f"model.path: this model needs {', '.join(sorted(odd))} of an image, too; use another one")
    layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
    by_image = zip(*(_by_image(layer, images) for layer in layers), strict=True)
    return [torch.cat(features, dim=-1) if len(features) > 1 else features[0] for features in by_image]


def vision_dtype(model: PreTrainedModel) -> torch.dtype:
    """Of the vision part's weights: `model.dtype` is that of the first, which may be of a language part that is trained
    in fp32."""
    weights = (p for name, p in model.named_parameters() if p.is_floating_point() and part_of(name) == "vision")
    dtype: torch.dtype = next(weights, model).dtype
    return dtype


def _by_image(pooled: Sequence[torch.Tensor], images: Sequence[EncodedImage]) -> list[torch.Tensor]:
    """(n_tokens, d_model) for each image; some models (InternVL) give a tensor for each of an image's tiles."""
    rows = [feature.reshape(-1, feature.shape[-1]) for feature in pooled]
    if len(rows) == len(images):
        return rows
    tiles = iter(rows)
    return [torch.cat([next(tiles) for _ in image.arrays["pixel_values"]]) for image in images]


def image_features(
    model: PreTrainedModel,
    images: Sequence[EncodedImage],
    *,
    grad: bool,
    see: See = see,
    cache: FeatureCache | None = None,
) -> Features:
    """Features in the model's dtype.

    Frozen (`grad=False`): each image once, without autograd or autocast. Batch composition changes bits, so that on a
    CPU a feature has one definition, an image a call, whether computed now or read from a cache. On a GPU, which would
    be idle, images of equal shape go together, and a stored feature is the one that was made first. With `grad`, images
    go together where their shapes allow it. A cache must be this model's.
    """
    if not grad:
        # Features that were made in inference mode could not be stored and then take part in a backward pass.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            return _frozen_features(model, images, see, cache)
    together = len({shape_of(image) for image in images}) == 1
    return see(model, images) if together else [see(model, [image])[0] for image in images]


def _frozen_features(
    model: PreTrainedModel, images: Sequence[EncodedImage], see: See, cache: FeatureCache | None
) -> Features:
    found: dict[str, torch.Tensor] = {}
    missing = []
    for sha256, image in {image.sha256: image for image in images}.items():
        stored = cache.get(sha256) if cache is not None else None
        if stored is not None:
            found[sha256] = on_device(stored, model.device)
        else:
            missing.append(image)
    for group in groups_to_see(missing, model.device):
        for image, feature in zip(group, see(model, group), strict=True):
            found[image.sha256] = feature
            if cache is not None:
                cache.put(image, feature)
    return [found[image.sha256] for image in images]


def shape_of(image: EncodedImage) -> tuple[tuple[int, ...], ...]:
    """Of its arrays, but for the first dimension, along which images are put together."""
    return tuple(array.shape[1:] for array in image.arrays.values())


def size_of(image: EncodedImage) -> int:
    """Values of its pixels."""
    return sum(array.size for array in image.arrays.values())


def groups_to_see(images: Sequence[EncodedImage], device: torch.device) -> list[list[EncodedImage]]:
    """Which go through the tower at once: one on a CPU; on a GPU those of equal shape, up to `PIXELS_AT_ONCE`."""
    if device.type != "cuda":
        return [[image] for image in images]
    groups: list[list[EncodedImage]] = []
    by_shape: dict[tuple[tuple[int, ...], ...], list[EncodedImage]] = {}
    for image in images:
        if image.features_stored:  # it came without pixels, and has no shape before it is decoded to be seen
            groups.append([image])
            continue
        group = by_shape.get(shape_of(image))
        if group is None or sum(map(size_of, [*group, image])) > PIXELS_AT_ONCE:
            group = by_shape[shape_of(image)] = []
            groups.append(group)
        group.append(image)
    return groups


def encoder_outputs(model: PreTrainedModel, features: Features) -> dict[str, BaseModelOutputWithPooling]:
    """The form in which `forward` and `generate` of transformers take features; empty where there is no image."""
    if not features:
        return {}
    width: int = model.get_input_embeddings().weight.shape[1]  # type: ignore[union-attr, index, assignment]
    layers = [
        PerImage(parts) for parts in zip(*(torch.split(feature, width, dim=-1) for feature in features), strict=True)
    ]
    output: Any = BaseModelOutputWithPooling(pooler_output=layers[0])
    if len(layers) > 1:
        output.deepstack_features = layers[1:]
    return {"image": output}
