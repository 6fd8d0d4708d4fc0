"""The estimate against what is counted on real tensors: bytes of weights, and bytes alive while a batch is trained."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.architecture_checks import CPU, SAMPLES
from benchmarks.smoke.models import MROPE, QWEN2_VL, SMOLVLM, Tiny, save
from tests.models.test_real_sizes import PARAMETERS, PUBLISHED, PUBLISHED_TOTAL, config_of
from vlmft.config.check import ConfigError
from vlmft.config.schema import (
    Attention,
    Init,
    LoraConfig,
    ModelConfig,
    OptimizerName,
    PartsConfig,
    QuantizationConfig,
    QuantizationMode,
    TrainConfig,
    Tuning,
)
from vlmft.models.family import make_family
from vlmft.models.load import load_model, load_source
from vlmft.models.lora import attach, base_of, checkpoint_language
from vlmft.models.memory_estimate import Anatomy, Training, moments
from vlmft.sample import EncodedRow

WHOLE = QuantizationConfig(mode=QuantizationMode.none)


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that come and go inside of it: no allocator and no library is in the figure."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def ignore(self, tensors: Any) -> None:
        self.seen |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return output

    def _gone(self, key: int, n_bytes: int) -> None:
        self.now -= n_bytes
        self.seen.discard(key)


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_and_adapters_of_real_sizes(name: str, compose: Callable[..., TrainConfig]) -> None:
    """From the config alone: published parameters, and four times four bytes for each that is trained with Adam."""
    experiment, _ = PUBLISHED[name]
    anatomy = Anatomy(compose(f"experiment={experiment}").model, config_of(name))
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        assert anatomy.estimate(WHOLE, dtype).weights == size * PARAMETERS[name]
    assert 16 * sum(anatomy.trained) == 16 * PUBLISHED_TOTAL[name]


@pytest.mark.parametrize("mode", QuantizationMode)
@pytest.mark.parametrize("double", [True, False])
def test_weights_are_what_loading_takes(
    name: str, make_config: Callable[..., ModelConfig], mode: QuantizationMode, double: bool
) -> None:
    config = make_config(quantization=QuantizationConfig(mode=mode, double_quant=double))
    source, model_config = load_source(config)
    model = load_model(config, source, model_config, CPU, seed=0)
    found = sum(parameter.nbytes for parameter in model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        found += parameter.SCB.nbytes if getattr(parameter, "SCB", None) is not None else 0
    estimate = Anatomy(config, model_config, adapters=False).estimate(config.quantization, torch.float32)
    assert estimate.weights == pytest.approx(found, rel=1e-3) and estimate.total == estimate.weights


def wide(tiny: Tiny) -> Tiny:
    """Large enough that layers, and not their bookkeeping, make the figure."""
    text = {**tiny.text, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "head_dim": 64}
    if tiny is QWEN2_VL:
        text["rope_parameters"] = {**MROPE, "mrope_section": [8, 12, 12]}
        return dataclasses.replace(tiny, text=text, vision={**tiny.vision, "hidden_size": 256})
    return dataclasses.replace(tiny, text=text)


def training_of(row: EncodedRow, config: ModelConfig, **fields: Any) -> Training:
    plain = Training(row, 2, OptimizerName.adamw, mixed=False, checkpointing=False, keeps_pages=False)
    return dataclasses.replace(plain, **fields)


@pytest.fixture(scope="module", params=[SMOLVLM, QWEN2_VL], ids=lambda tiny: tiny.name)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("wide")
    save(wide(request.param), made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("attention", [Attention.eager, Attention.sdpa])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("part", ["language", "vision"])
def test_activations_are_what_is_alive(folder: Path, attention: Attention, checkpointing: bool, part: str) -> None:
    """Within a quarter, over kernels, parts and checkpointing."""
    tuning = {"language": Tuning.lora, part: Tuning.lora}
    targets = LoraConfig().target_modules + (["fc1", "fc2"] if part == "vision" else [])
    config = ModelConfig("x", str(folder), init=Init.random, attention=attention, quantization=WHOLE)
    config.lora, config.train = LoraConfig(target_modules=targets), PartsConfig(**tuning)
    source, model_config = load_source(config)
    family = make_family(config, source, model_config)
    model = attach(load_model(config, source, model_config, CPU, seed=0), config, seed=0)
    model.train()
    if checkpointing:
        checkpoint_language(base_of(model))
    row = family.encode(SAMPLES[0])
    alive = Alive()
    alive.ignore([*model.parameters(), *model.buffers()])
    batch = family.collate([row, row], "right", base_of(model))
    with alive:
        features = family.image_features(base_of(model), batch.images, grad=part == "vision")
        logits = family.forward(base_of(model), batch, features, batch.keep)
        torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    gradients = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.grad is not None)
    training = training_of(row, config, checkpointing=checkpointing)
    estimate = Anatomy(config, model_config).estimate(config.quantization, torch.float32, training)
    assert estimate.activations == pytest.approx(alive.peak - gradients, rel=0.25)


def test_full_training_and_eight_bits(make_config: Callable[..., ModelConfig]) -> None:
    """A part in full is fp32 four times over and not among the weights; 8-bit moments are a quarter of Adam's."""
    config = make_config(train=PartsConfig(language=Tuning.full))
    _, model_config = load_source(config)
    anatomy = Anatomy(config, model_config)
    assert anatomy.frozen + sum(anatomy.trained) == anatomy.parameters
    assert [moments(name, 1 << 20) for name in OptimizerName] == [8, 2 + 8 / 256, 2 + 8 / 256, 4]
    assert [moments(name, 100) for name in OptimizerName] == [8, 8, 8, 4]


def test_wrong_targets_are_told_without_weights(make_config: Callable[..., ModelConfig]) -> None:
    config = make_config(lora=LoraConfig(target_modules=["q_porj"]))
    with pytest.raises(ConfigError, match=r"target_modules: 'q_porj' is no linear layer of language"):
        Anatomy(config, load_source(config)[1])
