"""Finding one object in a scene: the box is that of the pixels that show it."""

from __future__ import annotations

import numpy as np
import pytest

from vlmft.data.datasets.scenes import id_mask
from vlmft.data.datasets.shapes_boxes import ShapesBoxes, name_of
from vlmft.sample import Box, read_marks


@pytest.fixture(scope="module")
def small() -> ShapesBoxes:
    return ShapesBoxes(train_rows=60, val_rows=20, test_rows=20, max_objects=4)


def test_box_is_the_mask(small: ShapesBoxes) -> None:
    for row in small.index()["train"]:
        record = small.read(row)
        sample, asked = small.to_sample(record), record["asked"]
        (box,) = read_marks(sample.answer) or ()
        assert isinstance(box, Box) and sample.references == (sample.answer,)
        mask = id_mask(record["scene"]) == asked + 1
        inside = np.zeros_like(mask)
        inside[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
        assert mask.any() and not (mask & ~inside).any()
        edges = (mask[:, int(box.left)], mask[:, int(box.right) - 1], mask[int(box.top)], mask[int(box.bottom) - 1])
        assert all(edge.any() for edge in edges), "no smaller box would do"


def test_only_one_object_is_meant(small: ShapesBoxes) -> None:
    twins = 0
    for row in small.index()["train"]:
        record = small.read(row)
        names = [name_of(record["scene"], place) for place in range(len(record["scene"].objects))]
        assert names.count(names[record["asked"]]) == 1
        assert small.to_sample(record).bare_question == f"Where is the {names[record['asked']]}?"
        twins += len(set(names)) < len(names)
    assert twins > 0, "some scenes have two of a kind, which are not asked for"


def test_size_is_known_without_drawing(small: ShapesBoxes) -> None:
    (image,) = small.to_sample(small.read("shapes_boxes/A/val/000003")).prompt.images
    assert image.size == (96, 96) == image.load().size and not image.is_hashed


def test_no_scene_is_in_two_splits(small: ShapesBoxes) -> None:
    numbers = [small.read(row)["scene_number"] for rows in small.index().values() for row in rows]
    assert len(set(numbers)) == len(numbers) == 100


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="min_objects"):
        ShapesBoxes(min_objects=4, max_objects=2)
