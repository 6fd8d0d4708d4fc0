"""train.gradient_checkpointing: the same gradients, the language part's blocks run twice, frozen vision once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmft.config.check import ConfigError
from vlmft.config.schema import ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.family import GenericFamily
from vlmft.models.lora import attach, base_of, checkpoint_language, part_of, trainable
from vlmft.sample import Sample
from vlmft.training.loss import summed_cross_entropy


@pytest.mark.parametrize("mode", [QuantizationMode.none, QuantizationMode.nf4])
def test_same_gradients_in_two_passes(
    family: GenericFamily,
    make_config: Callable[..., ModelConfig],
    fresh: Callable[..., PreTrainedModel],
    samples: dict[str, Sample],
    mode: QuantizationMode,
) -> None:
    config = make_config(quantization=QuantizationConfig(mode=mode))

    def gradients(*, checkpointing: bool) -> tuple[dict[str, torch.Tensor], Counter[str]]:
        model = attach(fresh(config), config, seed=0)
        base = base_of(model)
        if checkpointing:
            checkpoint_language(base)
        model.train()
        calls: Counter[str] = Counter()

        def count(name: str) -> Callable[..., None]:
            return lambda *_: calls.update([name])

        for name, module in base.named_modules():
            if isinstance(module, GradientCheckpointingLayer):  # what is inside runs again, not the block's own call
                next(module.children()).register_forward_pre_hook(count(name))
        batch = family.collate([family.encode(samples["two_images"])], "right", base)
        features = family.image_features(base, batch.images, grad=False)
        assert not any(feature.requires_grad for feature in features)
        summed_cross_entropy(family.forward(base, batch, features, batch.keep), batch.targets).backward()  # type: ignore[no-untyped-call]
        return {name: p.grad for name, p in trainable(model).items() if p.grad is not None}, calls

    plain, once = gradients(checkpointing=False)
    again, twice = gradients(checkpointing=True)
    assert plain.keys() == again.keys() and len(plain) >= 28
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert {part_of(name) for name in once} == {"language", "vision"}
    language = [name for name in once if part_of(name) == "language"]
    for name, count in once.items():  # with the last layer the backward pass begins: it is kept
        assert twice[name] == count * (2 if name in language[:-1] else 1)


def test_a_trained_vision_part_sends_its_gradients(
    family: GenericFamily, make_config: Callable[..., ModelConfig], fresh: Callable[..., PreTrainedModel], samples: Any
) -> None:
    """The library's hook on the embeddings would make the frozen tower's output require gradients: none is left."""
    base = fresh()
    checkpoint_language(base)
    hooks = [name for name, module in base.named_modules() if module._forward_hooks]
    assert hooks == []


def test_a_model_without_blocks_is_refused(fresh: Callable[..., PreTrainedModel]) -> None:
    model = fresh()
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=r"train\.gradient_checkpointing: this model has none"):
        checkpoint_language(model)
