"""The models of the published experiments at their real sizes, without weights: parameters, and what LoRA trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Config,
    IdeficsConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
)

from vlmft.config.schema import PartsConfig, TrainConfig
from vlmft.models.lora import attach, count_by_part

pytestmark = pytest.mark.slow  # models of real sizes, without storage

MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


def idefics3(vision: dict[str, int], text: dict[str, int], scale_factor: int) -> Idefics3Config:
    text_config: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": False, **text}
    return Idefics3Config(
        vision_config=vision, text_config=text_config, scale_factor=scale_factor, tie_word_embeddings=False
    )


def qwen_text(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": MROPE,
    }


def config_of(name: str) -> Any:
    """The vendors' config.json, written down from the architectures."""
    if name == "smolvlm256m":
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        text = {"vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        text |= {"num_attention_heads": 9, "num_key_value_heads": 3}
        return idefics3(vision | {"image_size": 512, "patch_size": 16}, text, 4)
    if name == "smolvlm":
        vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        text = {"vocab_size": 49155, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
        text |= {"num_attention_heads": 32, "num_key_value_heads": 32}
        return idefics3(vision | {"image_size": 384, "patch_size": 14}, text, 3)
    if name == "qwen2vl":
        tower = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
        return Qwen2VLConfig(text_config=qwen_text(1536, 8960, 28, 12), vision_config=tower, tie_word_embeddings=True)
    if name == "qwen25vl":
        tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        tower |= {"out_hidden_size": 2048, "patch_size": 14, "window_size": 112}
        return Qwen2_5_VLConfig(
            text_config=qwen_text(2048, 11008, 36, 16), vision_config=tower, tie_word_embeddings=True
        )
    assert name == "idefics9b"
    vision = {"embed_dim": 1280, "image_size": 224, "num_hidden_layers": 32, "num_attention_heads": 16}
    resampler = {"resampler_n_latents": 64, "resampler_depth": 6, "resampler_n_heads": 16, "resampler_head_dim": 96}
    return IdeficsConfig(
        additional_vocab_size=2,
        cross_layer_interval=4,
        use_resampler=True,
        qk_layer_norms=True,
        alpha_type="float",
        tie_word_embeddings=False,
        vision_config=vision | {"patch_size": 14, "intermediate_size": 5120},
        perceiver_config=resampler | {"use_resampler": True, "qk_layer_norms_perceiver": True},
    )


def empty(name: str) -> PreTrainedModel:
    """The model as it is loaded, frozen, without storage behind its weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(name))
    return model.requires_grad_(False)  # type: ignore[no-any-return]


PARAMETERS = {
    "smolvlm256m": 256_484_928,
    "smolvlm": 2_246_272_880,
    "qwen2vl": 2_208_985_600,
    "qwen25vl": 3_754_622_976,
    "idefics9b": 8_929_679_632,
}


PUBLISHED: dict[str, tuple[str, dict[str, int]]] = {
    "smolvlm256m": ("count_smolvlm256m", {"language": 2_442_240, "vision": 442_368}),
    "smolvlm": ("pjn_charts_smolvlm", {"language": 9_043_968, "vision": 1_492_992}),
    "qwen2vl": ("pjn_charts_qwen2vl", {"language": 1_089_536}),
    "idefics9b": ("sports_idefics", {"language": 15_007_744, "vision": 3_932_160, "connector": 811_008}),
}
"""The experiment, and what its adapters trained by part; most of them reached the vision part by its names."""
PUBLISHED_TOTAL = {
    "smolvlm256m": 2_884_608,
    "smolvlm": 10_536_960,
    "qwen2vl": 1_089_536,
    "idefics9b": 19_750_912,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_adapters(name: str, compose: Callable[..., TrainConfig]) -> None:
    """With the parts that they reached, and on the language part alone, as it is recommended here."""
    experiment, by_part = PUBLISHED[name]
    config = compose(f"experiment={experiment}").model
    assert config.name == name
    found = count_by_part(attach(empty(name), config, seed=0))
    assert {part: count["trainable"] for part, count in found.items() if count["trainable"]} == by_part
    assert sum(by_part.values()) == PUBLISHED_TOTAL[name]
    alone = count_by_part(attach(empty(name), dataclasses.replace(config, train=PartsConfig()), seed=0))
    assert {part: count["trainable"] for part, count in alone.items() if count["trainable"]} == {
        "language": by_part["language"]
    }
    if name == "idefics9b":
        assert sum(count["modules"] for count in found.values()) == 234 and alone["language"]["modules"] == 120


HUB = {
    "smolvlm256m": "HuggingFaceTB/SmolVLM-256M-Instruct",
    "smolvlm": "HuggingFaceTB/SmolVLM-Base",
    "qwen2vl": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen25vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "idefics9b": "HuggingFaceM4/idefics-9b",
}


@pytest.mark.parametrize("name", HUB)
def test_config_names(name: str, compose: Callable[..., TrainConfig]) -> None:
    """model=NAME is that model with targets that it has in its language part."""
    config, model = compose(f"model={name}").model, empty(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert (config.name, config.path) == (name, HUB[name])
    assert count_by_part(attach(model, config, seed=0))["language"]["modules"] > 100
