"""The frozen layers of the language part shared out among the ranks by torch's `fully_shard` (FSDP2).

Each rank keeps its share of a layer's weights and gathers the others for as long as the layer computes. Adapters stay
whole on every rank, so that training sums their gradients, and a checkpoint holds them, as without sharding: results
are equal to the byte. All ranks have to call each layer the same number of times.
"""

from __future__ import annotations

import contextlib

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.models.lora import language_layers
from vlmft.models.ranks import n_ranks


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Keeps one share of each language layer's frozen weights on this rank's device, and all else whole.

    Adapters have to be on the model before, and 4-bit weights to be quantised: PEFT reads attributes that sharded
    weights lack.

    Raises:
        ConfigError: no layers are found.
    """
    layers = language_layers(model)
    if not layers:
        raise ConfigError("trainer.strategy: fsdp finds no list of layers in this model's language part; use ddp")
    mesh = init_device_mesh(device.type, (n_ranks(),))
    for layer in layers:
        trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        fully_shard(layer, mesh=mesh, ignored_params=trained)
    model.to(device)  # type: ignore[arg-type]  # what is not in the layers


def is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


def without_gradients(model: torch.nn.Module) -> contextlib.AbstractContextManager[object]:
    """torch.inference_mode, or what `fully_shard` takes in its place: it swaps weights, whose versions it counts."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()
