"""Greedy generation, and nothing of a model's own taste in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import GenerationConfig


def greedy(max_new_tokens: int, end_id: int, pad_id: int, suppressed_ids: Sequence[int]) -> GenerationConfig:
    """The likeliest token each time; never one of `suppressed_ids`."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        suppress_tokens=list(suppressed_ids) or None,
    )


@contextlib.contextmanager
def own_settings_set_aside(model: Any) -> Iterator[None]:
    """Trap: what a GenerationConfig leaves open is filled from the model's own generation_config.json, such as a
    repetition penalty, and then the answers are not greedy."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
