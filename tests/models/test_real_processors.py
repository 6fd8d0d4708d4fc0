"""The generic family on the real tokenizers, templates and image settings of SmolVLM and Qwen2-VL; no weights."""

from __future__ import annotations

import dataclasses
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlmft.config.check import ConfigError
from vlmft.models.family import GenericFamily
from vlmft.models.load import Source
from vlmft.models.processor import load_processor
from vlmft.sample import BadRowError, Box, Image, Message, Prompt, Sample, marks_text, read_marks

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared")
ARCHIVE = REFERENCE / "fixtures" / "processors.tar.xz"
REAL = {
    "smolvlm": ("idefics3", 49190, 49279, " {}<end_of_utterance>"),
    "qwen2vl": ("qwen2_vl", 151655, 151645, "{}<|im_end|>"),
}
"""Folder -> model type, ids of the image token and of the end token as published, and what is learned."""

pytestmark = pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"no {ARCHIVE}; set VLMFT_REFERENCE_DATA")


def config_of(model_type: str, image_token_id: int) -> Any:
    """What a family asks of transformers' config."""
    return SimpleNamespace(model_type=model_type, image_token_id=image_token_id, get_text_config=SimpleNamespace)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("processors")
    with tarfile.open(ARCHIVE) as archive:
        members = [member for member in archive if any(name in member.name for name in REAL)]
        archive.extractall(made, members=members, filter="data")
    return made


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def family(real: str, folder: Path) -> GenericFamily:
    model_type, image_token_id, _, _ = REAL[real]
    (found,) = {file.parent for file in folder.rglob("tokenizer.json") if real in file.parts}
    processor = load_processor(Source(str(found), None, "unknown"), model_type)
    return GenericFamily(processor, config_of(model_type, image_token_id), 8192)


@pytest.fixture(scope="module")
def conversation(make_image: Callable[..., Image]) -> Sample:
    """A system turn, an earlier turn with a picture of three rows, then a wide picture: few tiles, so it is quick."""
    prompt = Prompt(
        (
            Message("system", ("Count.",)),
            Message("user", (make_image(7, 3), "How many?\nЭто вопрос.")),
            Message("assistant", ("12",)),
            Message("user", ("And here: ", make_image(400, 100))),
        )
    )
    return Sample("row", prompt, "10.5 %", ("10.5 %",))


def test_prompt_and_answer_are_the_vendors_text(
    family: GenericFamily, real: str, conversation: Sample, vendor_chat: Callable[[Prompt], list[dict[str, Any]]]
) -> None:
    """Prompt ids alone, and prompt and answer tokenised apart, are what the whole conversation tokenises to."""
    chat = vendor_chat(conversation.prompt)
    row = family.encode(conversation)
    turn = {"role": "assistant", "content": [{"type": "text", "text": conversation.answer}]}
    asked = family.processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)
    whole = family.processor.apply_chat_template([*chat, turn], tokenize=True, return_dict=True)
    assert row.input_ids[: row.prompt_length].tolist() == list(asked["input_ids"][0])
    assert row.input_ids.tolist() == list(whole["input_ids"][0])[: row.length]
    assert family.show(list(whole["input_ids"][0])[row.length :]).strip() == ""
    _, _, end_id, learned = REAL[real]
    assert family.end_id == row.input_ids[-1] == end_id
    assert family.show(row.input_ids[row.supervised].tolist()) == learned.format(conversation.answer)


def test_images_take_the_tokens_that_are_announced(family: GenericFamily, real: str, conversation: Sample) -> None:
    row = family.encode(conversation)
    per_tile, image_token_id = 64, REAL[real][1]
    if real == "smolvlm":
        places = [per_tile * image.arrays["pixel_values"].shape[1] for image in row.images]
    else:
        places = [int(image.arrays["image_grid_thw"].prod()) // 4 for image in row.images]
    assert (row.input_ids == image_token_id).sum() == sum(places)
    frames = [family.image_tokens(*size) - n for size, n in zip([(7, 3), (400, 100)], places, strict=True)]
    assert frames == [0, 0] if real == "qwen2vl" else min(frames) > 0
    chat = [{"role": m.role, "content": [_piece(c) for c in m.content]} for m in conversation.prompt.messages]
    text = family.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = family.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert row.prompt_length == len(ids) - 2 + family.image_tokens(7, 3) + family.image_tokens(400, 100)


def _piece(content: str | Image) -> dict[str, str]:
    return {"type": "text", "text": content} if isinstance(content, str) else {"type": "image"}


def test_control_tokens_of_the_real_vocabulary(family: GenericFamily, real: str) -> None:
    least = {"smolvlm": {"<image>", "<row_6_col_6>", "<global-img>"}, "qwen2vl": {"<|image_pad|>", "<|vision_end|>"}}
    assert set(family.control_texts) >= least[real] | {family.end_text}
    for control in family.control_texts:
        with pytest.raises(BadRowError, match="own token"):
            family.encode_prompt("row", Prompt((Message("user", (f"a{control}b",)),)))
    plain = family.encode_prompt("row", Prompt((Message("user", ("<tool_call> < image > [row_1]",)),)))
    assert "<tool_call> < image > [row_1]" in family.show(plain.input_ids.tolist())
    assert plain.input_ids.dtype == np.int64


BOXES = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")


def test_tokens_of_boxes_may_be_text_where_the_data_says_so(folder: Path) -> None:
    """As Qwen2-VL's own grounding data are written: one id each, taught, and not lost when an answer is decoded."""
    (found,) = {file.parent for file in folder.rglob("tokenizer.json") if "qwen2vl" in file.parts}
    processor = load_processor(Source(str(found), None, "unknown"), "qwen2_vl")
    family = GenericFamily(processor, config_of("qwen2_vl", 151655), 8192)
    answer = "<|object_ref_start|>red box<|object_ref_end|><|box_start|>(0,2),(20,24)<|box_end|>"
    sample = Sample("row", Prompt((Message("user", ("Find the box.",)),)), answer, (answer,))
    with pytest.raises(BadRowError, match=r"set data\.options\.allow_tokens"):
        family.encode(sample)
    for mark in ("<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "<|video_pad|>", "<|endoftext|>"):
        with pytest.raises(ConfigError, match=r"allow_tokens: .* marks an image, a turn or an end|special token"):
            family.allow([*BOXES, mark])
    with pytest.raises(ConfigError, match="Expected a special token of this model, got 'box'"):
        family.allow(["box"])
    family.allow(BOXES)
    row = family.encode(sample)
    learned = row.input_ids[row.supervised].tolist()
    assert [learned.count(i) for i in (151646, 151647, 151648, 151649)] == [1, 1, 1, 1]
    assert family.decode(learned) == answer and family.show(learned) == answer + "<|im_end|>"
    with pytest.raises(BadRowError, match="own token"):
        family.encode(Sample("row", sample.prompt, answer + "<|im_end|>", (answer,)))


def test_boxes_in_the_makers_own_text(real: str, family: GenericFamily, make_image: Callable[..., Image]) -> None:
    """Qwen2-VL's box tokens are special ones: they are written, learned and read back, and no text of a row may hold
    them."""
    box = Box(10, 33, 400, 250, "red cube")
    prompt = Prompt((Message("user", (make_image(417, 263), "Where is the red cube?")),), "boxes")
    row = family.encode(Sample("r", prompt, marks_text([box]), (marks_text([box]),)))
    learned = row.input_ids[row.supervised].tolist()
    text, raw = family.decode_marks(learned[:-1], (417, 263))
    (back,) = read_marks(text) or ()
    assert back.label == "red cube"
    assert all(abs(a - b) <= 0.5 * 417 / 1000 + 0.01 for a, b in zip(back.numbers, box.numbers, strict=True))
    if real == "qwen2vl":
        assert raw == ("<|object_ref_start|>red cube<|object_ref_end|><|box_start|>(24,125),(959,951)<|box_end|>")
        start = family.processor.tokenizer.convert_tokens_to_ids("<|box_start|>")
        assert start in learned, "one token, not its letters"
        with pytest.raises(BadRowError, match="own token"):
            family.encode(dataclasses.replace(Sample("r", prompt, "[]", ("[]",)), answer=raw))
    else:
        assert raw.startswith('[{"bbox_2d": [24, 125, 959, 951]')
