# ruff: noqa: F401, F811 (fixtures and tests of other modules are collected here by importing them)
"""moondream2 under the contracts that the tiny models keep: the same tests, on a tiny moondream2 made on the fly.

The five kinds of rows keep their names; those that moondream2 does not take (several images, several turns) are other
questions about one image here. Its tokenizer is a small stand-in with starmie's control tokens in their places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForImageTextToText, PreTrainedModel

from tests.models import test_encode_contract, test_lora_adapters
from tests.models.test_collate_contract import (
    batch,
    rows,
    test_keep_stands_one_before_its_target,
    test_prompts_alone_have_nothing_to_learn,
    test_rows_stand_whole_on_their_side,
    test_to_moves_every_tensor_and_no_picture,
)
from tests.models.test_encode_contract import (
    test_any_answer_comes_back_letter_by_letter,
    test_decoded_answer_is_what_was_generated,
    test_each_image_is_as_if_it_were_alone,
    test_prompt_is_the_vendors_own,
    test_supervised_ids_are_the_answer_and_the_end_token,
    test_travels_to_a_worker,
    test_wrong_masks_are_caught,
)
from tests.models.test_encode_refusals import (
    test_over_long_row_is_refused_and_a_fitting_one_is_whole,
    test_prompt_that_leaves_no_room_for_an_answer,
)
from tests.models.test_forward_contract import (
    test_batch_is_its_rows,
    test_frozen_features_are_not_rounded_by_autocast,
    test_frozen_features_carry_no_gradient,
    test_keep_anything,
    test_keep_returns_the_logits_at_the_mask,
    test_loss_is_the_librarys,
    test_padding_in_view_would_show,
    theirs,
)
from tests.models.test_generate_contract import (
    alone,
    generated,
    prompts,
    test_answers_differ_so_that_comparing_them_says_something,
    test_batched_is_alone,
    test_generation_is_the_argmax_of_training,
    test_greedy_whatever_the_model_brings,
    test_text_after_images_is_as_on_a_fresh_model,
    test_training_is_the_same_before_and_after_generation,
)
from tests.models.test_lora_adapters import (
    test_adapter_off_is_the_untuned_model,
    test_adapters_are_fp32_on_a_16_bit_base,
    test_adapters_beside_a_part_in_full,
    test_adapters_of_a_part_are_on_all_its_layers_and_no_other,
    test_all_parts_at_once,
    test_full_training_of_a_part,
    test_gradients_are_on_the_adapters_and_nowhere_else,
    test_new_adapters_change_nothing,
)
from tests.models.test_quantized_model import (
    nf4,
    quantized,
    test_adapter_comes_back_bit_for_bit,
    test_every_adapter_has_a_gradient_before_and_after_evaluation,
)
from vlmft.config.schema import Init, LoraConfig, ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.families.moondream2.family import STARMIE, Moondream2Family
from vlmft.models.family import GenericFamily
from vlmft.models.load import load_source
from vlmft.models.lora import checkpoint_language, part_of
from vlmft.models.processor import load_processor
from vlmft.sample import BadRowError, EncodedRow, Image, Message, Prompt, Sample

NAME = "moondream2"
N_LAYERS, N_VISION_LAYERS = 7, 2
LEAVES = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
test_encode_contract.AROUND_ANSWER[NAME] = ("", "<|endoftext|>")
test_lora_adapters.LAYERS[NAME] = {
    "language": {f"model.text.blocks.{i}.{leaf}" for i in range(N_LAYERS) for leaf in LEAVES},
    "connector": {"model.vision.proj_mlp.fc1", "model.vision.proj_mlp.fc2"},
    "vision": {f"model.vision.blocks.{i}.{leaf}" for i in range(N_VISION_LAYERS) for leaf in LEAVES}
    | {"model.vision.patch_emb"},
}


class TinyMoondream2(Moondream2Family):
    """The real `query` token, 15381, lies outside the small vocabulary."""

    generation = dataclasses.replace(STARMIE, question_ids=(1, 24, 2))


@pytest.fixture(scope="module")
def name() -> str:
    return NAME


@pytest.fixture(scope="module")
def make_config(moondream2_folder: Path) -> Callable[..., ModelConfig]:
    def made(**fields: Any) -> ModelConfig:
        plain: dict[str, Any] = {
            "init": Init.random,
            "quantization": QuantizationConfig(mode=QuantizationMode.none),
            "lora": LoraConfig(target_modules=["qkv", "proj", "fc1", "fc2"]),
        }
        return ModelConfig(**({"name": NAME, "path": str(moondream2_folder)} | plain | fields))

    return made


@pytest.fixture(scope="module")
def family(config: ModelConfig) -> GenericFamily:
    source, model_config = load_source(config)
    return TinyMoondream2(load_processor(source, model_config.model_type), model_config, 1024)


@pytest.fixture(scope="module")
def samples(make_image: Callable[..., Image]) -> dict[str, Sample]:
    contents: dict[str, tuple[str | Image, ...]] = {
        "one_image": (make_image(96, 60, 1), "How many items are there?"),
        "text_only": ("What is 2+2?",),
        "two_images": (make_image(40, 80, 3), "Which has more?"),
        "two_turns": ("And red ones? ", make_image(200, 120, 4), "Or blue?"),
        "few_shot": (make_image(90, 150, 5), "Count. Сколько?"),
    }
    answers = {"one_image": "7", "text_only": "Это 4.", "two_images": "the second", "two_turns": "3", "few_shot": "10"}
    return {
        kind: Sample(kind, Prompt((Message("user", content),)), answers[kind], (answers[kind],))
        for kind, content in contents.items()
    }


def test_kinds_are_of_all_tilings(rows: list[EncodedRow]) -> None:
    assert {len(row.images) for row in rows} == {0, 1}
    tilings = {tuple(row.images[0].arrays["pixel_tilings"][0].tolist()) for row in rows if row.images}
    assert len(tilings) >= 3 and (1, 1) in tilings


def test_prompt_ids_by_hand(family: GenericFamily, samples: dict[str, Sample], model_config: Any) -> None:
    """Start, image, the fixed ids around the question, the answer token twice; wherever the image stood."""

    def text(words: str) -> list[int]:
        return list(family.processor.tokenizer(words, add_special_tokens=False)["input_ids"])

    image = [model_config.image_token_id] * 25
    row = family.encode(samples["two_turns"])
    assert row.input_ids.tolist() == [0, *image, 1, 24, 2, *text("And red ones? Or blue?"), 3, 3, *text("3"), 0]
    assert row.prompt_length == row.length - len(text("3")) - 1
    row = family.encode(samples["text_only"])
    assert row.input_ids[:4].tolist() == [0, 1, 24, 2]


def test_question_is_tokenised_alone(family: GenericFamily) -> None:
    """White space around it stays what it is."""
    for question in ("  two ", "line\n\n", "\n"):
        alone_ids = family.processor.tokenizer(question, add_special_tokens=False)["input_ids"]
        row = family.encode_prompt("row", Prompt((Message("user", (question,)),)))
        assert row.input_ids.tolist() == [0, 1, 24, 2, *alone_ids, 3, 3]


def test_answer_token_is_never_chosen(
    family: GenericFamily,
    fresh: Callable[..., PreTrainedModel],
    samples: dict[str, Sample],
) -> None:
    """A model that likes id 3 best would say nothing else; moondream2's own code forbids it inside an answer."""
    model = fresh()
    with torch.no_grad():
        model.get_output_embeddings().bias[3] = 1e4
    prompt = family.collate([family.encode_prompt("row", samples["text_only"].prompt)], "left", model)
    assert 3 not in family.generate(model, prompt, [], 4)[0].tolist()
    family.suppressed_ids = ()
    try:
        assert family.generate(model, prompt, [], 4)[0].tolist() == [3] * 4
    finally:
        family.suppressed_ids = STARMIE.suppressed_ids


def test_the_end_token_ends_a_row_and_padding_follows(
    family: GenericFamily,
    model: PreTrainedModel,
    prompts: dict[str, EncodedRow],
    alone: dict[str, list[int]],
    model_config: Any,
) -> None:
    one, other = "one_image", "two_images"
    ending = TinyMoondream2(family.processor, model_config, family.max_length_tokens)
    ending.end_id = next(i for i in alone[one] if i not in alone[other])
    stop = alone[one].index(ending.end_id) + 1
    first, second = generated(ending, model, [prompts[one], prompts[other]])
    assert first == alone[one][:stop] + [ending.pad_id] * (len(first) - stop)
    assert second == alone[other]


@pytest.mark.parametrize("size", [(70, 70), (300, 40), (40, 300), (1, 1), (7, 3), (700, 500)], ids=str)
def test_image_takes_as_many_tokens_whatever_its_size(
    family: GenericFamily, model: PreTrainedModel, make_image: Callable[..., Image], size: tuple[int, int]
) -> None:
    row = family.encode_prompt("row", Prompt((Message("user", (make_image(*size), "?")),)))
    (features,) = family.image_features(model, row.images, grad=False)
    assert len(features) == 25 == family.image_tokens(*size) == int((row.input_ids == 768).sum())


def test_a_rows_length_is_told_from_its_text(family: GenericFamily, samples: dict[str, Sample]) -> None:
    for kind, n_images in (("one_image", 1), ("text_only", 0)):
        assert family.text_tokens(samples[kind]) + n_images * (25 - 1) == family.encode(samples[kind]).length


def test_positions_count_real_tokens(
    batch: Any,
    rows: list[EncodedRow],
    family: GenericFamily,
    model: PreTrainedModel,
) -> None:
    for i, row in enumerate(rows):
        start = batch.input_ids.shape[1] - row.length if batch.layout == "left" else 0
        assert batch.position_ids[i, start : start + row.length].tolist() == list(range(row.length))
    assert batch.image_arrays == {} and batch.token_arrays == {}


def test_features_together_are_features_alone(
    family: GenericFamily,
    model: PreTrainedModel,
    rows: list[EncodedRow],
) -> None:
    """Also padded to the most crops, as the processor does it for several images."""
    images = [row.images[0] for row in rows if row.images]
    alone_features = family.image_features(model, images, grad=False)
    again = family.image_features(model, images[::-1], grad=False)[::-1]
    assert len(images) == 4 and all(torch.equal(a, b) for a, b in zip(alone_features, again, strict=True))
    most = max(image.arrays["pixel_values"].shape[1] for image in images)
    padded = [torch.from_numpy(image.arrays["pixel_values"][0]) for image in images]
    padded = [torch.cat([crops, crops.new_zeros(most - len(crops), *crops.shape[1:])]) for crops in padded]
    tilings = torch.cat([torch.from_numpy(image.arrays["pixel_tilings"]) for image in images])
    with torch.no_grad():
        together = model.get_image_features(torch.stack(padded), tilings).pooler_output
    for one, other in zip(alone_features, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_features_reach_the_logits(
    family: GenericFamily,
    model: PreTrainedModel,
    rows: list[EncodedRow],
) -> None:
    one = family.collate([rows[0]], "right", model)
    (features,) = family.image_features(model, one.images, grad=False)
    with torch.no_grad():
        good = family.forward(model, one, [features], one.keep)
        blank = family.forward(model, one, [torch.zeros_like(features)], one.keep)
    assert (good - blank).abs().max() > 1e-3
    with pytest.raises(ValueError, match="Expected a feature for each image token, got 0 for 25 tokens"):
        family.forward(model, one, [], one.keep)


def test_image_sees_both_ways_and_text_does_not(
    family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample]
) -> None:
    """The last image token moves the first position's output; the last text token moves nothing before it."""
    row = family.collate([family.encode_prompt("row", samples["one_image"].prompt)], "right", model)
    (features,) = family.image_features(model, row.images, grad=False)
    other = features.clone()
    other[-1] *= -1  # not += 1, which the norm would take away
    everywhere = torch.ones_like(row.supervised)
    with torch.no_grad():
        plain = family.forward(model, row, [features], everywhere)
        moved = family.forward(model, row, [other], everywhere)
        row.input_ids[0, -1] += 1
        later = family.forward(model, row, [features], everywhere)
    assert (plain[0] - moved[0]).abs().max() > 1e-4
    assert torch.equal(plain[:-1], later[:-1]) and not torch.equal(plain[-1], later[-1])


def test_beams_and_pixels_in_the_librarys_way(
    family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample], vendor_chat: Callable[..., Any]
) -> None:
    """Pixels straight into `generate`, two rows padded by the processor, are the rows' answers through the family."""
    kinds = ["one_image", "two_turns"]
    chats = [vendor_chat(samples[kind].prompt) for kind in kinds]
    inputs = family.processor.apply_chat_template(
        chats,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    settings = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [3], "pad_token_id": 0, "eos_token_id": 0}
    theirs_ids = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    ours = family.collate([family.encode_prompt(k, samples[k].prompt) for k in kinds], "left", model)
    features = family.image_features(model, ours.images, grad=False)
    assert theirs_ids.tolist() == family.generate(model, ours, features, 6).tolist()
    beams = model.generate(**inputs, **settings, num_beams=2)
    assert beams.shape[0] == 2


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((Message("system", ("Count.",)), Message("user", ("How many?",))), "one question of a user; change the turns"),
        (
            (Message("user", ("a",)), Message("assistant", ("b",)), Message("user", ("c",))),
            "turns that moondream2 was not trained on",
        ),
        ((Message("user", ("What is <|md_answer|>?",)),), "own token '<|md_answer|>' in it; remove it"),
        ((Message("user", ("What is <|md_reserved_2|>?",)),), "own token '<|md_reserved_2|>'"),
        ((Message("user", ("What is <image>?",)),), "own token '<image>'"),
    ],
)
def test_refused(family: GenericFamily, messages: tuple[Message, ...], said: str) -> None:
    with pytest.raises(BadRowError) as refusal:
        family.encode_prompt("row", Prompt(messages))
    assert said in str(refusal.value)


def test_second_image_is_refused(family: GenericFamily, make_image: Callable[..., Image]) -> None:
    two = Prompt((Message("user", (make_image(9, 9, 1), make_image(9, 9, 2), "Which?")),))
    with pytest.raises(BadRowError, match="at most 1 images, got 2; leave some out"):
        family.encode_prompt("row", two)


def test_language_layers_are_quantised_and_nothing_else(
    nf4: ModelConfig,
    fresh: Callable[..., PreTrainedModel],
) -> None:
    loaded = fresh(nf4)
    found = {key for key, module in loaded.named_modules() if isinstance(module, Linear4bit)}
    assert found == test_lora_adapters.LAYERS[NAME]["language"]
    others = {key: p.dtype for key, p in loaded.named_parameters() if key.removesuffix(".weight") not in found}
    assert {part_of(key) for key in others} == {"language", "connector", "vision"}
    assert set(others.values()) == {torch.float32}


def test_gradient_checkpointing_changes_nothing(
    family: GenericFamily, fresh: Callable[..., PreTrainedModel], samples: dict[str, Sample]
) -> None:
    model = fresh().train().requires_grad_(True)
    one = family.collate([family.encode(samples["one_image"])], "right", model)
    features = family.image_features(model, one.images, grad=False)
    gradients = []
    for on in (False, True):
        if on:
            checkpoint_language(model)
        model.zero_grad()
        family.forward(model, one, features, one.keep).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(model.model.text.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


def test_saved_model_comes_back(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    left, right = model.state_dict(), again.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
