"""Sharded layers compute what whole ones do; two ranks are in tests/run/test_ranks.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from vlmft.config.check import ConfigError
from vlmft.config.schema import ModelConfig
from vlmft.models import lora
from vlmft.models.load import load_model, load_source
from vlmft.models.lora import language_layers
from vlmft.models.memory_estimate import Anatomy
from vlmft.models.sharding import is_sharded, shard, without_gradients

CPU = torch.device("cpu")


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def loaded(config: ModelConfig) -> Any:
    source, hf_config = load_source(config)
    return load_model(config, source, hf_config, CPU, 0)


@pytest.mark.parametrize("mode", ["nf4", "none"])
def test_every_frozen_weight_of_the_layers_is_sharded_and_nothing_else(
    mode: str, one_rank: None, compose: Callable[..., Any]
) -> None:
    config = compose("model=tiny", f"model.quantization.mode={mode}").model
    base = loaded(config)
    lora.attach(base, config, 0)
    layers = language_layers(base)
    assert len(layers) == base.config.get_text_config().num_hidden_layers >= 2
    shard(base, CPU)
    assert is_sharded(base) and not is_sharded(copy.deepcopy(torch.nn.Linear(2, 2)))
    inside = {id(parameter) for layer in layers for parameter in layer.parameters() if not parameter.requires_grad}
    sharded = {id(parameter) for parameter in base.parameters() if isinstance(parameter, DTensor)}
    assert sharded == inside and len(inside) >= 9 * len(layers)
    assert not any(isinstance(parameter, DTensor) for parameter in lora.trainable(base).values())


def test_logits_and_gradients_are_those_of_whole_layers(one_rank: None, compose: Callable[..., Any]) -> None:
    config, results = compose("model=tiny").model, []
    for sharded in (False, True):
        base = loaded(config)
        lora.attach(base, config, 0)
        if sharded:
            shard(base, CPU)
        ids = torch.arange(3, 15)[None]
        logits = base(input_ids=ids).logits
        logits.square().mean().backward()
        with without_gradients(base):
            again = base(input_ids=ids).logits
        results.append([logits.detach(), again, *(p.grad for p in lora.trainable(base).values())])
    assert len(results[0]) > 50 and all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_model_without_layers_is_refused(one_rank: None) -> None:
    with pytest.raises(ConfigError, match="fsdp finds no list of layers"):
        shard(torch.nn.Linear(2, 2), CPU)  # type: ignore[arg-type]


def test_each_share_is_part_of_the_estimate(compose: Callable[..., Any]) -> None:
    config = compose("model=tiny").model
    model_config = load_source(config)[1]
    whole, half = (
        Anatomy(config, model_config, shares=shares).estimate(config.quantization, torch.float32).weights
        for shares in (1, 2)
    )
    linear = sum(
        module.in_features * module.out_features
        for layer in language_layers(loaded(config))
        for module in layer.modules()
        if isinstance(module, torch.nn.Linear)
    )
    n_layers = len(language_layers(loaded(config)))
    four_bits = 0.5 + (1 + 4 / 256) / 64
    assert whole - half == pytest.approx(linear * (0.5 - 1 / n_layers) * four_bits, rel=0.02)
