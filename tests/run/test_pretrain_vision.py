"""The dense targets of the tiny model's vision are true, and two steps leave a model that loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.tiny.pretrain_vision import MOST_IN_CELL, ROWS, batch_of, dense_targets, pretrain_vision
from benchmarks.tiny.shapes_pretrain import CONDITION, GRID
from vlmft.data.datasets.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    Draw,
    Look,
    Scene,
    SceneObject,
    id_mask,
    make_scene,
    render,
)

PATCH, SIDE = 12, 8


def scenes() -> list[Scene]:
    return [make_scene(Draw("dense", number), CONDITION, 1, 10, 96) for number in range(60)]


def test_counts_of_all_cells_are_the_scene_s() -> None:
    for scene in scenes():
        _, cells = dense_targets(scene, PATCH)
        assert cells.shape == (GRID**2, 1 + len(SHAPES) + len(COLOURS)) and cells.max() < MOST_IN_CELL
        shapes = [sum(item.look.shape == shape for item in scene.objects) for shape in SHAPES]
        colours = [sum(item.look.colour == colour for item in scene.objects) for colour in COLOURS]
        assert cells.sum(0).tolist() == [len(scene.objects), *shapes, *colours]


def test_an_object_is_told_where_it_stands() -> None:
    item = SceneObject(Look("red", "cube", "large", "rubber", 0), x=66, y=30)
    patches, cells = dense_targets(Scene((item,), 96, (200, 200, 200, 20, 0)), PATCH)
    red, cube, large = list(COLOURS).index("red"), SHAPES.index("cube"), list(SIZES).index("large")
    assert patches[30 // 12 * SIDE + 66 // 12].tolist() == [red, cube, large, 1]
    assert patches[-1].tolist() == [len(COLOURS), len(SHAPES), len(SIZES), 0], "floor"
    assert cells[30 // 24 * GRID + 66 // 24, 0] == cells[:, 0].sum() == 1


def test_a_patch_is_told_by_the_object_that_fills_most_of_it() -> None:
    looked_at = 0
    for scene in scenes()[:20]:
        patches, _ = dense_targets(scene, PATCH)
        mask = id_mask(scene)
        for number in range(SIDE**2):
            top, left = number // SIDE * PATCH, number % SIDE * PATCH
            ids, areas = np.unique(mask[top : top + PATCH, left : left + PATCH], return_counts=True)
            most = max(zip(areas[ids > 0].tolist(), ids[ids > 0].tolist(), strict=True), default=(0, 0))
            if sorted(areas[ids > 0].tolist())[-2:-1] == [most[0]]:
                continue  # two fill the same share: either is true
            shape = patches[number, 1]
            if most[0] >= PATCH**2 // 8:
                assert SHAPES[shape] == scene.objects[most[1] - 1].look.shape
                looked_at += 1
            else:
                assert shape == len(SHAPES)
    assert looked_at > 150


def test_pixels_are_those_of_the_processor() -> None:
    pixels, patches, cells = batch_of(0, PATCH)
    assert pixels.shape == (ROWS, 3, 96, 96) and patches.shape == (ROWS, 64, 4) and cells.shape[:2] == (ROWS, 16)
    picture = render(make_scene(Draw("vision", 3), CONDITION, 1, 10, 96))
    processor = AutoProcessor.from_pretrained(Path(__file__).parents[2] / "vlmft/models/weights/tiny")
    seen = processor.image_processor(picture, return_tensors="pt")["pixel_values"].reshape(3, 96, 96)
    torch.testing.assert_close(pixels[3], seen, atol=1e-6, rtol=0)


def test_two_steps_leave_a_model_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.tiny.pretrain_vision.ROWS", 4)
    pretrain_vision(tmp_path, steps=2)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert model.config.model_type == "idefics3" and processor.chat_template
    assert not any("head" in name and "lm_head" not in name for name, _ in model.named_parameters())
