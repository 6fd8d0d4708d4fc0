"""Encoding: the loss is on the answer alone, and the prompt is what the vendor's own path would ask."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedModel

from vlmft.models.family import GenericFamily
from vlmft.sample import EncodedRow, Image, Message, Prompt, Sample

AROUND_ANSWER = {"tiny": (" ", "<end_of_utterance>"), "tiny_qwen2vl": ("", "<|im_end|>")}
"""What each template writes before the answer, after the generation prompt, and the end token after it."""
SIZES = [(96, 96), (300, 40), (40, 300), (1, 1), (7, 3), (3, 7), (7, 1), (1500, 1000)]
VendorChat = Callable[[Prompt], list[dict[str, Any]]]


def vendor_inputs(family: GenericFamily, chat: list[dict[str, Any]], **settings: Any) -> dict[str, np.ndarray]:
    """The processor's arrays for a chat, by the one call that its documentation shows."""
    made = family.processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="np", **settings
    )
    return {key: np.asarray(value) for key, value in made.items()}


def one_question(image: Image) -> Prompt:
    return Prompt((Message("user", (image, "How many?")),))


def assert_learns_the_answer_alone(family: GenericFamily, name: str, sample: Sample) -> None:
    row = family.encode(sample)
    before, end = AROUND_ANSWER[name]
    assert family.show(row.input_ids[row.supervised].tolist()) == before + sample.answer + end
    assert not row.supervised[: row.prompt_length].any()
    assert row.supervised[row.prompt_length :].all()
    assert row.input_ids[-1] == family.end_id
    prompt = family.encode_prompt(sample.id, sample.prompt)
    assert not prompt.supervised.any()
    np.testing.assert_array_equal(row.input_ids[: row.prompt_length], prompt.input_ids)
    assert row.input_ids.dtype == np.int64 and row.supervised.dtype == np.bool_
    for key, array in row.token_arrays.items():
        np.testing.assert_array_equal(array[: row.prompt_length], prompt.token_arrays[key])
        assert len(array) == row.length and not array[row.prompt_length :].any()


class Shifted(GenericFamily):
    """Defect: the label of each token is its own, not its successor's, as if the model shifted no labels."""

    def encode(self, sample: Sample) -> EncodedRow:
        row = super().encode(sample)
        return dataclasses.replace(row, supervised=np.roll(row.supervised, -1))


class WholeRow(GenericFamily):
    """Defect: loss on the question too."""

    def encode(self, sample: Sample) -> EncodedRow:
        row = super().encode(sample)
        return dataclasses.replace(row, supervised=np.ones_like(row.supervised))


class NoEnd(GenericFamily):
    """Defect: the end token is not learned, so the tuned model never stops."""

    def encode(self, sample: Sample) -> EncodedRow:
        row = super().encode(sample)
        return dataclasses.replace(row, supervised=row.supervised & (row.input_ids != self.end_id))


def test_supervised_ids_are_the_answer_and_the_end_token(family: GenericFamily, name: str, sample: Sample) -> None:
    assert_learns_the_answer_alone(family, name, sample)


@pytest.mark.parametrize("answer", ["10", " two  spaces ", "two\nlines", "Ёлка — №5", "0.75%", "数", "x" * 200])
def test_any_answer_comes_back_letter_by_letter(
    family: GenericFamily, name: str, samples: dict[str, Sample], answer: str
) -> None:
    assert_learns_the_answer_alone(family, name, dataclasses.replace(samples["one_image"], answer=answer))


@pytest.mark.parametrize("defect", [Shifted, WholeRow, NoEnd])
def test_wrong_masks_are_caught(
    family: GenericFamily, name: str, model_config: Any, sample: Sample, defect: type[GenericFamily]
) -> None:
    wrong = defect(family.processor, model_config, family.max_length_tokens)
    with pytest.raises(AssertionError):
        assert_learns_the_answer_alone(wrong, name, sample)


def test_prompt_is_the_vendors_own(family: GenericFamily, sample: Sample, vendor_chat: VendorChat) -> None:
    row = family.encode_prompt(sample.id, sample.prompt)
    theirs = vendor_inputs(family, vendor_chat(sample.prompt))
    np.testing.assert_array_equal(row.input_ids, theirs.pop("input_ids")[0])
    assert theirs.pop("attention_mask").all()
    arrays = set(row.token_arrays) | {key for image in row.images for key in image.arrays}
    assert arrays == set(theirs), "the processor says something that we drop, or the other way round"
    for key, array in row.token_arrays.items():
        np.testing.assert_array_equal(array, theirs[key][0])
    assert [image.sha256 for image in row.images] == [image.sha256 for image in sample.prompt.images]


def test_each_image_is_as_if_it_were_alone(family: GenericFamily, sample: Sample, vendor_chat: VendorChat) -> None:
    row = family.encode_prompt(sample.id, sample.prompt)
    assert len(row.images) == len(sample.prompt.images)
    for encoded, image in zip(row.images, sample.prompt.images, strict=True):
        alone = vendor_inputs(family, vendor_chat(one_question(image)))
        assert encoded.arrays
        for key, array in encoded.arrays.items():
            np.testing.assert_array_equal(array, alone[key])


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_image_tokens_of_any_size(
    family: GenericFamily,
    model: PreTrainedModel,
    model_config: Any,
    make_image: Callable[..., Image],
    vendor_chat: VendorChat,
    size: tuple[int, int],
) -> None:
    """The prompt holds a place for each feature, and `image_tokens` is what stands in place of the template's mark.

    Pictures of 1 or 3 rows are among them: as an array (3, 7, 3) the processor would take rows for channels.
    """
    prompt = one_question(make_image(*size))
    row = family.encode_prompt("row", prompt)
    (features,) = family.image_features(model, row.images, grad=False)
    assert (row.input_ids == model_config.image_token_id).sum() == len(features) > 0
    with_mark = family.processor.apply_chat_template(vendor_chat(prompt), add_generation_prompt=True, tokenize=False)
    ids_with_mark = family.processor.tokenizer(with_mark, add_special_tokens=False)["input_ids"]
    assert row.prompt_length == len(ids_with_mark) - 1 + family.image_tokens(*size)
    theirs = vendor_inputs(family, vendor_chat(prompt))
    for key, array in row.images[0].arrays.items():
        np.testing.assert_array_equal(array, theirs[key])


def tiling_family(family: GenericFamily, model_config: Any) -> GenericFamily:
    """`tiny` as the real SmolVLM is set: pictures larger than a tile are cut into tiles with names."""
    processor = copy.deepcopy(family.processor)
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    processor.tokenizer.add_tokens([AddedToken(tile, special=True) for tile in tiles])
    processor.image_processor.do_image_splitting = True
    processor.image_processor.size = {"longest_edge": 288}
    return GenericFamily(processor, model_config, family.max_length_tokens)


@pytest.mark.parametrize("name", ["tiny"], indirect=True)
@pytest.mark.parametrize("size", [(96, 96), (300, 100), (90, 300)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_tiles_have_a_place_each(
    family: GenericFamily,
    model: PreTrainedModel,
    model_config: Any,
    make_image: Callable[..., Image],
    vendor_chat: VendorChat,
    size: tuple[int, int],
) -> None:
    tiling = tiling_family(family, model_config)
    prompt = one_question(make_image(*size))
    row = tiling.encode_prompt("row", prompt)
    n_tiles = row.images[0].arrays["pixel_values"].shape[1]
    assert n_tiles > 1
    (features,) = tiling.image_features(model, row.images, grad=False)
    assert len(features) == 16 * n_tiles == (row.input_ids == model_config.image_token_id).sum()
    text = tiling.processor.apply_chat_template(vendor_chat(prompt), add_generation_prompt=True, tokenize=False)
    ids_with_mark = tiling.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert row.prompt_length == len(ids_with_mark) - 1 + tiling.image_tokens(*size)
    two = tiling.encode_prompt("two", Prompt((Message("user", (make_image(96, 30), make_image(*size), "?")),)))
    np.testing.assert_array_equal(two.images[1].arrays["pixel_values"], row.images[0].arrays["pixel_values"])


@pytest.mark.parametrize("name", ["tiny"], indirect=True)
@pytest.mark.parametrize("template_writes_start", [True, False])
def test_start_token_stands_once(
    family: GenericFamily, model_config: Any, sample: Sample, vendor_chat: VendorChat, template_writes_start: bool
) -> None:
    """A tokenizer that adds its start token by itself, as Gemma's does; the template may write one as well."""
    processor = copy.deepcopy(family.processor)
    start = processor.tokenizer.bos_token
    adds_start = TemplateProcessing(single=f"{start} $A", special_tokens=[(start, processor.tokenizer.bos_token_id)])
    processor.tokenizer.backend_tokenizer.post_processor = adds_start
    if not template_writes_start:
        processor.chat_template = processor.chat_template.removeprefix(start)
    adding = GenericFamily(processor, model_config, family.max_length_tokens)
    row = adding.encode(sample)
    theirs = vendor_inputs(adding, vendor_chat(sample.prompt))["input_ids"][0]
    np.testing.assert_array_equal(row.input_ids[: row.prompt_length], theirs)
    assert (row.input_ids == processor.tokenizer.bos_token_id).sum() == 1


def test_travels_to_a_worker(family: GenericFamily, sample: Sample) -> None:
    """Worker processes that are spawned, the rule outside Linux, get the encoder pickled."""
    there = pickle.loads(pickle.dumps(family))
    row, same = family.encode(sample), there.encode(sample)
    np.testing.assert_array_equal(row.input_ids, same.input_ids)
    assert len(row.images) == len(same.images)
    for image, again in zip(row.images, same.images, strict=True):
        for key in image.arrays:
            np.testing.assert_array_equal(image.arrays[key], again.arrays[key])


def test_decoded_answer_is_what_was_generated(family: GenericFamily) -> None:
    ids = family.processor.tokenizer(" 3 , 4 . isn 't", add_special_tokens=False)["input_ids"]
    assert family.decode([*ids, family.end_id, family.pad_id]) == "3 , 4 . isn 't"
    assert family.show([*ids, family.end_id]) == " 3 , 4 . isn 't" + family.end_text
