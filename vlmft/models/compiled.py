"""`train.compile`: the layers of the language part as torch.compile makes them, in training alone."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from vlmft.config.check import ConfigError
from vlmft.models.lora import language_layers, last_layer


def compile_language(model: torch.nn.Module) -> None:
    """From now on, layers are compiled where gradients are computed; validation and answers are those of the model as
    it is. Layers of one class are one graph, for all sizes of batches. The last one, of which a part of the tokens is
    computed (last_layer.py), stays as it is.

    Raises:
        ConfigError: no compiler is found, or no layers.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        raise ConfigError("train.compile: torch.compile needs a C++ compiler; install g++, or leave it out")
    last = last_layer(model)
    layers = [layer for layer in language_layers(model) if layer is not last]
    if not layers:
        raise ConfigError("train.compile: Expected layers in this model's language part, found none; leave it out")
    for layer in layers:
        plain: Callable[..., Any] = layer.forward
        layer.forward = functools.partial(_either, plain, torch.compile(plain, dynamic=True))


def _either(plain: Callable[..., Any], compiled: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return (compiled if torch.is_grad_enabled() else plain)(*arguments, **named)
