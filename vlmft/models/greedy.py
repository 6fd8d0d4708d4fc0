"""Greedy generation, and nothing of a model's own taste in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import GenerationConfig

TASTE = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size")
"""Settings by which a vendor makes a model chat better, and score worse."""


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


def greedy_by_default(own: GenerationConfig, end_id: int, pad_id: int) -> tuple[GenerationConfig, dict[str, Any]]:
    """What a server takes from a model's generation_config.json, without its sampling and penalties, which would make
    other answers than were evaluated; and what is left out. Its end tokens stay, beside ours."""
    said = own.to_diff_dict()
    theirs = said.get("eos_token_id") or []
    ends = list(dict.fromkeys([end_id, *(theirs if isinstance(theirs, list) else [theirs])]))
    neutral = GenerationConfig(
        do_sample=False, bos_token_id=said.get("bos_token_id"), eos_token_id=ends, pad_token_id=pad_id
    )
    return neutral, {name: said[name] for name in TASTE if name in said}


@contextlib.contextmanager
def own_settings_set_aside(model: Any) -> Iterator[None]:
    """Trap: what a GenerationConfig leaves open is filled from the model's own generation_config.json, such as a
    repetition penalty, and then the answers are not greedy."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
