"""Quantisation: the language part's linear layers alone, gradients that last, adapters that come back bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import LoraConfig, ModelConfig, PartsConfig, QuantizationConfig, QuantizationMode, Tuning
from vlmft.models.family import GenericFamily
from vlmft.models.load import keep_autograd_on_cpu
from vlmft.models.lora import attach, base_of, load_adapter, part_of, trainable, unused_gradient_names
from vlmft.sample import Sample
from vlmft.training.loss import summed_cross_entropy

MODES = ["nf4", "int8", "none"]
Fresh = Callable[..., PreTrainedModel]


@pytest.fixture(params=MODES)
def quantized(request: pytest.FixtureRequest, make_config: Callable[..., ModelConfig]) -> ModelConfig:
    """A config of each mode of quantisation."""
    return make_config(quantization=QuantizationConfig(mode=QuantizationMode[request.param]))


@pytest.fixture
def nf4(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    return make_config(quantization=QuantizationConfig(mode=QuantizationMode.nf4))


def loss_of(family: GenericFamily, model: torch.nn.Module, sample: Sample, *, grad: bool = False) -> torch.Tensor:
    base = base_of(model)  # type: ignore[arg-type]
    batch = family.collate([family.encode(sample)], "right", base)
    features = family.image_features(base, batch.images, grad=grad)
    return summed_cross_entropy(family.forward(base, batch, features, batch.keep), batch.targets)


def evaluated(family: GenericFamily, model: torch.nn.Module, sample: Sample) -> torch.Tensor:
    """Logits of an evaluation pass."""
    base = base_of(model)  # type: ignore[arg-type]
    model.eval()
    batch = family.collate([family.encode(sample)], "right", base)
    with torch.inference_mode():
        features = family.image_features(base, batch.images, grad=False)
        return family.forward(base, batch, features, batch.keep).clone()


def backward(family: GenericFamily, model: torch.nn.Module, sample: Sample) -> dict[str, torch.Tensor]:
    """Gradients of a training pass, by name of the parameter; what got none is not there."""
    model.train()
    model.zero_grad(set_to_none=True)
    loss_of(family, model, sample, grad=True).backward()  # type: ignore[no-untyped-call]
    return {key: p.grad.clone() for key, p in trainable(model).items() if p.grad is not None}


def test_language_layers_are_quantised_and_nothing_else(
    quantized: ModelConfig, fresh: Fresh, model: PreTrainedModel
) -> None:
    loaded = fresh(quantized)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    language = {name for name in linear if part_of(name) == "language" and name != "lm_head"}
    assert len(language) in (28, 14) and "lm_head" in linear
    kind = {"nf4": Linear4bit, "int8": Linear8bitLt, "none": ()}[quantized.quantization.mode.name]
    found = {name for name, module in loaded.named_modules() if isinstance(module, kind)}
    assert found == (language if kind else set())
    others = {key: p.dtype for key, p in loaded.named_parameters() if key.removesuffix(".weight") not in found}
    assert {part_of(key) for key in others} == {"vision", "connector", "language"}
    assert set(others.values()) == {torch.float32}
    output, words = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert output.dtype == words.dtype == torch.float32
    if model.config.tie_word_embeddings:
        assert output is words
    assert not any(parameter.requires_grad for parameter in loaded.parameters()) and not loaded.training


def test_every_adapter_has_a_gradient_before_and_after_evaluation(
    quantized: ModelConfig, fresh: Fresh, family: GenericFamily, samples: dict[str, Sample]
) -> None:
    adapted = attach(fresh(quantized), quantized, seed=0)
    sample = samples["one_image"]
    before = backward(family, adapted, sample)
    assert before.keys() == trainable(adapted).keys() and len(before) in (56, 28)
    assert all(gradient.any() for key, gradient in before.items() if "lora_B" in key)
    evaluated(family, adapted, sample)
    after = backward(family, adapted, sample)
    assert unused_gradient_names(adapted) == {"trainable_without": [], "frozen_with": [], "unused": []}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "an evaluation pass changes nothing"


@pytest.mark.skipif(not has_avx512bf16(), reason="the trap is on CPUs with AVX512-BF16, this one has none")
def test_trap_without_keep_autograd_on_cpu(
    nf4: ModelConfig, fresh: Fresh, family: GenericFamily, samples: dict[str, Sample]
) -> None:
    """What `keep_autograd_on_cpu` is there for: without it one evaluation pass takes adapters their gradients."""
    adapted = attach(fresh(nf4), nf4, seed=0)
    layers = [module for module in adapted.modules() if isinstance(module, Linear4bit)]
    assert len(layers) in (28, 14) and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True  # as bitsandbytes sets it
    sample = samples["one_image"]
    before = backward(family, adapted, sample)
    assert before.keys() == trainable(adapted).keys()
    evaluated(family, adapted, sample)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            after = backward(family, adapted, sample)
        except RuntimeError:  # layers with a bias, as Qwen's, at least say something
            after = {}
    kept = [key for key in before if key in after and torch.equal(before[key], after[key])]
    assert len(kept) < len(before), "bitsandbytes has mended this: keep_autograd_on_cpu can go"
    saved = attach(fresh(nf4), nf4, seed=0)
    keep_autograd_on_cpu(saved)
    evaluated(family, saved, sample)
    mended = backward(family, saved, sample)
    assert all(torch.equal(before[key], mended[key]) for key in before)


def trained(family: GenericFamily, model: PreTrainedModel, config: ModelConfig, sample: Sample) -> PeftModel:
    adapted = attach(model, config, seed=0)
    assert isinstance(adapted, PeftModel)
    for _ in range(2):
        backward(family, adapted, sample)
        torch.optim.SGD(trainable(adapted).values(), lr=0.5).step()
    return adapted


def test_adapter_comes_back_bit_for_bit(
    quantized: ModelConfig, fresh: Fresh, family: GenericFamily, samples: dict[str, Sample], tmp_path: Path
) -> None:
    """On a freshly loaded base, by our loader and by anybody's peft, without a word of warning."""
    sample = samples["two_images"]
    adapted = trained(family, fresh(quantized), quantized, sample)
    logits = evaluated(family, adapted, sample)
    base = fresh(quantized)
    untuned = evaluated(family, base, sample)
    assert (logits - untuned).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours = load_adapter(base, str(tmp_path))
        plain = PeftModel.from_pretrained(fresh(quantized), str(tmp_path))
    assert torch.equal(evaluated(family, ours, sample), logits)
    assert torch.equal(evaluated(family, plain, sample), logits)
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    with ours.disable_adapter():
        assert torch.equal(evaluated(family, ours, sample), untuned)


@pytest.mark.parametrize("name", ["tiny_qwen2vl"], indirect=True)
@pytest.mark.parametrize("defect", ["missing", "odd"])
def test_half_an_adapter_is_refused(config: ModelConfig, fresh: Fresh, tmp_path: Path, defect: str) -> None:
    """PEFT loads what fits and leaves the rest at zero, with a warning at most."""
    attach(fresh(), config, seed=0).save_pretrained(tmp_path, save_embedding_layers=False)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    moved = tensors.pop(first)
    if defect == "odd":
        tensors |= {first: moved, first.replace("lora_A", "lora_X"): moved.clone()}
    save_file(tensors, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match=r"run: 1 tensors of .* do not fit the model .*; export it anew"):
            load_adapter(fresh(), str(tmp_path))


def test_quantised_language_beside_a_vision_part_in_full(
    make_config: Callable[..., ModelConfig], fresh: Fresh, family: GenericFamily, samples: dict[str, Sample]
) -> None:
    config = make_config(
        quantization=QuantizationConfig(mode=QuantizationMode.nf4),
        train=PartsConfig(Tuning.lora, Tuning.full, Tuning.full),
        lora=LoraConfig(target_modules=["q_proj"]),
    )
    adapted = attach(fresh(config), config, seed=0)
    evaluated(family, adapted, samples["one_image"])
    gradients = backward(family, adapted, samples["one_image"])
    assert {part_of(key) for key, gradient in gradients.items() if gradient.any()} == {
        "language",
        "connector",
        "vision",
    }
    assert unused_gradient_names(adapted)["frozen_with"] == []
