"""The two tiny models with random weights, and one row of each kind that training and evaluation meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.tiny.models import train_tokenizer
from vlmft.config.schema import Init, ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.family import GenericFamily, make_family
from vlmft.models.load import load_model, load_source
from vlmft.sample import Image, Message, Prompt, Sample

CPU = torch.device("cpu")
LOUDER = 4
"""Random weights are so small that attention is flat, and a wrong position moves logits hardly more than rounding does.
Four times larger, a wrong position or image moves them by more than 1e-3, and rounding by 2e-6 (measured)."""

KINDS = ("one_image", "text_only", "two_images", "two_turns", "few_shot")


def picture(width: int, height: int, seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def image(width: int, height: int, seed: int = 0) -> Image:
    return Image(load=partial(picture, width, height, seed), name=f"noise {seed} of {width}x{height}")


def user(*content: str | Image) -> Message:
    return Message("user", content)


PROMPTS: dict[str, Prompt] = {
    "one_image": Prompt((user(image(96, 60, 1), "How many items are there?"),)),
    "text_only": Prompt((user("What is 2+2?"),)),
    "two_images": Prompt((user(image(96, 96, 2), "or", image(40, 80, 3), "Which has more?"),)),
    "two_turns": Prompt((user(image(60, 96, 4), "How many?"), Message("assistant", ("7",)), user("And red ones?"))),
    "few_shot": Prompt(
        (
            Message("system", ("Count.",)),
            user(image(60, 60, 5), "How many?"),
            Message("assistant", ("2",)),
            user(image(96, 50, 6), "How many?"),
            Message("assistant", ("9",)),
            user(image(80, 80, 7), "How many?"),
        )
    ),
}
ANSWERS = {"one_image": "7", "text_only": "Это 4.", "two_images": "the second", "two_turns": "3", "few_shot": "10"}


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image]:
    """make_image(width, height, seed): noise of that size."""
    return image


@pytest.fixture(scope="module", params=["tiny", "tiny_qwen2vl"])
def name(request: pytest.FixtureRequest) -> str:
    """Which of the two models that come with vlmft."""
    return str(request.param)


@pytest.fixture(scope="module")
def make_config(name: str) -> Callable[..., ModelConfig]:
    """make_config(field=value): random weights, not quantised, unless told otherwise."""

    def made(**fields: Any) -> ModelConfig:
        plain: dict[str, Any] = {"init": Init.random, "quantization": QuantizationConfig(mode=QuantizationMode.none)}
        return ModelConfig(**({"name": name, "path": f"package:{name}"} | plain | fields))

    return made


@pytest.fixture(scope="module")
def config(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    return make_config()


@pytest.fixture(scope="module")
def model_config(config: ModelConfig) -> Any:
    """transformers' config of the model."""
    return load_source(config)[1]


@pytest.fixture(scope="module")
def family(config: ModelConfig) -> GenericFamily:
    made = make_family(config, *load_source(config))
    assert isinstance(made, GenericFamily)
    return made


@pytest.fixture(scope="module")
def fresh(config: ModelConfig) -> Callable[..., PreTrainedModel]:
    """fresh(): a model of one's own to change, always with the same weights; fresh(config) for another config."""

    def loaded(own: ModelConfig | None = None) -> PreTrainedModel:
        own = own or config
        model = load_model(own, *load_source(own), CPU, seed=0)
        if own.quantization.mode == QuantizationMode.none:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.mul_(LOUDER)
        return model

    return loaded


@pytest.fixture(scope="module")
def model(fresh: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Shared by a test module: not to be changed."""
    return fresh()


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    """Kind of row -> one such row."""
    return {kind: Sample(kind, PROMPTS[kind], ANSWERS[kind], (ANSWERS[kind],)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def sample(request: pytest.FixtureRequest, samples: dict[str, Sample]) -> Sample:
    """Each kind of row in turn."""
    return samples[request.param]


@pytest.fixture(scope="session")
def vendor_chat() -> Callable[[Prompt], list[dict[str, Any]]]:
    """A prompt as transformers' documentation writes a conversation, pictures inside: nothing of ours is in the way."""

    def chat(prompt: Prompt) -> list[dict[str, Any]]:
        def piece(content: str | Image) -> dict[str, Any]:
            if isinstance(content, str):
                return {"type": "text", "text": content}
            return {"type": "image", "image": content.load()}

        return [{"role": m.role, "content": [piece(c) for c in m.content]} for m in prompt.messages]

    return chat


MOONDREAM2_SIZES = {
    "text": {"dim": 64, "ff_dim": 96, "n_layers": 7, "n_heads": 2, "vocab_size": 768, "max_context": 1024},
    "vision": {
        "enc_dim": 32,
        "enc_ff_dim": 48,
        "enc_n_layers": 2,
        "enc_n_heads": 2,
        "crop_size": 70,
        "overlap_margin": 1,
        "max_crops": 4,
        "proj_inner_dim": 64,
        "proj_out_dim": 64,
    },
}
"""Crops of 5x5 patches whose inner 3x3 count, and as many language layers as `tiny` has, 28."""


@pytest.fixture(scope="session")
def write_moondream2() -> Callable[..., None]:
    """write_moondream2(folder, sizes): config.json as moondream2's Hub repository has it, sizes put in."""

    def write(folder: Path, sizes: dict[str, Any]) -> None:
        code = {"AutoConfig": "hf_moondream.HfConfig", "AutoModelForCausalLM": "hf_moondream.HfMoondream"}
        config = {"architectures": ["HfMoondream"], "auto_map": code, "model_type": "moondream1", "config": sizes}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))

    return write


@pytest.fixture(scope="session")
def moondream2_folder(tmp_path_factory: pytest.TempPathFactory, write_moondream2: Callable[..., None]) -> Path:
    """A tiny moondream2 without weights; its tokenizer has starmie's control tokens under starmie's ids."""
    folder = tmp_path_factory.mktemp("moondream2")
    write_moondream2(folder, MOONDREAM2_SIZES)
    special = ["<|endoftext|>", *(f"<|md_reserved_{i}|>" for i in range(3))]
    texts = ["How many items are there? Count the red ones.", "Сколько предметов на картинке?"]
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(texts, special)).save_pretrained(folder)
    return folder
