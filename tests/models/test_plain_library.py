"""The same loss as transformers alone computes from the processor's own output, with every key that it emits.

Real tokenizers, templates and image settings where they are at hand, over small models of the real architectures; and
all the architectures that `model=auto` takes, with a tokenizer of their own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from benchmarks.tiny_models import MODELS, Tiny, make_louder, save
from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.family import Family, GenericFamily, make_family
from vlmft.models.load import load_model, load_source
from vlmft.sample import EncodedRow, Image, Message, Prompt, Sample

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared")
ARCHIVE = REFERENCE / "fixtures" / "processors.tar.xz"
CPU = torch.device("cpu")
TOLERANCE = 1e-5
SHAPES = ((7, 3), (400, 100), (100, 400), (640, 480))
LARGE = ((1024, 1024), (1300, 700))
"""Width and height: tiny, flat, tall, of a camera; square, large."""


def loaded(folder: Path) -> tuple[GenericFamily, PreTrainedModel]:
    """The family, and a model whose weights are large enough that a wrong position or image shows."""
    config = ModelConfig(
        name="x", path=str(folder), init=Init.random, quantization=QuantizationConfig(mode=QuantizationMode.none)
    )
    source, model_config = load_source(config)
    family = make_family(config, source, model_config)
    model = load_model(config, source, model_config, CPU, seed=0)
    make_louder(model)
    assert isinstance(family, GenericFamily)
    return family, model


def loss_here(family: Family, model: PreTrainedModel, row: EncodedRow) -> float:
    batch = family.collate([row], "right", model)
    with torch.no_grad():
        features = family.image_features(model, batch.images, grad=False)
        logits = family.forward(model, batch, features, batch.keep)
    return float(torch.nn.functional.cross_entropy(logits.float(), batch.targets))


def plain_inputs(family: GenericFamily, sample: Sample, chat: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What the vendor's processor makes of the whole conversation, nothing of ours in between."""
    pictures = [image.load() for image in sample.prompt.images]
    processor, kind = family.processor, type(family).__name__
    asked = family.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    if kind == "PaliGemmaFamily":
        made = processor(text=[asked], images=[pictures], suffix=[sample.answer], return_tensors="pt")
        return {name: value for name, value in made.items() if name != "labels"}
    turn = {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]}
    whole = processor.apply_chat_template([*chat, turn], tokenize=False)
    whole = whole[: whole.rindex(family.end_text) + len(family.end_text)]
    if kind == "IdeficsFamily":
        before, _, behind = whole.partition("<image>")
        return dict(processor(text=[[before, pictures[0], behind] if before else [pictures[0], behind]]))
    return dict(processor(text=[whole], images=[pictures], return_tensors="pt"))


def plain_loss(model: PreTrainedModel, inputs: dict[str, torch.Tensor], n_supervised: int) -> float:
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0]
    targets = inputs["input_ids"][0][-n_supervised:]
    return float(torch.nn.functional.cross_entropy(logits[-n_supervised - 1 : -1].float(), targets))


def chat_of(prompt: Prompt) -> list[dict[str, Any]]:
    def piece(content: str | Image) -> dict[str, str]:
        return {"type": "text", "text": content} if isinstance(content, str) else {"type": "image"}

    return [{"role": m.role, "content": [piece(c) for c in m.content]} for m in prompt.messages]


def question(image: Image, answer: str = "12 red items") -> Sample:
    prompt = Prompt((Message("user", (image, "How many items are there?")),))
    return Sample("row", prompt, answer, (answer,))


@pytest.fixture(scope="module", params=MODELS, ids=lambda tiny: tiny.name)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(description, family, model) of each architecture."""
    tiny: Tiny = request.param
    folder = tmp_path_factory.mktemp(tiny.model_type)
    save(tiny, folder)
    return (tiny, *loaded(folder))


def test_loss_is_the_librarys(small: Any, make_image: Callable[..., Image]) -> None:
    """IDEFICS' stand-in tokenizer writes no space before a text; with the real one it is compared below."""
    tiny, family, model = small
    sample = question(make_image(96, 60, 1), "12" if tiny.model_type != "idefics" else " 12")
    row = family.encode(sample)
    inputs = plain_inputs(family, sample, chat_of(sample.prompt))
    if tiny.model_type == "idefics":
        inputs = {**inputs, "input_ids": inputs["input_ids"]}
        row = dataclasses.replace(row, input_ids=inputs["input_ids"][0].numpy(), **grown(row, inputs))
    assert row.input_ids.tolist() == inputs["input_ids"][0].tolist()
    assert loss_here(family, model, row) == pytest.approx(plain_loss(model, inputs, row.n_supervised), abs=TOLERANCE)


def grown(row: EncodedRow, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    n_tokens = inputs["input_ids"].shape[1]
    return {"supervised": np.arange(n_tokens) >= n_tokens - row.n_supervised}


REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "smolvlm": (
        "smolvlm",
        {
            "model_type": "idefics3",
            "image_token_id": 49190,
            "scale_factor": 4,
            "text_config": {"model_type": "llama", "vocab_size": 49280, "num_key_value_heads": 2},
            "vision_config": {"image_size": 512, "patch_size": 16},
        },
    ),
    "qwen2vl": (
        "qwen2vl",
        {
            "model_type": "qwen2_vl",
            "text_config": {"vocab_size": 151936, "num_key_value_heads": 2},
            "vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 32},
        },
    ),
    "qwen25vl": (
        "qwen2vl",
        {
            "model_type": "qwen2_5_vl",
            "text_config": {"vocab_size": 151936, "num_key_value_heads": 2},
            "vision_config": {"depth": 2, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [1]},
        },
    ),
    "idefics": (
        "idefics",
        {
            "model_type": "idefics",
            "vocab_size": 32000,
            "additional_vocab_size": 2,
            "cross_layer_interval": 1,
            "alpha_initializer": "ones",
            "alpha_type": "float",
            "qk_layer_norms": True,
            "use_resampler": True,
            "vision_config": {"embed_dim": 32, "image_size": 224, "patch_size": 14},
            "perceiver_config": {
                "use_resampler": True,
                "resampler_n_latents": 8,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "qk_layer_norms_perceiver": True,
            },
        },
    ),
}
"""Model -> its folder in the archive, and what differs from the small sizes; image sizes and ids are the real ones."""
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}


def real_folder(name: str, folder: Path) -> None:
    """The vendor's tokenizer, template and image settings beside a small config of the real class."""
    inside, said = REAL[name]
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, members=[m for m in archive if inside in m.name.split("/")], filter="data")
    (found,) = {file.parent for file in folder.rglob("tokenizer.json")}
    for file in [*found.iterdir()]:
        shutil.move(file, folder / file.name)
    config = json.loads(json.dumps(said))
    parts = [config.setdefault("text_config", {}), config["vision_config"]]
    for part in parts if name != "idefics" else [config, config["vision_config"]]:
        part |= {key: value for key, value in SMALL.items() if key not in part}
    if name == "idefics":
        del config["text_config"]
        image = {"image_processor_type": "IdeficsImageProcessor", "processor_class": "IdeficsProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps({**image, "image_size": 224}))
        add_marks(folder)
    if "qwen" in name:
        marks = {"image": 151655, "video": 151656, "vision_start": 151652, "vision_end": 151653}
        config |= {f"{mark}_token_id": id_ for mark, id_ in marks.items()}
        config["text_config"]["rope_parameters"] = MROPE
        processor = {"qwen2vl": "Qwen2VLProcessor", "qwen25vl": "Qwen2_5_VLProcessor"}[name]
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "processor_class": processor}))
    whole = AutoConfig.for_model(**config).to_dict()
    (folder / "config.json").write_text(json.dumps(whole, default=str))


def add_marks(folder: Path) -> None:
    """The two ids that idefics adds behind its vocabulary, as its repository has them."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    marks = enumerate(("<fake_token_around_image>", "<image>"), start=32000)
    settings["added_tokens_decoder"] |= {str(id_): {"content": mark, **plain} for id_, mark in marks}
    path.write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(name, family, model) with the vendor's files."""
    if not ARCHIVE.is_file():
        pytest.skip(f"no {ARCHIVE}; set VLMFT_REFERENCE_DATA")
    folder = tmp_path_factory.mktemp(request.param)
    real_folder(request.param, folder)
    return (request.param, *loaded(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most", "told", "large"),
    [
        ("smolvlm", None, "at most 1,088 tokens an image (size.longest_edge=2048, do_image_splitting=True)", 1088),
        ("smolvlm", 1000, "at most 640 tokens an image (size.longest_edge=1536, do_image_splitting=True)", 640),
        ("smolvlm", 64, "at most 64 tokens an image (size.longest_edge=512, do_image_splitting=True)", 64),
        ("qwen2vl", None, "at most 16,384 tokens an image (size.shortest_edge=3136, size.longest_edge=12845056)", 1369),
        ("qwen25vl", 1280, "at most 1,280 tokens an image (size.shortest_edge=3136, size.longest_edge=1003520)", 1225),
        ("idefics", None, "one token for every image", 1),
    ],
)
def test_what_an_image_costs(
    name: str, most: int | None, told: str, large: int, tmp_path: Path, make_image: Callable[..., Image]
) -> None:
    """With the vendors' settings, and what a picture of 1024 x 1024 then takes."""
    if not ARCHIVE.is_file():
        pytest.skip(f"no {ARCHIVE}; set VLMFT_REFERENCE_DATA")
    real_folder(name, tmp_path)
    config = ModelConfig(name="x", path=str(tmp_path), init=Init.random, max_visual_tokens_per_image=most)
    family: Any = make_family(config, *load_source(config))
    assert family.resolution == told
    row = family.encode_prompt("row", question(make_image(1024, 1024)).prompt)
    assert int((row.input_ids == family.image_token_id).sum()) == large


def test_idefics_ids(tmp_path: Path) -> None:
    """Image ids stand behind the vocabulary and are never chosen; without them the model is refused, not fed <unk>."""
    if not ARCHIVE.is_file():
        pytest.skip(f"no {ARCHIVE}; set VLMFT_REFERENCE_DATA")
    real_folder("idefics", tmp_path)
    family, _ = loaded(tmp_path)
    assert family.image_token_id == 32001 and family.suppressed_ids == [32000, 32001]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for id_ in ("32000", "32001"):
        del settings["added_tokens_decoder"][id_]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"Expected <image> and .* in the tokenizer, got none"):
        loaded(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    [*SHAPES, *(pytest.param(size, marks=pytest.mark.slow) for size in LARGE)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_real_formats(real: Any, make_image: Callable[..., Image], size: tuple[int, int]) -> None:
    """Prompt ids and answer ids are the vendor's, image tokens as many as the model consumes, and so is the loss."""
    name, family, model = real
    sample = question(make_image(*size, 1), "10.5 %")
    row = family.encode(sample)
    inputs = plain_inputs(family, sample, chat_of(sample.prompt))
    assert row.input_ids.tolist() == inputs["input_ids"][0].tolist()
    prompt = family.encode_prompt("row", sample.prompt)
    assert row.input_ids[: row.prompt_length].tolist() == prompt.input_ids.tolist()
    assert row.supervised.tolist() == [False] * row.prompt_length + [True] * row.n_supervised
    assert family.show(row.input_ids[row.supervised].tolist()).strip() == f"10.5 %{family.end_text}"
    features = family.image_features(model, row.images, grad=False)
    n_tokens = int((row.input_ids == family.image_token_id).sum())
    assert n_tokens == (1 if name == "idefics" else len(features[0]))
    assert loss_here(family, model, row) == pytest.approx(plain_loss(model, inputs, row.n_supervised), abs=TOLERANCE)


def test_a_dropped_key_shows(real: Any, make_image: Callable[..., Image]) -> None:
    """The defect: Qwen's mm_token_type_ids lost on the way. Qwen2.5-VL would go on with other positions."""
    name, family, model = real
    sample = question(make_image(400, 100, 1))
    row = family.encode(sample)
    inputs = plain_inputs(family, sample, chat_of(sample.prompt))
    assert ("mm_token_type_ids" in inputs) == ("qwen" in name) == ("mm_token_type_ids" in row.token_arrays)
    if "qwen" not in name:
        return
    dropped = dataclasses.replace(row, token_arrays={})
    try:
        loss = loss_here(family, model, dropped)
    except (TypeError, ValueError):
        return
    assert abs(loss - plain_loss(model, inputs, row.n_supervised)) > TOLERANCE
