"""python -m benchmarks.tiny.pretrain_vision FOLDER: vision tower and connector of the tiny model, from dense targets.

Text alone teaches a new vision tower slowly. Here two linear heads, thrown away afterwards, say what every patch shows
and what stands in the cell of every image token; then `python train.py experiment=pretrain_tiny` teaches the rest.
Scenes are those of `benchmarks/tiny/shapes_pretrain.py`: condition B palettes, a name space of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoProcessor, Idefics3ForConditionalGeneration

from benchmarks.tiny.shapes_pretrain import CONDITION, GRID
from vlmft.config.schema import Init, ModelConfig
from vlmft.data.datasets.scenes import COLOURS, SHAPES, SIZES, Draw, Scene, id_mask, make_scene, render
from vlmft.models.load import load_source
from vlmft.training.memory import keep_freed_pages

IMAGE_SIZE, ROWS, STEPS, LR = 96, 64, 3600, 1.2e-3
MOST_OBJECTS = 10
COLOUR_NAMES, SIZE_NAMES = tuple(COLOURS), tuple(SIZES)
PATCH_CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1, 3)
"""Colour, shape and size of what fills most of a patch (the last class is floor); centres in it, 2 or more as 2."""
CELL_COUNTS = 1 + len(SHAPES) + len(COLOURS)
"""For every image token, how many objects have their centre there: all, of each shape, of each colour."""
MOST_IN_CELL = 4


def dense_targets(scene: Scene, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """(patches, 4) int64, classes of `PATCH_CLASSES`; (tokens, `CELL_COUNTS`) int64, counts up to `MOST_IN_CELL`."""
    side = scene.image_size // patch
    pixels = id_mask(scene).reshape(side, patch, side, patch).swapaxes(1, 2).reshape(side**2, patch**2)
    shown = np.stack([(pixels == number).sum(1) for number in range(1, len(scene.objects) + 1)], axis=1)
    looks = [
        (COLOUR_NAMES.index(o.look.colour), SHAPES.index(o.look.shape), SIZE_NAMES.index(o.look.size))
        for o in scene.objects
    ]
    filled = shown.max(1) >= patch**2 // 8
    floor = np.array([n - 1 for n in PATCH_CLASSES[:3]])
    patches = np.zeros((side**2, 4), np.int64)
    patches[:, :3] = np.where(filled[:, None], np.array(looks)[shown.argmax(1)], floor)
    cells = np.zeros((GRID**2, CELL_COUNTS), np.int64)
    for item, (colour, shape, _) in zip(scene.objects, looks, strict=True):
        patches[item.y // patch * side + item.x // patch, 3] += 1
        cell = item.y * GRID // scene.image_size * GRID + item.x * GRID // scene.image_size
        cells[cell, [0, 1 + shape, 1 + len(SHAPES) + colour]] += 1
    patches[:, 3] = patches[:, 3].clip(max=2)
    return patches, cells.clip(max=MOST_IN_CELL)


def batch_of(step: int, patch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels (rows, 3, side, side) fp32 in -1..1, as the tiny model's processor makes them; the two dense targets."""
    scenes = [
        make_scene(Draw("vision", step * ROWS + row), CONDITION, 1, MOST_OBJECTS, IMAGE_SIZE) for row in range(ROWS)
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2)
    patches, cells = zip(*(dense_targets(scene, patch) for scene in scenes), strict=True)
    return pixels / 127.5 - 1, torch.from_numpy(np.stack(patches)), torch.from_numpy(np.stack(cells))


class Seer(torch.nn.Module):
    """Vision tower, connector and the two heads."""

    def __init__(self, model: Idefics3ForConditionalGeneration) -> None:
        super().__init__()
        self.vision, self.connector = model.model.vision_model, model.model.connector
        config = model.config
        self.patch_head = torch.nn.Linear(config.vision_config.hidden_size, sum(PATCH_CLASSES))
        self.cell_head = torch.nn.Linear(config.text_config.hidden_size, CELL_COUNTS * (MOST_IN_CELL + 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, patches, sum of `PATCH_CLASSES`) and (rows, tokens, `CELL_COUNTS`, `MOST_IN_CELL` + 1) logits."""
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.vision(pixel_values=pixels).last_hidden_state
            patches, cells = self.patch_head(seen), self.cell_head(self.connector(seen))
        return patches.float(), cells.float().unflatten(-1, (CELL_COUNTS, MOST_IN_CELL + 1))

    def loss(self, pixels: torch.Tensor, patches: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Sum of the heads' cross-entropies; where objects are and how many counts three times."""
        patch_logits, cell_logits = self(pixels)
        per_patch = [
            F.cross_entropy(part, patches[..., number].flatten())
            for number, part in enumerate(patch_logits.flatten(0, 1).split(PATCH_CLASSES, dim=-1))
        ]
        per_cell = F.cross_entropy(cell_logits.flatten(0, 2), cells.flatten(), reduction="none")
        per_count = per_cell.view(-1, CELL_COUNTS).mean(0)
        return sum(per_patch[:3], 3 * per_patch[3]) + 3 * per_count[0] + per_count[1:].sum()


def pretrain_vision(folder: Path, steps: int = STEPS) -> None:
    """Writes a model in Hub layout: vision tower and connector trained, language as initialised with seed 0."""
    source, config = load_source(ModelConfig(name="tiny", path="package:tiny", init=Init.random))
    torch.manual_seed(0)
    # eager: the backward pass of sdpa is slow on CPU
    model: Any = Idefics3ForConditionalGeneration._from_config(config, attn_implementation="eager").float()
    seer = Seer(model)
    trained = list(seer.parameters())
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * min(1, 2 - 2 * step / steps)
    )
    for step in range(steps):
        loss = seer.loss(*batch_of(step, config.vision_config.patch_size))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(source.path).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("Expected: python -m benchmarks.tiny.pretrain_vision FOLDER [STEPS]")
    keep_freed_pages()
    pretrain_vision(Path(sys.argv[1]), *map(int, sys.argv[2:]))
