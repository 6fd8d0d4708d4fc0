"""Encoded rows to tensors: padding on one side, and the positions and image facts that the model's forward names."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from vlmft.sample import Batch, EncodedImage, EncodedRow, Layout


def collate(rows: Sequence[EncodedRow], layout: Layout, pad_id: int, model: PreTrainedModel) -> Batch:
    """Rows padded to the longest, on the side that `layout` (right or left) names."""
    mask = _padded([np.ones(row.length, np.int64) for row in rows], 0, layout)
    batch = Batch(
        row_ids=tuple(row.id for row in rows),
        layout=layout,
        input_ids=_padded([row.input_ids for row in rows], pad_id, layout),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        supervised=_padded([row.supervised for row in rows], False, layout),
        token_arrays=_token_arrays(rows, layout),
        images=tuple(image for row in rows for image in row.images),
        image_arrays={},
    )
    batch.image_arrays = language_facts(batch.images, model)
    batch.position_ids = _positions(batch, model)
    return batch


def seen_before(batch: Batch, is_causal: bool) -> dict[str, torch.Tensor | None]:
    """What a forward pass takes to know which tokens a token sees. Where layers look to the left alone, none sees the
    padding on its right, and no mask is made: sdpa then takes its causal kernel, a faster one.

    Trap: without a mask transformers takes positions that do not rise by one for several rows packed into one, so
    padding goes on counting.
    """
    mask, positions = batch.attention_mask, batch.position_ids
    if not is_causal or batch.layout != "right":
        return {"attention_mask": mask, "position_ids": positions}
    if positions.dim() == 2:  # those of three dimensions are not looked at
        positions = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    return {"attention_mask": None, "position_ids": positions}


def _padded(arrays: Sequence[np.ndarray], value: Any, layout: Layout) -> torch.Tensor:
    longest = max(len(array) for array in arrays)
    padded = np.full((len(arrays), longest), value, dtype=arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        start = longest - len(array) if layout == "left" else 0
        row[start : start + len(array)] = array
    return torch.from_numpy(padded)


def _token_arrays(rows: Sequence[EncodedRow], layout: Layout) -> dict[str, torch.Tensor]:
    names = sorted({name for row in rows for name in row.token_arrays})
    blank = [np.zeros(row.length, np.int64) for row in rows]  # a text-only row may come without them
    return {n: _padded([r.token_arrays.get(n, b) for r, b in zip(rows, blank, strict=True)], 0, layout) for n in names}


def language_facts(images: Sequence[EncodedImage], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Per-image arrays that the whole model's forward names beside the pixels, such as image_grid_thw."""
    wanted = [n for n in inspect.signature(model.forward).parameters if images and n in images[0].arrays]
    facts = [name for name in wanted if not name.startswith("pixel")]
    return {name: torch.from_numpy(np.concatenate([image.arrays[name] for image in images])) for name in facts}


def _positions(batch: Batch, model: PreTrainedModel) -> torch.Tensor:
    inner: Any = model.base_model
    if not hasattr(inner, "get_rope_index"):
        return batch.position_ids
    if not batch.images:
        return batch.position_ids.expand(3, *batch.position_ids.shape)
    positions: torch.Tensor = inner.get_rope_index(
        batch.input_ids, attention_mask=batch.attention_mask, **batch.token_arrays, **batch.image_arrays
    )[0]
    return positions
