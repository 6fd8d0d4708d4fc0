"""Receipts of a toy shop, drawn from nothing but a name, and what they say as JSON: image to JSON without a download.

Each line shows what was bought, one to three times, and its price; below stand the total and how it was paid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vlmft.data.dataset import Dataset, Record
from vlmft.data.datasets.scenes import Condition, Draw, Look, Scene, SceneObject, draw_look, drawing_code, render
from vlmft.data.datasets.shapes import FIRST_SCENE, check_scene_options, find_row, list_rows
from vlmft.sample import Image, Message, Prompt, Sample, Split

if TYPE_CHECKING:
    import PIL.Image

QUESTION = "Write the receipt as JSON."
CELLS = 4
"""Along each side: three lines of three things and a price, and the line of the total."""
MOST_LINES, MOST_COUNT, MOST_PRICE = 3, 3, 9
PAID: Mapping[str | None, tuple[int, int, int] | None] = {"card": (48, 84, 226), "cash": (38, 140, 48), None: None}
"""Way of paying -> colour of its mark; None is a receipt without one."""
INK = (36, 36, 40)
PAPER = ((186, 214), (8, 36), (-14, 14))
"""From and to: how bright its top is, and how much brighter the bottom and the right edge are."""
DIGITS = (
    "01110100011001110101110011000101110 00100011000010000100001000010001110 01110100010000100010001000100011111 "
    "11111000100010000010000011000101110 00010001100101010010111110001000010 11111100001111000001000011000101110 "
    "00110010001000011110100011000101110 11111000010001000100010000100001000 01110100011000101110100011000101110 "
    "01110100011000101111000010001001100"
).split()
"""Of each digit seven lines of five pixels."""


@dataclass(frozen=True)
class Line:
    look: Look
    count: int
    price: int
    """Of all of them together."""


@dataclass(frozen=True)
class Receipt:
    lines: tuple[Line, ...]
    paid: str | None
    paper: tuple[int, ...]
    """Of each of `PAPER` a number in its range: so no two receipts have the same pixels."""

    @property
    def total(self) -> int:
        return sum(line.price for line in self.lines)

    def to_json(self) -> str:
        """What the receipt says, a null where it does not say how it was paid."""
        lines = [
            {"item": f"a {line.look.colour} {line.look.shape}", "count": line.count, "price": line.price}
            for line in self.lines
        ]
        value = {"lines": lines, "total": self.total, "paid": self.paid}
        return json.dumps(value, separators=(",", ":"))


def make_receipt(draw: Draw, condition: Condition) -> Receipt:
    """One to three lines, each of all numbers as often."""
    lines = tuple(
        Line(draw_look(draw, condition), draw.between(1, MOST_COUNT), draw.between(1, MOST_PRICE))
        for _ in range(draw.between(1, MOST_LINES))
    )
    return Receipt(lines, draw.choice(tuple(PAID)), tuple(draw.between(low, high) for low, high in PAPER))


def draw_receipt(receipt: Receipt, image_size: int) -> PIL.Image.Image:
    """The receipt as an RGB picture."""
    import PIL.Image

    cell = image_size // CELLS
    things = tuple(
        SceneObject(line.look, place * cell + cell // 2, row * cell + cell // 2)
        for row, line in enumerate(receipt.lines)
        for place in range(line.count)
    )
    bright, down, right = receipt.paper
    canvas = np.array(render(Scene(things, image_size, (bright, bright, bright, down, right))))
    for row, line in enumerate(receipt.lines):
        _write(canvas, str(line.price), row, cell)
    canvas[MOST_LINES * cell : MOST_LINES * cell + max(1, cell // 24)] = INK
    _write(canvas, str(receipt.total), MOST_LINES, cell)
    colour = PAID[receipt.paid]
    if colour is not None:
        top, edge = MOST_LINES * cell + cell // 4, cell // 6
        canvas[top : top + cell // 2, edge : cell - edge] = colour
    return PIL.Image.fromarray(canvas)


def _write(canvas: np.ndarray, digits: str, row: int, cell: int) -> None:
    """Puts digits to the right end of a line of cells, one a cell."""
    scale = max(1, cell // 8)
    for place, digit in enumerate(digits, start=CELLS - len(digits)):
        bits = np.array([bit == "1" for bit in DIGITS[int(digit)]]).reshape(7, 5).repeat(scale, 0).repeat(scale, 1)
        top, left = row * cell + (cell - 7 * scale + 1) // 2, place * cell + (cell - 5 * scale) // 2
        canvas[top : top + 7 * scale, left : left + 5 * scale][bits] = INK


@cache
def _code() -> str:
    return drawing_code() + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


class Receipts(Dataset):
    """A receipt, and what it says as JSON. Receipt n is a function of (seed, condition, n)."""

    name: ClassVar[str] = "receipts"
    metric: ClassVar[str] = "json_fields"
    max_new_tokens: ClassVar[int] = 128

    def __init__(
        self,
        *,
        seed: int = 0,
        condition: Condition = "B",
        image_size: int = 96,
        train_rows: int = 4_000,
        val_rows: int = 100,
        test_rows: int = 200,
    ) -> None:
        """Raises ValueError for options that no receipt fits."""
        self.seed, self.condition, self.image_size = seed, condition, image_size
        self.rows: Mapping[Split, int] = {"train": train_rows, "val": val_rows, "test": test_rows}
        check_scene_options(seed, image_size, self.rows, condition)

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "receipts/train/000012"."""
        return list_rows(self.name, self.rows)

    def comes_from(self) -> tuple[str, ...]:
        """Nothing but these settings and the code that draws."""
        return (_code(),)

    def read(self, row_id: str) -> Record:
        """{"id", "number", "receipt"}; raises BadRowError where there is no such row."""
        split, row = find_row(row_id, self.name, self.rows)
        number = FIRST_SCENE[split] + row
        return {"id": row_id, "number": number, "receipt": make_receipt(self._draw(number), self.condition)}

    def _draw(self, number: int) -> Draw:
        return Draw(self.name, self.seed, self.condition, number)

    def to_sample(self, record: Record) -> Sample:
        receipt: Receipt = record["receipt"]
        name = f"receipt {self.condition}/{record['number']}"
        identity = f"{name} {(self.name, self.seed, self.image_size)} {_code()}"
        image = Image(partial(draw_receipt, receipt, self.image_size), name, identity)
        answer = receipt.to_json()
        prompt = Prompt((Message("user", (image, QUESTION)),))
        return Sample(record["id"], prompt, answer, (answer,), tags={"lines": str(len(receipt.lines))})
