"""Receipts: the picture shows what the JSON says, and the same name gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from vlmft.data.datasets.receipts import CELLS, DIGITS, INK, Receipts
from vlmft.metrics import metric_named
from vlmft.sample import BadRowError

DATASET = Receipts()


def answer(number: int) -> dict[str, object]:
    found: dict[str, object] = json.loads(DATASET.to_sample(DATASET.read(f"receipts/train/{number:06d}")).answer)
    return found


def pixels(number: int) -> np.ndarray:
    sample = DATASET.to_sample(DATASET.read(f"receipts/train/{number:06d}"))
    return sample.prompt.images[0].pixels


def digit_in(cell: np.ndarray) -> str | None:
    """The digit whose pattern stands in a cell of 24 pixels, found anew from the picture."""
    dark = (cell == np.array(INK)).all(axis=2)[2:23:3, 4:19:3]
    bits = "".join("1" if bit else "0" for bit in dark.ravel())
    return str(DIGITS.index(bits)) if bits in DIGITS else None


def test_prices_and_total_stand_in_the_picture() -> None:
    for number in range(60):
        said, picture = answer(number), pixels(number)
        cells = picture.reshape(CELLS, 24, CELLS, 24, 3).swapaxes(1, 2)
        prices = [digit_in(cells[row, CELLS - 1]) for row in range(3)]
        lines = said["lines"]
        assert isinstance(lines, list)
        assert [price for price in prices if price is not None] == [str(line["price"]) for line in lines]
        last = [digit_in(cells[3, column]) for column in (2, 3)]
        assert "".join(digit for digit in last if digit is not None) == str(said["total"])
        assert said["total"] == sum(line["price"] for line in lines)


def test_all_answers_come_about_as_often() -> None:
    answers = [answer(number) for number in range(900)]
    assert all(250 < n < 350 for n in Counter(str(one["paid"]) for one in answers).values())
    assert all(250 < n < 350 for n in Counter(len(one["lines"]) for one in answers).values())  # type: ignore[arg-type]
    assert {key for one in answers for key in one} == {"lines", "total", "paid"}


def test_the_same_name_gives_the_same_bytes() -> None:
    digest = hashlib.sha256(b"".join(pixels(number).tobytes() for number in range(20))).hexdigest()
    assert digest[:16] == "3b5be5e3f28b0ca3"
    assert hashlib.sha256(json.dumps([answer(n) for n in range(20)]).encode()).hexdigest()[:16] == "eaf19a209290541e"


def test_no_picture_is_in_two_splits() -> None:
    hashes = {split: set() for split in ("train", "test")}  # type: dict[str, set[str]]
    for split, found in hashes.items():
        for number in range(200):
            sample = DATASET.to_sample(DATASET.read(f"receipts/{split}/{number:06d}"))
            found.add(sample.prompt.images[0].sha256)
    assert len(hashes["train"]) == len(hashes["test"]) == 200
    assert not hashes["train"] & hashes["test"]


def test_answers_are_right_by_their_own_metric() -> None:
    sample = DATASET.to_sample(DATASET.read("receipts/val/000003"))
    assert metric_named(DATASET.metric)(sample.answer, sample.references).value == 1
    assert sample.answer == json.dumps(json.loads(sample.answer), separators=(",", ":"))


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(BadRowError):
        DATASET.read("receipts/train/999999")
    with pytest.raises(ValueError, match="condition"):
        Receipts(condition="C")  # type: ignore[arg-type]
