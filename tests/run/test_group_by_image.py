"""Rows that show the same images come in one window, and go through the language part as one row."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.config.schema import TrainConfig
from vlmft.run.build import build, resolved
from vlmft.run.module import make_module

Compose = Callable[..., TrainConfig]
SMALL = ("model=tiny_qwen2vl", "data=columns", "data.test_rows=0", "data.val_rows=0", "train.rows_per_step=6")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four pictures with three questions each, picture by picture; the last has the same pixels as the first."""
    found = []
    for number in range(4):
        PIL.Image.new("RGB", (56, 56), (60 * (number % 3), 80, 160)).save(tmp_path / f"{number}.png")
        found += [(f"{number}.png", f"What is {what}?", f"answer {what} {number}") for what in ("A", "B", "C")]
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("image", "question", "answer"), *found])
    return tmp_path / "rows.csv"


def built_of(compose: Compose, table: Path, *overrides: str) -> Any:
    config = resolved(compose(*SMALL, f"data.path={table}", *overrides)).config
    built = build(config.model, config.data, config.trainer, seed=0, train=config.train)
    return built, make_module(built, config)


def test_groups_are_of_the_pixels(compose: Compose, table: Path) -> None:
    built, _ = built_of(compose, table, "data.group_by_image=true")
    groups = built.data.image_groups()
    assert np.bincount(groups).tolist() in ([6, 3, 3], [3, 6, 3], [3, 3, 6]), "files 0 and 3 show the same"
    assert "12 rows, 3 groups" in built.data.epoch_sentence() and "less varied" in built.data.epoch_sentence()


@pytest.mark.parametrize("grouped", [True, False])
def test_a_window_s_questions_of_one_image_are_one_row(grouped: bool, compose: Compose, table: Path) -> None:
    built, module = built_of(compose, table, f"data.group_by_image={grouped}".lower())
    groups, windows = built.data.image_groups(), []
    for epoch in range(4):
        sampler = built.data._windows()
        sampler.set_epoch(epoch)
        windows += list(sampler)
    together = [len({groups[row] for row in window}) for window in windows]
    assert len(windows) == 8 and (max(together) <= 2) == grouped, "a group of six fills a window, or two of three do"
    ids = [built.data.ids["train"][place] for place in windows[0]]
    encoded = [built.data.encode(sample) for sample in built.data.samples(ids)]
    n_rows = sum(batch.input_ids.shape[0] for batch in module.batches(encoded))
    assert n_rows == together[0]


def test_a_mixture_is_refused(compose: Compose, table: Path) -> None:
    parts = f"data.options.parts={{a: {{data: columns, path: '{table}', weight: 2}}}}"
    settings = ("model=tiny_qwen2vl", "data=mixture", parts, "data.metric=exact_match", "data.group_by_image=true")
    config = resolved(compose(*settings)).config
    with pytest.raises(ConfigError, match=r"data\.group_by_image: Expected one dataset, got a mixture"):
        build(config.model, config.data, config.trainer, seed=0, train=config.train)
