"""The last layer of the language part, computed only at the tokens whose logits are asked for.

Other tokens give it keys and values. What follows of them, queries, the projection of what was attended to and the MLP,
is per token and read by nobody. Of `n` layers that is nearly an n-th of the work: the logits and all gradients are
those of the whole layer, up to rounding (and up to dropout, which draws for fewer tokens).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.hooks import RemovableHandle

from vlmft.models.lora import last_layer

PER_TOKEN = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
"""Modules of a layer whose output at a token depends on that token's input alone, and is needed at that token alone.
A layer that calls them otherwise (one matrix for queries, keys and values) computes all tokens."""

_last: WeakKeyDictionary[torch.nn.Module, torch.nn.Module | None] = WeakKeyDictionary()
"""Model -> its last layer."""


def per_token_modules(layer: torch.nn.Module | None) -> list[torch.nn.Module]:
    """Those of `PER_TOKEN` that it has."""
    return [module for name, module in layer.named_modules() if name in PER_TOKEN] if layer is not None else []


@contextlib.contextmanager
def last_layer_at(model: torch.nn.Module, keep: torch.Tensor | None) -> Iterator[None]:
    """Within it, calls of `model` compute the last layer where `keep` (B, T) bool is True; None: at the last token of
    each row, whose next one is generated. A `keep` on the host makes no device say how many there are. Does nothing
    where the layer is computed again in the backward pass, which comes later.
    """
    if model not in _last:
        _last[model] = last_layer(model)
    layer = _last[model]
    if layer is None or getattr(layer, "gradient_checkpointing", False):
        yield
        return
    chosen = keep.flatten().nonzero().squeeze(1) if keep is not None else None
    hooks = [hook for module in per_token_modules(layer) for hook in _narrow(module, keep, chosen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _narrow(module: torch.nn.Module, keep: torch.Tensor | None, chosen: torch.Tensor | None) -> list[RemovableHandle]:
    call: tuple[int, int, torch.Tensor] | None = None
    """Rows and tokens of the call under way, and the places of its tokens that are computed; None: of all."""

    def before(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        nonlocal call
        hidden, call = arguments[0], None
        if hidden.dim() != 3 or hidden.shape[1] == 1 or (keep is not None and hidden.shape[:2] != keep.shape):
            return None
        rows, tokens, _width = hidden.shape
        index = chosen if chosen is not None else torch.arange(1, rows + 1) * tokens - 1
        call = (rows, tokens, index.to(hidden.device))
        return (hidden.flatten(0, 1)[call[2]].unsqueeze(0), *arguments[1:])

    def after(_: torch.nn.Module, __: Any, output: Any) -> Any:
        if call is None:
            return None
        rows, tokens, index = call
        narrow, *others = output if isinstance(output, tuple) else (output,)
        whole = narrow.new_zeros(rows * tokens, narrow.shape[-1]).index_copy(0, index, narrow.flatten(0, -2))
        whole = whole.unflatten(0, (rows, tokens))
        return (whole, *others) if others else whole

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
