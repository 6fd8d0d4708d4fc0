"""A whole run of data=detection on a YOLO folder: pixels in, the family's own text, pixels out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.small_runs import SMALL, called
from vlmft.run.train import train
from vlmft.sample import read_marks

pytestmark = pytest.mark.slow


def write(root: Path) -> None:
    """24 pictures of 90 x 60 with one bright square each, a test split declared."""
    draw = np.random.default_rng(0)
    for split, n in {"train": 16, "val": 4, "test": 8}.items():
        for place in ("images", "labels"):
            (root / place / split).mkdir(parents=True)
        for i in range(n):
            x, y = int(draw.integers(0, 60)), int(draw.integers(0, 30))
            pixels = draw.integers(0, 60, (60, 90, 3), dtype=np.uint8)
            pixels[y : y + 20, x : x + 20] = 250
            PIL.Image.fromarray(pixels).save(root / "images" / split / f"{i}.png")
            line = f"0 {(x + 10) / 90} {(y + 10) / 60} {20 / 90} {20 / 60}\n"
            (root / "labels" / split / f"{i}.txt").write_text(line)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [square]\n")


@pytest.fixture(scope="module")
def settings() -> list[str]:
    dropped = ("data=", "data.options", "data.limit")
    return [one for one in SMALL if not one.startswith(dropped)]


def test_a_yolo_folder_to_its_report(settings: list[str], tmp_path: Path, compose: Callable[..., Any]) -> None:
    write(tmp_path / "squares")
    more = ["data=detection", f"data.path={tmp_path / 'squares'}", "data.max_new_tokens=24", f"output_root={tmp_path}"]
    run = called(lambda: train(compose(*settings, *more)))
    answers = [json.loads(line) for line in run.predictions("tuned").splitlines()]
    assert len(answers) == 8 and all(answer["coordinates"] == "qwen2_vl" for answer in answers)
    for answer in answers:
        assert "pixels" not in answer.get("raw", "")
        assert read_marks(answer["text"]) is not None or answer["text"] == answer["raw"]
    page = (run.folder / "report.html").read_text()
    assert "<h2" in page and "Boxes" in page and '"marks"' in page
    assert run.summary["metric"] == "box_f1" and run.summary["leak_canary"]["ok"]
