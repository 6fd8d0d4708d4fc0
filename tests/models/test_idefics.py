"""IDEFICS: interleaved prompts, each token sees the last image before it, and no image id is ever said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.tiny_models import MODELS, make_louder, save
from vlmft.config.schema import Init, ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.families.idefics import IdeficsFamily
from vlmft.models.family import GenericFamily, make_family
from vlmft.models.load import load_model, load_source
from vlmft.sample import BadRowError, Message, Prompt, Sample


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder: Path = tmp_path_factory.mktemp("idefics")
    save(next(tiny for tiny in MODELS if tiny.model_type == "idefics"), folder)
    quantization = QuantizationConfig(mode=QuantizationMode.none)
    return ModelConfig(name="x", path=str(folder), init=Init.random, quantization=quantization)


@pytest.fixture(scope="module")
def family(config: ModelConfig) -> GenericFamily:
    """`generic` becomes the architecture's own."""
    made = make_family(config, *load_source(config))
    assert isinstance(made, IdeficsFamily)
    return made


@pytest.fixture
def model(config: ModelConfig) -> PreTrainedModel:
    loaded = load_model(config, *load_source(config), torch.device("cpu"), seed=0)
    make_louder(loaded)
    return loaded


def test_prompt_as_the_notebook_writes_it(family: GenericFamily, samples: dict[str, Sample]) -> None:
    shown = family.show(family.encode(samples["few_shot"]).input_ids.tolist())
    frame, image = "<fake_token_around_image>", "<image>"
    assert shown == (
        f"<|im_start|>Count.\n{frame}{image}{frame}Question: How many? Answer: 2\n"
        f"{frame}{image}{frame}Question: How many? Answer: 9\n"
        f"{frame}{image}{frame}Question: How many? Answer:10<|im_end|>"
    )


def test_each_token_sees_the_last_image_before_it(
    family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample]
) -> None:
    """As the vendor's processor says it for the same list of texts and pictures; on either side of padding."""
    prompt = samples["few_shot"].prompt
    text = family._template(family._chat(prompt), generation=True)
    items: list[Any] = []
    for position, piece in enumerate(text.split("<image>")):
        items += [prompt.images[position - 1].load()] if position else []
        items += [piece] if piece else []
    theirs = family.processor(text=[items])
    row = family.encode_prompt("a", prompt)
    assert row.input_ids.tolist() == theirs["input_ids"][0].tolist()
    other = family.encode_prompt("b", samples["text_only"].prompt)
    for layout in ("right", "left"):
        batch = family.collate([row, other], layout, model)  # type: ignore[arg-type]
        mask = batch.image_arrays["image_attention_mask"]
        real = batch.attention_mask.bool()
        assert torch.equal(mask[0][real[0]], theirs["image_attention_mask"][0].long())
        assert not mask[1].any() and not mask[0][~real[0]].any()
    assert mask.sum(-1).max() == 1


def test_nothing_is_seen_behind_the_end(
    family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample]
) -> None:
    row = family.encode(samples["one_image"])
    short = family.encode(samples["text_only"])
    mask = family.collate([row, short], "right", model).image_arrays["image_attention_mask"]
    assert mask[0, row.length - 1] == 1 and not mask[0, row.length :].any()
    assert not mask[0, : int((row.input_ids == family.image_token_id).argmax())].any()


def test_the_librarys_own_loss_fails(family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample]) -> None:
    """Why `labels=` is not passed: it counts the vocabulary without the two added ids."""
    row = family.encode(samples["one_image"])
    batch = family.collate([row], "right", model)
    features = family.image_features(model, batch.images, grad=False)
    seen = {**family.seen(model, batch, features), **batch.image_arrays}
    with pytest.raises((RuntimeError, ValueError)):
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.input_ids, **seen)
    logits = family.forward(model, batch, features, batch.keep)
    assert logits.shape == (row.n_supervised, model.config.vocab_size + 2)


def test_image_ids_are_never_said(family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample]) -> None:
    """A model that would say nothing else; without the ban it does."""
    assert family.suppressed_ids == [model.config.vocab_size, model.config.vocab_size + 1]
    prompts = [family.encode_prompt(kind, samples[kind].prompt) for kind in ("one_image", "text_only")]
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(0.01)
        head.additional_fc.weight.normal_(std=5.0, generator=torch.Generator().manual_seed(0))

    def said() -> set[int]:
        batch = family.collate(prompts, "left", model)
        with torch.inference_mode():
            features = family.image_features(model, batch.images, grad=False)
            return set(family.generate(model, batch, features, 8).flatten().tolist())

    assert not said() & set(family.suppressed_ids)
    banned, family.suppressed_ids = family.suppressed_ids, ()
    try:
        assert said() & set(banned)
    finally:
        family.suppressed_ids = banned


@pytest.mark.parametrize("mark", ["<image>", "<fake_token_around_image>", "<|im_end|>"])
def test_marks_in_a_text_are_refused(family: GenericFamily, mark: str) -> None:
    with pytest.raises(BadRowError, match="own token"):
        family.encode_prompt("row", Prompt((Message("user", (f"a {mark} b",)),)))
