"""Counting objects in generated scenes: the dataset that needs no download and is in no model's training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from vlmft.data.dataset import Dataset, Record
from vlmft.data.datasets.scenes import (
    MAX_OBJECTS,
    MIN_IMAGE_SIZE,
    PALETTES,
    Condition,
    Draw,
    drawing_code,
    make_scene,
    render,
)
from vlmft.sample import BadRowError, Image, Message, Prompt, Sample, Split

QUESTION = "How many items are there in the image?"
FIRST_SCENE: Mapping[Split, int] = {"train": 0, "val": 1_000_000_000, "test": 2_000_000_000}
"""Number of a split's first scene: the ranges are disjoint, so no scene is in two splits."""
MAX_ROWS = 1_000_000
"""Rows of one split at most: row ids have six digits."""


def find_row(row_id: str, prefix: str, rows: Mapping[Split, int]) -> tuple[Split, int]:
    """Split and row number of an id such as "<prefix>/train/000012".

    Raises:
        BadRowError: no such row.
    """
    for split, n_rows in rows.items():
        digits = row_id.removeprefix(f"{prefix}/{split}/")
        if digits != row_id and digits.isdecimal() and len(digits) == 6 and int(digits) < n_rows:
            return split, int(digits)
    raise BadRowError(f"Expected a row id such as '{prefix}/train/000000', got {row_id!r}; take ids from index()")


def list_rows(prefix: str, rows: Mapping[Split, int]) -> dict[Split, Sequence[str]]:
    """Split -> its row ids, in order: what `find_row` reads back."""
    return {split: [f"{prefix}/{split}/{row:06d}" for row in range(n_rows)] for split, n_rows in rows.items()}


def check_scene_options(seed: int, image_size: int, rows: Mapping[Split, int], condition: Condition = "A") -> None:
    """Raises ValueError unless scenes of these options can be drawn."""
    if condition not in PALETTES:
        raise ValueError(f"Expected condition 'A' or 'B', got {condition!r}; they name the CLEVR-CoGenT palettes")
    if seed < 0:
        raise ValueError(f"Expected seed >= 0, got {seed!r}; choose a whole number from 0 up")
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"Expected image_size >= {MIN_IMAGE_SIZE} pixels, got {image_size!r}; objects would be specks")
    for split, n_rows in rows.items():
        if not 0 <= n_rows <= MAX_ROWS:
            raise ValueError(f"Expected {split}_rows in 0..{MAX_ROWS}, got {n_rows!r}; ask for fewer rows")


class Shapes(Dataset):
    """ "How many items are there in the image?", over scenes of `min_objects` to `max_objects` solids, uniformly.

    Scene n is a function of (seed, condition, n) and the object and size options; split and row only choose n.
    """

    name: ClassVar[str] = "shapes"
    metric: ClassVar[str] = "count_accuracy"
    max_new_tokens: ClassVar[int] = 4

    def __init__(
        self,
        *,
        seed: int = 0,
        condition: Condition = "A",
        min_objects: int = 3,
        max_objects: int = 10,
        image_size: int = 96,
        train_rows: int = 6_000,
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
                f"Expected 1 <= min_objects <= max_objects <= {MAX_OBJECTS}, got {min_objects!r} and {max_objects!r}; "
                "more objects would hide each other"
            )

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "shapes/A/train/000012"."""
        return list_rows(f"{self.name}/{self.condition}", self.rows)

    def comes_from(self) -> tuple[str, ...]:
        """Nothing but these settings and the code that draws: a second start draws no scene to know the rows."""
        return (drawing_code(),)

    def read(self, row_id: str) -> Record:
        """{"id", "scene_number", "scene"}.

        Raises:
            BadRowError: no such row.
        """
        split, row = find_row(row_id, f"{self.name}/{self.condition}", self.rows)
        number = FIRST_SCENE[split] + row
        draw = Draw(self.name, self.seed, self.condition, number)
        scene = make_scene(draw, self.condition, self.min_objects, self.max_objects, self.image_size)
        return {"id": row_id, "scene_number": number, "scene": scene}

    def to_sample(self, record: Record) -> Sample:
        """One image, one question; the answer is the number of objects that are drawn."""
        scene = record["scene"]
        name = f"scene {self.condition}/{record['scene_number']}"
        options = (self.name, self.seed, self.min_objects, self.max_objects, self.image_size)
        identity = f"{name} {options} {drawing_code()}"
        image = Image(partial(render, scene), name, identity)
        count = str(len(scene.objects))
        prompt = Prompt((Message("user", (image, QUESTION)),))
        return Sample(id=record["id"], prompt=prompt, answer=count, references=(count,), tags={"count": count})
