"""Boxes through a family's own text and back: nothing moves by more than half a step of its grid."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from transformers import Qwen2VLImageProcessorPil

from vlmft.config.check import ConfigError
from vlmft.config.schema import CoordinatesName
from vlmft.data.images import image_from_bytes
from vlmft.evaluation.few_shot import question_after
from vlmft.models.coordinates import FAMILIES, Coordinates, coordinates_of
from vlmft.models.family import GenericFamily, make_family
from vlmft.models.load import load_source
from vlmft.sample import BadRowError, Box, Image, Mark, Message, Point, Prompt, Sample, marks_text, read_marks

SIZES = [(96, 96), (1, 1), (37, 911), (1920, 1079), (333, 77), (4001, 2999)]
QWEN = SimpleNamespace(image_processor=Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 1003520}))
NAMES = [name.value for name in CoordinatesName if name.value != "auto"]


def made(name: str) -> Coordinates:
    found = coordinates_of(name, "any", QWEN)
    assert found is not None
    return found


def some_marks(size: tuple[int, int], seed: int, label: str = "red cube") -> list[Mark]:
    """The whole picture, five boxes and a point."""
    numbers = np.random.default_rng(seed).uniform(0, 1, (5, 2, 2))
    low, high = numbers.min(1) * size, numbers.max(1) * size
    boxes = [Box(*map(float, (*a, *b)), label=label) for a, b in zip(low, high, strict=True)]  # type: ignore[misc]
    return [Box(0, 0, *size, label=label), *boxes, Point(size[0] / 3, size[1] / 7, label)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str, size: tuple[int, int]) -> None:
    own, marks = made(name), some_marks(size, seed=3)
    text = own.answer(marks_text(marks), size)
    back = read_marks(own.pixels(text, size))
    assert "pixels" not in text
    assert back is not None and [mark.label for mark in back] == [mark.label for mark in marks]
    grid = own.grid(size)
    # half a step and two decimals of the text; a whole one at the edge of 1024 bins, which has no number
    step = [(0.5 if own.most is None else 1.0) * size[i] / grid[i] + 0.02 for i in (0, 1)]
    for one, other in zip(back, marks, strict=True):
        assert len(one.numbers) == len(other.numbers)
        assert all(abs(a - b) <= step[i % 2] for i, (a, b) in enumerate(zip(one.numbers, other.numbers, strict=True)))


@pytest.mark.parametrize("size", [(333, 77), (1920, 1079), (4001, 2999), (30, 30)])
def test_resized_pixels_are_those_of_the_processor(size: tuple[int, int]) -> None:
    """Against what its image processor really makes of a picture."""
    picture = PIL.Image.new("RGB", size)
    grid = QWEN.image_processor(images=[picture], return_tensors="np")["image_grid_thw"][0]
    assert made("resized_pixels").grid(size) == (int(grid[2]) * 14, int(grid[1]) * 14)


PUBLISHED = {
    "thousand": '[{"bbox_2d": [100, 250, 500, 1000], "label": "cat"}]',
    "y_first": '[{"box_2d": [250, 100, 1000, 500], "label": "cat"}]',
    "percent": "cat 10 25 50 100",
    "qwen2_vl": "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,250),(500,1000)<|box_end|>",
    "internvl": "<ref>cat</ref><box>[[100, 250, 500, 1000]]</box>",
    "loc": "<loc0256><loc0102><loc1023><loc0512> cat",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_text_is_as_published(name: str) -> None:
    assert made(name).write([Box(20, 25, 100, 100, "cat")], (200, 100)) == PUBLISHED[name]


def test_qwen25_writes_the_resized_picture() -> None:
    """1000 x 500 becomes 1008 x 504: a box of the original pixels would be off by 8."""
    own = coordinates_of("auto", "qwen2_5_vl", QWEN)
    assert own is not None and own.grid((1000, 500)) == (1008, 504)
    assert json.loads(own.write([Box(500, 250, 1000, 500)], (1000, 500))) == [{"bbox_2d": [504, 252, 1008, 504]}]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_and_read(name: str) -> None:
    assert made(name).pixels(made(name).write([], (50, 40)), (50, 40)) == "[]"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "4", "I see no cat.", '{"a": 1}', '[{"pixels": [1, 2, 3, 4]}]', "<loc0001>"])
def test_what_is_no_box_is_not_read(name: str, text: str) -> None:
    """Above all pixels: a model that writes our own form has not placed anything in its coordinates."""
    own = made(name)
    assert own.pixels(text, (50, 40)) == text
    if "pixels" not in text:
        assert read_marks(text) is None


LENIENT = [
    '```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]\n```',
    'Here it is: {"bbox_2d": [100, 200, 300, 400], "label": "cat"}.',
    '[{"bbox": [100.0, 200, 300, 400], "label": "cat"}, {"bbox_2d": [1, 2',
    '[{"label": "cat", "box_2d": [100, 200, 300, 400]}]',
]


@pytest.mark.parametrize("text", LENIENT)
def test_json_as_models_write_it(text: str) -> None:
    assert made("thousand").pixels(text, (1000, 1000)) == marks_text([Box(100, 200, 300, 400, "cat")])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", ["a; b", "mug 2", "a {b}", "x < y", 'the "big" one', "красный куб", "[1, 2]"])
def test_labels(name: str, label: str) -> None:
    """Kept as they are, or refused by name: never cut."""
    box = Box(10, 20, 30, 40, label)
    try:
        text = made(name).write([box, box], (100, 100))
    except BadRowError as error:
        assert repr(label) in str(error) and set(label) & set(made(name).syntax.stops)
        return
    back = read_marks(made(name).pixels(text, (100, 100)))
    assert back is not None and [mark.label for mark in back] == [label, label]


def test_bare_numbers_are_boxes() -> None:
    assert made("thousand").pixels("[[1, 2, 3, 4], [5, 6, 7, 8]]", (1000, 1000)) == marks_text(
        [Box(1, 2, 3, 4), Box(5, 6, 7, 8)]
    )


def test_several_of_paligemma() -> None:
    """Two cats and a dog, as its makers write them."""
    text = "<loc0000><loc0512><loc0512><loc1023> cat ; <loc0000><loc0000><loc0256><loc0256> cat ; <loc0512>"
    marks = read_marks(made("loc").pixels(text, (1024, 512)))
    assert marks == (Box(512, 0, 1023, 256, "cat"), Box(0, 0, 256, 128, "cat"))


def test_every_family_has_a_convention_that_exists() -> None:
    assert set(FAMILIES.values()) <= set(NAMES)
    assert coordinates_of("auto", "qwen3_vl", QWEN).name == "thousand"  # type: ignore[union-attr]
    assert coordinates_of("auto", "moondream1", QWEN) is None


def test_words_say_whose_convention_it_is() -> None:
    def words(model_type: str) -> str:
        found = coordinates_of("auto", model_type, QWEN)
        assert found is not None
        return found.words

    cat = '`[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]`'
    assert words("qwen2_5_vl") == (
        f"resized_pixels (as its makers trained it): {cat}, in pixels of the picture as its image processor resizes it"
    )
    assert words("idefics3") == f"thousand (the default: its makers publish none): {cat}, 0 to 1000 across and down"
    assert "as model.coordinates says" in made("percent").words
    assert "`<loc0020><loc0010><loc0040><loc0030> cat`, 1024 bins" in words("paligemma")


def test_resized_pixels_of_another_processor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.coordinates: resized_pixels is for Qwen's"):
        coordinates_of("resized_pixels", "any", SimpleNamespace(image_processor=object()))


# ------------------------------------------------------------------------------------------------- through a family


def asked(image: Image, answer: str, *more: str) -> Sample:
    prompt = Prompt((Message("user", (image, "Where is the cube?", *more)),), "boxes")
    return Sample("r", prompt, answer, (answer,))


@pytest.mark.parametrize("size", [(96, 96), (500, 333), (61, 97)])
def test_answer_in_a_row(family: GenericFamily, make_image: Callable[..., Image], size: tuple[int, int]) -> None:
    """Encoded, decoded and read: the box is there again, in pixels; and training sees generation's prompt."""
    box = Box(0.1 * size[0], 0.2 * size[1], 0.7 * size[0], 0.9 * size[1], "cube")
    sample = asked(make_image(*size), marks_text([box]))
    row, prompt = family.encode(sample), family.encode_prompt("r", sample.prompt)
    assert row.marked_size == prompt.marked_size == size
    np.testing.assert_array_equal(row.input_ids[: row.prompt_length], prompt.input_ids)
    text, raw = family.decode_marks(row.input_ids[row.supervised][:-1].tolist(), size)
    assert "pixels" not in raw and raw != text
    (back,) = read_marks(text) or ()
    assert back.label == "cube"
    assert family.coordinates is not None
    steps = [0.5 * size[i % 2] / family.coordinates.grid(size)[i % 2] + 0.02 for i in range(4)]
    assert all(abs(a - b) <= s for a, b, s in zip(back.numbers, box.numbers, steps, strict=True))
    assert family.text_tokens(sample) == len(row.input_ids) - sum(
        family.image_tokens(*image.size) - 1 for image in sample.prompt.images
    )
    pickle.dumps(family.coordinates)


def test_boxes_in_a_question_are_rewritten(family: GenericFamily, make_image: Callable[..., Image]) -> None:
    box = marks_text([Box(48, 0, 96, 48, "a")])
    row = family.encode_prompt("r", asked(make_image(96, 96), "[]", f" Not {box}?").prompt)
    shown = family.show(row.input_ids.tolist())
    assert "pixels" not in shown and family.coordinates is not None
    assert family.coordinates.write([Box(48, 0, 96, 48, "a")], (96, 96)) in shown


def test_examples_are_written_each_in_its_own_picture(family: GenericFamily, make_image: Callable[..., Image]) -> None:
    shot = asked(make_image(60, 30, 1), marks_text([Box(30, 15, 60, 30)]))
    sample = asked(make_image(90, 96, 2), "[]")
    prompt = question_after([shot], sample).prompt
    assert prompt.marks == "boxes"
    row = family.encode_prompt("r", prompt)
    shown = family.show(row.input_ids.tolist())
    assert family.coordinates is not None and family.coordinates.write([Box(30, 15, 60, 30)], (60, 30)) in shown
    assert row.marked_size == (90, 96)


def test_turned_by_exif(family: GenericFamily) -> None:
    """Pixels are those of the upright picture: 40 wide and 20 high in the file, 20 wide and 40 high here."""
    picture, file = PIL.Image.new("RGB", (40, 20), "white"), BytesIO()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(file, "JPEG", exif=exif)
    image = image_from_bytes(file.getvalue(), "turned.jpg")
    row = family.encode(asked(image, marks_text([Box(0, 20, 20, 40)])))
    assert row.marked_size == (20, 40) == image.load().size
    text, _ = family.decode_marks(row.input_ids[row.supervised][:-1].tolist(), (20, 40))
    assert read_marks(text) == (Box(0, 20, 20, 40),)


def test_tiles_change_nothing(family: GenericFamily, make_image: Callable[..., Image]) -> None:
    """A model that sees tiles still counts over the whole picture."""
    box = marks_text([Box(1200, 700, 1500, 1000, "a")])
    row = family.encode(asked(make_image(1500, 1000), box))
    text, _ = family.decode_marks(row.input_ids[row.supervised][:-1].tolist(), (1500, 1000))
    (back,) = read_marks(text) or ()
    assert np.allclose(back.numbers, (1200, 700, 1500, 1000), atol=0.5 * 1500 / 100)


def test_boxes_need_a_picture(family: GenericFamily) -> None:
    """Training on them is refused; asking without one is a control, whose answer is in no pixels."""
    prompt = Prompt((Message("user", ("Where is it?",)),), "boxes")
    with pytest.raises(BadRowError, match="an image for boxes or points to lie in"):
        family.encode(Sample("r", prompt, "[]", ("[]",)))
    assert family.encode_prompt("r", prompt).marked_size is None


def test_other_rows_are_as_before(family: GenericFamily, make_image: Callable[..., Image]) -> None:
    """A text that looks like ours is text where no boxes are asked for."""
    text = marks_text([Box(1, 2, 3, 4)])
    sample = Sample("r", Prompt((Message("user", (make_image(96, 96), "What?")),)), text, (text,))
    row = family.encode(sample)
    assert row.marked_size is None and family.decode(row.input_ids[row.supervised][:-1].tolist()) == text


def test_a_model_without_such_text_is_refused(family: GenericFamily, make_image: Callable[..., Image]) -> None:
    own, family.coordinates = family.coordinates, None
    try:
        with pytest.raises(ConfigError, match="moondream2 does not"):
            family.encode(asked(make_image(96, 96), "[]"))
    finally:
        family.coordinates = own


def test_prompts_differ_by_what_is_asked_for(make_image: Callable[..., Any]) -> None:
    message = Message("user", (make_image(9, 9), "Where?"))
    assert len({Prompt((message,), kind).sha256 for kind in ("", "boxes", "points")}) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [None, 4])
@pytest.mark.parametrize("size", [(500, 333), (61, 97)])
def test_resized_pixels_follow_the_limit_of_visual_tokens(
    name: str,
    make_config: Callable[..., Any],
    make_image: Callable[..., Image],
    size: tuple[int, int],
    most: int | None,
) -> None:
    """The grid is what the row's own image was resized to, also where model.max_visual_tokens_per_image scales it."""
    if name != "tiny_qwen2vl":
        pytest.skip("its image processor has tiles of one size")
    config = make_config(coordinates=CoordinatesName.resized_pixels, max_visual_tokens_per_image=most)
    family = make_family(config, *load_source(config))
    box = Box(0, 0, size[0] / 2, size[1], "a")
    row = family.encode(asked(make_image(*size), marks_text([box])))
    _, high, wide = row.images[0].arrays["image_grid_thw"][0].tolist()
    patch = family.processor.image_processor.patch_size  # type: ignore[attr-defined]
    assert family.coordinates is not None and family.coordinates.grid(size) == (wide * patch, high * patch)
    text, raw = family.decode_marks(row.input_ids[row.supervised][:-1].tolist(), size)
    assert json.loads(raw)[0]["bbox_2d"] == [0, 0, round(wide * patch / 2), high * patch]
    (back,) = read_marks(text) or ()
    step = 0.5 * size[0] / (wide * patch) + 0.01
    assert all(abs(a - b) <= step for a, b in zip(back.numbers, box.numbers, strict=True))
