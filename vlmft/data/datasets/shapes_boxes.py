"""Finding one object in a generated scene: the scenes of `shapes`, which know where each object shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from vlmft.data.dataset import Dataset, Record
from vlmft.data.datasets.scenes import (
    MAX_OBJECTS,
    Condition,
    Draw,
    Scene,
    drawing_code,
    id_mask,
    make_scene,
    render,
)
from vlmft.data.datasets.shapes import FIRST_SCENE, check_scene_options, find_row, list_rows
from vlmft.sample import Box, Image, Message, Prompt, Sample, Split, marks_text

QUESTION = "Where is the {object}?"


class ShapesBoxes(Dataset):
    """ "Where is the red cube?", of an object whose colour and shape no other one of its scene has, and its box."""

    name: ClassVar[str] = "shapes_boxes"
    metric: ClassVar[str] = "box_iou"
    max_new_tokens: ClassVar[int] = 64

    def __init__(
        self,
        *,
        seed: int = 0,
        condition: Condition = "A",
        min_objects: int = 1,
        max_objects: int = 2,
        image_size: int = 96,
        train_rows: int = 12_000,
        val_rows: int = 200,
        test_rows: int = 500,
    ) -> None:
        """Raises ValueError for options that no scene fits."""
        self.seed, self.condition, self.image_size = seed, condition, image_size
        self.min_objects, self.max_objects = min_objects, max_objects
        self.rows: Mapping[Split, int] = {"train": train_rows, "val": val_rows, "test": test_rows}
        check_scene_options(seed, image_size, self.rows, condition)
        if not 1 <= min_objects <= max_objects <= MAX_OBJECTS:
            raise ValueError(
                f"Expected 1 <= min_objects <= max_objects <= {MAX_OBJECTS}, got {min_objects!r} and {max_objects!r}"
            )

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "shapes_boxes/A/train/000012"."""
        return list_rows(f"{self.name}/{self.condition}", self.rows)

    def comes_from(self) -> tuple[str, ...]:
        """As of `shapes`."""
        return (drawing_code(),)

    def read(self, row_id: str) -> Record:
        """{"id", "scene_number", "scene", "asked": place of the object in the scene}.

        Raises:
            BadRowError: no such row.
        """
        split, row = find_row(row_id, f"{self.name}/{self.condition}", self.rows)
        number = FIRST_SCENE[split] + row
        draw = Draw(self.name, self.seed, self.condition, number)
        while True:  # a scene of twins alone is drawn again
            scene = make_scene(draw, self.condition, self.min_objects, self.max_objects, self.image_size)
            names = [name_of(scene, place) for place in range(len(scene.objects))]
            alone = [place for place, name in enumerate(names) if Counter(names)[name] == 1]
            if alone:
                return {"id": row_id, "scene_number": number, "scene": scene, "asked": draw.choice(alone)}

    def to_sample(self, record: Record) -> Sample:
        """One image, one question; the answer is the box of what shows of the object."""
        scene, asked = record["scene"], record["asked"]
        name = f"scene {self.condition}/{record['scene_number']}"
        options = (self.name, self.seed, self.min_objects, self.max_objects, self.image_size)
        side = self.image_size
        image = Image(partial(render, scene), name, f"{name} {options} {drawing_code()}", partial(_size, side))
        answer = marks_text([box_of(scene, asked)])
        question = QUESTION.format(object=name_of(scene, asked))
        prompt = Prompt((Message("user", (image, question)),), "boxes")
        tags = {"objects": str(len(scene.objects)), "shape": scene.objects[asked].look.shape}
        return Sample(id=record["id"], prompt=prompt, answer=answer, references=(answer,), tags=tags)


def _size(side: int) -> tuple[int, int]:
    return (side, side)


def name_of(scene: Scene, place: int) -> str:
    look = scene.objects[place].look
    return f"{look.colour} {look.shape}"


def box_of(scene: Scene, place: int) -> Box:
    """The smallest box round the pixels that the object shows."""
    rows, columns = np.nonzero(id_mask(scene) == place + 1)
    return Box(float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
