"""The substitute of each published dataset is read by that dataset's own config, without a bad row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.smoke.rows import WRITERS, chart
from vlmft.config.schema import TrainConfig
from vlmft.data.make import make_dataset

GOLDEN: Mapping[str, tuple[dict[str, int], str, str, tuple[int, int]]] = {
    "clevr_count": ({"train": 44}, "How many items are there in the image?", "3", (320, 480)),
    "pjn_charts": ({"train": 24, "val": 8, "test": 12}, "What is the value in January?", "60", (160, 240)),
    "chartllama": ({"train": 46}, "What is the value in January?", "55", (160, 240)),
    "characters": ({"train": 44}, "Кто изображён на картинке?", "Это Крокодил Гена.", (96, 96)),
    "sports": ({"train": 24, "val": 8, "test": 12}, "What sport is in this image?", "archery", (224, 224)),
    "sports_captions": (
        {"train": 24, "val": 8, "test": 12},
        "What is a caption for this photo?",
        "A soccer player waits .",
        (96, 96),
    ),
}
"""Rows by split, then question, answer and height and width of the first one."""


def test_each_dataset_has_a_golden_row() -> None:
    assert GOLDEN.keys() == WRITERS.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_rows(name: str, tmp_path: Path, compose: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    WRITERS[name](tmp_path / "rows")
    overrides = [f"data={name}", f"data.path={tmp_path}/rows", "data.revision=null"]
    dataset: Any = make_dataset(compose(*overrides).data)
    counts, question, answer, size = GOLDEN[name]
    index = dataset.index()
    assert {split: len(ids) for split, ids in index.items()} == counts
    samples = {split: [dataset.to_sample(dataset.read(row_id)) for row_id in ids] for split, ids in index.items()}
    shown = [{image.sha256 for row in rows for image in row.prompt.images} for rows in samples.values()]
    assert sum(map(len, shown)) == len(set.union(*shown))  # no image is in two splits, and each can be read
    first = samples["train"][0]
    assert first.prompt.messages[-1].text.splitlines()[0] == question
    assert first.answer == answer and first.prompt.images[0].pixels.shape == (*size, 3)


def test_a_chart_shows_its_values() -> None:
    picture, values = chart("any")
    for number, value in enumerate(values.values()):
        column = np.asarray(picture)[:, 15 + 55 * number + 34]
        assert (column == (40 + 50 * number, 90, 180)).all(axis=-1).sum() == value + 1  # a bar has both its ends


def test_what_is_special_is_there(tmp_path: Path, compose: Callable[..., TrainConfig]) -> None:
    """A misspelt class, an answer of glued pairs, images without annotation: what these datasets are known for."""
    for name in ("sports", "chartllama", "characters"):
        WRITERS[name](tmp_path / name)
    assert (tmp_path / "sports/train/canoe slamon").is_dir()
    table = (tmp_path / "chartllama/box_chart_100examples_simplified_qa.json").read_text(encoding="utf-8")
    assert table.count("Answer: ") == 1
    assert "masha/10.jpg" not in (tmp_path / "characters/annotation.json").read_text(encoding="utf-8")
