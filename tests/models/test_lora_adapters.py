"""Adapters stand on exactly the layers that the config names, start as nothing, and can be taken off again."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import LoraConfig, LoraInit, ModelConfig, PartsConfig, Tuning
from vlmft.models.family import GenericFamily
from vlmft.models.lora import (
    PARTS,
    as_loaded,
    attach,
    base_of,
    count_by_part,
    load_adapter,
    part_of,
    target_names,
    trainable,
    unused_gradient_names,
)
from vlmft.sample import Sample
from vlmft.training.loss import summed_cross_entropy

MakeConfig = Callable[..., ModelConfig]
Fresh = Callable[..., PreTrainedModel]

LANGUAGE_LEAVES = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
IDEFICS3_VISION = [f"self_attn.{p}" for p in ("k_proj", "v_proj", "q_proj", "out_proj")] + ["mlp.fc1", "mlp.fc2"]
QWEN_VISION = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
LAYERS: dict[str, dict[str, set[str]]] = {
    "tiny": {
        "language": {f"model.text_model.layers.{i}.{leaf}" for i in range(4) for leaf in LANGUAGE_LEAVES},
        "connector": {"model.connector.modality_projection.proj"},
        "vision": {f"model.vision_model.encoder.layers.{i}.{leaf}" for i in range(6) for leaf in IDEFICS3_VISION},
    },
    "tiny_qwen2vl": {
        "language": {f"model.language_model.layers.{i}.{leaf}" for i in range(2) for leaf in LANGUAGE_LEAVES},
        "connector": {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"},
        "vision": {f"model.visual.blocks.{i}.{leaf}" for i in range(2) for leaf in QWEN_VISION},
    },
}
"""Model -> part -> all its linear layers, written down from the architectures."""


def leaves_of(name: str, *parts: str) -> list[str]:
    """What a user would write into model.lora.target_modules to reach every linear layer of the parts."""
    return sorted({layer.rpartition(".")[2] for part in parts for layer in LAYERS[name][part]})


def parts_config(**parts: Tuning) -> PartsConfig:
    return PartsConfig(**({"language": Tuning.frozen} | parts))


def loss_of(family: GenericFamily, model: PreTrainedModel | PeftModel, sample: Sample) -> torch.Tensor:
    base = base_of(model)
    batch = family.collate([family.encode(sample)], "right", base)
    logits = family.forward(base, batch, family.image_features(base, batch.images, grad=True), batch.keep)
    return summed_cross_entropy(logits, batch.targets)


def logits_of(family: GenericFamily, model: PreTrainedModel | PeftModel, sample: Sample) -> torch.Tensor:
    base = base_of(model)
    batch = family.collate([family.encode(sample)], "right", base)
    with torch.no_grad():
        return family.forward(base, batch, family.image_features(base, batch.images, grad=False), batch.keep)


def one_step(family: GenericFamily, model: PreTrainedModel | PeftModel, sample: Sample) -> None:
    """A training step as large as it takes to see it."""
    loss_of(family, model, sample).backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(trainable(model).values(), lr=0.5).step()


def adapted_layers(model: torch.nn.Module) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if isinstance(m, LoraLayer)}


@pytest.mark.parametrize("part", PARTS)
def test_adapters_of_a_part_are_on_all_its_layers_and_no_other(
    name: str, make_config: MakeConfig, fresh: Fresh, part: str
) -> None:
    lora = LoraConfig(r=4, target_modules=leaves_of(name, part))
    config = make_config(train=parts_config(**{part: Tuning.lora}), lora=lora)
    model = fresh()
    assert set(target_names(model, config)) == LAYERS[name][part]
    shapes = [model.get_submodule(layer).weight.shape for layer in LAYERS[name][part]]
    adapted = attach(model, config, seed=0)
    assert adapted_layers(adapted) == LAYERS[name][part]
    assert all(part_of(layer) == part for layer in LAYERS[name][part])
    assert all("lora_" in key and part_of(key) == part for key in trainable(adapted))
    expected: dict[str, dict[str, int]] = {other: {"trainable": 0, "modules": 0} for other in PARTS}
    expected[part] = {"trainable": sum(4 * (n_out + n_in) for n_out, n_in in shapes), "modules": len(shapes)}
    assert count_by_part(adapted) == expected


def test_defaults_adapt_the_language_part_alone(name: str, make_config: MakeConfig, fresh: Fresh) -> None:
    """tiny's vision layers bear the same last names: q_proj there is not meant."""
    adapted = attach(fresh(), make_config(), seed=0)
    assert adapted_layers(adapted) == LAYERS[name]["language"]
    assert count_by_part(adapted)["language"]["modules"] == {"tiny": 28, "tiny_qwen2vl": 14}[name]


def test_all_parts_at_once(name: str, make_config: MakeConfig, fresh: Fresh) -> None:
    config = make_config(
        train=PartsConfig(Tuning.lora, Tuning.lora, Tuning.lora),
        lora=LoraConfig(target_modules=leaves_of(name, *PARTS)),
    )
    adapted = attach(fresh(), config, seed=0)
    assert adapted_layers(adapted) == set().union(*LAYERS[name].values())
    assert {part: count["modules"] for part, count in count_by_part(adapted).items()} == {
        part: len(layers) for part, layers in LAYERS[name].items()
    }


def test_unknown_target_is_an_error_with_the_nearest_name(make_config: MakeConfig, model: PreTrainedModel) -> None:
    config = make_config(lora=LoraConfig(target_modules=["q_proj", "v_porj"]))
    with pytest.raises(ConfigError, match=r"target_modules: 'v_porj' is no linear layer of language; did you mean"):
        target_names(model, config)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "text_model", "layers", "q_proj.weight"])
def test_what_is_no_linear_layer_of_the_part_is_an_error(
    make_config: MakeConfig, model: PreTrainedModel, target: str
) -> None:
    with pytest.raises(ConfigError, match=f"{target!r} is no linear layer of language; "):
        target_names(model, make_config(lora=LoraConfig(target_modules=[target])))


def test_target_of_another_part_is_an_error(name: str, make_config: MakeConfig, model: PreTrainedModel) -> None:
    config = make_config(lora=LoraConfig(target_modules=["q_proj", "fc1"]))
    with pytest.raises(ConfigError, match="'fc1' is no linear layer of language"):
        target_names(model, config)


@pytest.mark.parametrize("part", ["connector", "vision"])
def test_part_that_would_get_no_adapter_is_an_error(
    name: str, make_config: MakeConfig, model: PreTrainedModel, part: str
) -> None:
    """Every name fits the language part: the other part would stay untuned, and nobody be told."""
    lora = LoraConfig(target_modules=["gate_proj", "up_proj"])
    config = make_config(train=parts_config(language=Tuning.lora, **{part: Tuning.lora}), lora=lora)
    with pytest.raises(ConfigError, match=rf"model\.train\.{part}: .*got none; add one of \w+.*or set .*=frozen"):
        target_names(model, config)


def test_new_adapters_change_nothing(
    family: GenericFamily, make_config: MakeConfig, fresh: Fresh, model: PreTrainedModel, sample: Sample
) -> None:
    """Matrix B is zero: the same bits, not nearly the same."""
    adapted = attach(fresh(), make_config(), seed=0)
    assert torch.equal(logits_of(family, adapted, sample), logits_of(family, model, sample))


def test_adapter_off_is_the_untuned_model(
    family: GenericFamily, make_config: MakeConfig, fresh: Fresh, model: PreTrainedModel, samples: dict[str, Sample]
) -> None:
    adapted = attach(fresh(), make_config(), seed=0)
    assert isinstance(adapted, PeftModel)
    for _ in range(2):
        one_step(family, adapted, samples["one_image"])
    for sample in samples.values():
        base = logits_of(family, model, sample)
        assert (logits_of(family, adapted, sample) - base).abs().max() > 1e-3, "training must show"
        with adapted.disable_adapter():
            assert torch.equal(logits_of(family, adapted, sample), base)


def test_gradients_are_on_the_adapters_and_nowhere_else(
    name: str, family: GenericFamily, make_config: MakeConfig, fresh: Fresh, samples: dict[str, Sample]
) -> None:
    config = make_config(
        train=PartsConfig(Tuning.lora, Tuning.lora, Tuning.lora),
        lora=LoraConfig(target_modules=leaves_of(name, *PARTS)),
    )
    adapted = attach(fresh(), config, seed=0)
    loss_of(family, adapted, samples["two_images"]).backward()  # type: ignore[no-untyped-call]
    assert unused_gradient_names(adapted) == {"trainable_without": [], "frozen_with": [], "unused": []}
    gradients = {key: p.grad for key, p in trainable(adapted).items() if "lora_B" in key}
    assert len(gradients) == sum(map(len, LAYERS[name].values()))
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("init", LoraInit)
def test_same_seed_same_start_whatever_drew_before(make_config: MakeConfig, fresh: Fresh, init: LoraInit) -> None:
    config = make_config(lora=LoraConfig(init=init))

    def start(seed: int, drawn: int) -> dict[str, torch.Tensor]:
        model = fresh()
        torch.manual_seed(drawn)
        torch.rand(drawn)
        state = torch.get_rng_state()
        adapted = attach(model, config, seed)
        assert torch.equal(torch.get_rng_state(), state), "nor does it disturb who draws after"
        return {key: parameter.detach() for key, parameter in trainable(adapted).items()}

    first, same, other = start(3, drawn=1), start(3, drawn=2), start(4, drawn=1)
    assert len(first) > 0
    for key in first:
        assert torch.equal(first[key], same[key])
        assert not first[key].any() if "lora_B" in key else not torch.equal(first[key], other[key])


def test_adapters_are_fp32_on_a_16_bit_base(make_config: MakeConfig, fresh: Fresh) -> None:
    """In bf16 the updates of a small learning rate round away."""
    adapted = attach(fresh().to(torch.bfloat16), make_config(), seed=0)
    assert {parameter.dtype for parameter in trainable(adapted).values()} == {torch.float32}
    frozen = {parameter.dtype for parameter in adapted.parameters() if not parameter.requires_grad}
    assert frozen == {torch.bfloat16}


def test_no_memory_for_the_rounded_weights(
    fresh: Fresh, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have their own values back where the copy of one of them finds no memory, and after each use."""
    model = attach(fresh().to(torch.bfloat16), make_config(train=parts_config(language=Tuning.full)), seed=0)
    trained = trainable(model)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def unchanged() -> bool:
        return all(p.dtype == torch.float32 and torch.equal(p, before[name]) for name, p in trained.items())

    with torch.no_grad(), as_loaded(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert unchanged()
    calls, to = [0], torch.Tensor.to

    def out_of_memory(self: torch.Tensor, *given: torch.dtype) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return to(self, *given)

    monkeypatch.setattr(torch.Tensor, "to", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError), torch.no_grad(), as_loaded(model):
        pytest.fail("it began without memory")
    monkeypatch.undo()
    assert calls[0] == 3 and unchanged()


@pytest.mark.parametrize("part", PARTS)
def test_full_training_of_a_part(
    family: GenericFamily, make_config: MakeConfig, fresh: Fresh, samples: dict[str, Sample], part: str
) -> None:
    model = attach(fresh().to(torch.bfloat16), make_config(train=parts_config(**{part: Tuning.full})), seed=0)
    assert not isinstance(model, PeftModel)
    trained = trainable(model)
    assert trained and set(trained) == {key for key, _ in model.named_parameters() if part_of(key) == part}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    n_parameters = sum(parameter.numel() for parameter in trained.values())
    assert count_by_part(model)[part] == {"trainable": n_parameters, "modules": 0}
    model = model.float()
    loss_of(family, model, samples["one_image"]).backward()  # type: ignore[no-untyped-call]
    assert unused_gradient_names(model)["frozen_with"] == []
    with_gradient = [key for key, p in trained.items() if p.grad is not None and p.grad.any()]
    assert len(with_gradient) > 0.8 * len(trained), "all but keys' biases, which softmax cancels, and the like"


def test_adapters_beside_a_part_in_full(
    name: str, family: GenericFamily, make_config: MakeConfig, fresh: Fresh, samples: dict[str, Sample]
) -> None:
    """PEFT freezes all that is not its own: the connector must be unfrozen again."""
    config = make_config(train=parts_config(language=Tuning.lora, connector=Tuning.full))
    adapted = attach(fresh(), config, seed=0)
    assert adapted_layers(adapted) == LAYERS[name]["language"]
    assert {part_of(key) for key in trainable(adapted) if "lora_" not in key} == {"connector"}
    counts = count_by_part(adapted)
    assert counts["connector"]["trainable"] > 0 and counts["vision"]["trainable"] == 0
    loss_of(family, adapted, samples["one_image"]).backward()  # type: ignore[no-untyped-call]
    assert unused_gradient_names(adapted) == {"trainable_without": [], "frozen_with": [], "unused": []}


def test_gradient_check_sees_both_defects(
    family: GenericFamily, make_config: MakeConfig, fresh: Fresh, samples: dict[str, Sample]
) -> None:
    adapted = attach(fresh(), make_config(), seed=0)
    loss_of(family, adapted, samples["text_only"]).backward()  # type: ignore[no-untyped-call]
    first = next(iter(trainable(adapted)))
    trainable(adapted)[first].grad = None
    assert unused_gradient_names(adapted) == {"trainable_without": [first], "frozen_with": [], "unused": []}
    trainable(adapted)[first].requires_grad_(False)
    other = next(iter(trainable(adapted)))
    trainable(adapted)[other].requires_grad_(False)
    assert unused_gradient_names(adapted) == {"trainable_without": [], "frozen_with": [other], "unused": []}


def test_saved_adapter_names_its_base_as_the_config_does(make_config: MakeConfig, fresh: Fresh, tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(), path="someone/some-model", revision="abc")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns when it writes another name over ours
        adapted = attach(fresh(), config, seed=0)
        adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "someone/some-model" and stored["revision"] == "abc"
    assert not [file.name for file in tmp_path.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def test_base_of(make_config: MakeConfig, fresh: Fresh) -> None:
    model = fresh()
    assert base_of(model) is model
    assert base_of(attach(model, make_config(), seed=0)) is model


def test_load_adapter_reads_safetensors_or_nothing(make_config: MakeConfig, fresh: Fresh, tmp_path: Path) -> None:
    adapted = attach(fresh(), make_config(), seed=0)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors in .*; did the training end\?"):
        load_adapter(fresh(), str(tmp_path))


def test_rslora_scales_by_the_root_of_the_rank(make_config: MakeConfig, fresh: Fresh) -> None:
    for use_rslora, expected in ((False, 32 / 16), (True, 32 / 4)):
        adapted = attach(fresh(), make_config(lora=LoraConfig(use_rslora=use_rslora)), seed=0)
        layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
        assert len(layers) > 10 and {layer.scaling["default"] for layer in layers} == {expected}


@pytest.mark.slow
def test_dora_trains_a_length_for_each_row(
    family: GenericFamily, make_config: MakeConfig, fresh: Fresh, model: PreTrainedModel, sample: Sample
) -> None:
    """It starts as nothing but for rounding, trains, and taken off gives the untuned model back, bit for bit."""
    adapted = attach(fresh(), make_config(lora=LoraConfig(use_dora=True)), seed=0)
    lengths = [key for key in trainable(adapted) if "lora_magnitude_vector" in key]
    assert len(lengths) == len(adapted_layers(adapted)) and set(map(part_of, lengths)) == {"language"}
    base = logits_of(family, model, sample)
    torch.testing.assert_close(logits_of(family, adapted, sample), base, rtol=0, atol=1e-4)
    one_step(family, adapted, sample)
    assert unused_gradient_names(adapted) == {"trainable_without": [], "frozen_with": [], "unused": []}
    assert (logits_of(family, adapted, sample) - base).abs().max() > 1e-3
    assert isinstance(adapted, PeftModel)
    with adapted.disable_adapter():
        assert torch.equal(logits_of(family, adapted, sample), base)
