"""Rows that show the same images as one row: `[images | q1 a1 | q2 a2 ...]`, the images once.

Each question and its answer stand behind what all begin with, see that and themselves, and have the positions that they
would have alone. So the loss and its gradients are those of separate rows, up to rounding (and up to dropout, which
draws for fewer tokens). Through transformers' public door: a 4-D mask and explicit positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from vlmft.models.collate import collate, language_facts
from vlmft.sample import Batch, EncodedRow

MASKED_ATTENTION = ("sdpa", "eager")
"""Implementations that take a 4-D mask."""


@dataclass(frozen=True)
class SharedRow:
    """Rows with the same images, whose first `n_shared` ids are the same and hold all of the image tokens."""

    rows: tuple[EncodedRow, ...]
    n_shared: int

    @property
    def id(self) -> str:
        return self.rows[0].id

    @property
    def length(self) -> int:
        """Tokens of the one row."""
        return self.n_shared + sum(row.length - self.n_shared for row in self.rows)


def attention_of(model: PreTrainedModel) -> str:
    """The kernel of the language part; vision may have another."""
    return str(model.config.get_text_config()._attn_implementation)


def can_share(text_config: Any) -> bool:
    """Whether every layer of the language part is attention over all tokens before: recurrent and convolutional
    layers, sliding windows and images that see all of themselves need other masks."""
    layers = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    return layers == {"full_attention"} and not getattr(text_config, "use_bidirectional_attention", None)


def shared(
    rows: Sequence[EncodedRow], image_token_id: int, most_rows: int, most_tokens: int
) -> tuple[list[EncodedRow], list[SharedRow]]:
    """Rows that stay alone, and those that go together: at most so many rows and tokens in one."""
    alone: list[EncodedRow] = []
    by_images: dict[tuple[str, ...], list[EncodedRow]] = {}
    for row in sorted(rows, key=lambda row: (row.length, row.id)):
        by_images.setdefault(tuple(image.sha256 for image in row.images), []).append(row)
    together: list[SharedRow] = []
    for images, group in by_images.items():
        n_shared = _n_shared(group, image_token_id) if images and len(group) > 1 else 0
        part: list[EncodedRow] = []
        for row in group if n_shared else ():
            if part and (len(part) == most_rows or SharedRow((*part, row), n_shared).length > most_tokens):
                together.append(SharedRow(tuple(part), n_shared))
                part = []
            part.append(row)
        together += [SharedRow(tuple(part), n_shared)] if part else []
        alone += group if not n_shared else []
    alone += [row for each in together if len(each.rows) == 1 for row in each.rows]
    return alone, [each for each in together if len(each.rows) > 1]


def _n_shared(rows: Sequence[EncodedRow], image_token_id: int) -> int:
    """Ids that all rows begin with; 0 where an image stands behind them. Each keeps an id of its prompt, which predicts
    the first of its answer."""
    n = min(row.prompt_length for row in rows) - 1
    first = rows[0].input_ids[:n]
    for row in rows[1:]:
        differs = np.flatnonzero(first[:n] != row.input_ids[:n])
        n = int(differs[0]) if len(differs) else n
    return n if all(image_token_id not in row.input_ids[n:] for row in rows) else 0


def collate_shared(units: Sequence[SharedRow], pad_id: int, model: PreTrainedModel) -> Batch:
    """One row of tensors for each unit, its images once."""
    separate = collate([row for unit in units for row in unit.rows], "right", pad_id, model)
    first = np.cumsum([0, *(len(unit.rows) for unit in units)])
    longest = max(unit.length for unit in units)
    n_rows, n_columns = separate.input_ids.shape
    # The place in `separate` that each token comes from, as row * n_columns + column; padding from a row of its own.
    source = torch.full((len(units), longest), n_rows * n_columns)
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(units), 1, 1, 1)  # padding sees itself: no row of -inf
    for number, unit in enumerate(units):
        start = unit.n_shared
        source[number, :start] = first[number] * n_columns + torch.arange(start)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        mask[number, 0, :start, :start] = causal[:start, :start]
        for row, encoded in enumerate(unit.rows):
            n_own = encoded.length - unit.n_shared
            own = slice(start, start + n_own)
            source[number, own] = (first[number] + row) * n_columns + unit.n_shared + torch.arange(n_own)
            mask[number, 0, own, : unit.n_shared] = True
            mask[number, 0, own, own] = causal[:n_own, :n_own]
            start += n_own

    images = tuple(image for unit in units for image in unit.rows[0].images)

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.reshape(*tensor.shape[:-2], -1)
        padded = torch.cat([flat, flat.new_zeros(*flat.shape[:-1], 1)], dim=-1)
        return padded[..., source]

    if attention_of(model) == "eager":  # trap: it adds the mask, a bool one as 0 and 1
        lowest = torch.finfo(model.dtype).min
        mask = torch.zeros(mask.shape, dtype=model.dtype).masked_fill(~mask, lowest)
    return dataclasses.replace(
        separate,
        row_ids=tuple(row.id for unit in units for row in unit.rows),
        layout="shared_prefix",
        input_ids=placed(separate.input_ids),
        attention_mask=mask,
        position_ids=placed(separate.position_ids),
        supervised=placed(separate.supervised),
        token_arrays={name: placed(array) for name, array in separate.token_arrays.items()},
        images=images,
        image_arrays=language_facts(images, model),
    )
