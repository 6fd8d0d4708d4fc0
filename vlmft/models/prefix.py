"""What many prompts begin with, such as few-shot examples, goes through the model once; keys and values are kept."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from vlmft.models.family import Family
from vlmft.models.features import Features
from vlmft.models.sharding import without_gradients
from vlmft.sample import BadRowError, Batch, EncodedRow, Prompt


@dataclasses.dataclass
class Prefix:
    """The first `length` ids of many rows, and what the model's layers made of them."""

    row: EncodedRow
    cache: Any
    """transformers' cache of one row."""

    @property
    def length(self) -> int:
        return self.row.length

    def begins(self, row: EncodedRow) -> bool:
        """Whether the row begins with these ids and images, and goes on."""
        mine, n = [image.sha256 for image in self.row.images], len(self.row.images)
        return (
            row.length > self.length
            and np.array_equal(row.input_ids[: self.length], self.row.input_ids)
            and [image.sha256 for image in row.images[:n]] == mine
        )

    def generate(
        self, family: Family, model: PreTrainedModel, rows: Sequence[EncodedRow], max_new_tokens: int
    ) -> torch.Tensor:
        """Greedy continuation of rows that all begin with this prefix, (B, <= max_new_tokens) int64; only what comes
        after the prefix is computed."""
        batch = pads_after(family.collate(rows, "left", model), self.length).to(model.device)
        new = [image for row in rows for image in row.images[len(self.row.images) :]]
        features: Features = family.image_features(model, new, grad=False)
        past = copy.deepcopy(self.cache)
        past.batch_repeat_interleave(len(rows))
        return family.generate(model, batch, features, max_new_tokens, past)


def make_prefix(family: Family, model: PreTrainedModel, prompt: Prompt) -> Prefix | None:
    """The turns of `prompt` as far as its last end token, behind which every template goes on the same way; None where
    the model keeps no such cache or the family refuses the turns."""
    if "prefix" not in family.capabilities:
        return None
    try:
        row = family.encode_prompt("prefix", prompt)
    except BadRowError:
        return None
    ends = np.flatnonzero(row.input_ids == family.end_id)
    if len(ends) == 0:
        return None
    length = int(ends[-1]) + 1
    row = dataclasses.replace(
        row,
        input_ids=row.input_ids[:length],
        supervised=row.supervised[:length],
        token_arrays={name: array[:length] for name, array in row.token_arrays.items()},
        prompt_length=length,
    )
    with without_gradients(model):
        batch = family.collate([row], "left", model).to(model.device)
        cache = family.prefill(model, batch, family.image_features(model, batch.images, grad=False))
    # Padding behind the prefix would go into linear attention's running state, and take places in a sliding window.
    if {type(layer) for layer in cache.layers} != {DynamicLayer}:
        return None
    return Prefix(row, cache)


def pads_after(batch: Batch, length: int) -> Batch:
    """A left-padded batch with its padding moved behind the first `length` real ids of each row."""
    n_rows, n_tokens = batch.input_ids.shape
    pads = n_tokens - batch.attention_mask.sum(dim=1, keepdim=True)
    columns = torch.arange(n_tokens).expand(n_rows, -1)
    # the prefix comes from behind the padding, the padding from the front, and the rest stays where it is
    source = torch.where(columns < length, columns + pads, columns - length)
    source = torch.where(columns < length + pads, source, columns)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return torch.gather(tensor, -1, source.expand(tensor.shape))

    return dataclasses.replace(
        batch,
        input_ids=moved(batch.input_ids),
        attention_mask=moved(batch.attention_mask),
        position_ids=moved(batch.position_ids),
        supervised=moved(batch.supervised),
        token_arrays={name: moved(tensor) for name, tensor in batch.token_arrays.items()},
    )
