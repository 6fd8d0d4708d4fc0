"""Several datasets as one: the part of a row, how often it comes, and no image shared by one part's train and
another's test."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.datasets.shapes import Shapes
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.mixture import Mixture
from vlmft.data.order import Mix, WindowSampler, epoch_order
from vlmft.data.other_answers import with_answer
from vlmft.data.survey.survey import survey_splits
from vlmft.sample import BadRowError

SHAPES = {"data": "shapes", "options": {"train_rows": 6, "val_rows": 2, "test_rows": 3, "image_size": 48}}


def table(folder: Path, shades: list[int], **columns: str) -> str:
    """A table of one row for each image of that shade."""
    folder.mkdir(exist_ok=True)
    for shade in shades:
        PIL.Image.new("RGB", (4, 4), (shade, 0, 0)).save(folder / f"{shade}.png")
    rows = [{"image": f"{shade}.png", "question": "Red?", "answer": f"red {shade}", **columns} for shade in shades]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(folder / "rows.jsonl")


def own(path: str, weight: float = 1, **options: Any) -> dict[str, Any]:
    return {"data": "columns", "path": path, "weight": weight, "options": options}


def module(parts: Mapping[str, Any], **settings: Any) -> VLMDataModule:
    config = DataConfig(name="mixture", dataset="vlmft.data.mixture:Mixture", options={"parts": parts}, **settings)
    ledger = Ledger(None, config.on_bad_row, 1.0)
    return VLMDataModule(make_dataset(config), config, lambda sample: sample, ledger, 4, 0)  # type: ignore[arg-type, return-value]


def test_a_row_is_that_of_its_part(tmp_path: Path) -> None:
    path = table(tmp_path / "a", [1, 2], label="x")
    mixture = Mixture(parts={"shapes": SHAPES, "mine": own(path, group="label", class_column="label")})
    index = {split: list(rows) for split, rows in mixture.index().items()}
    assert {split: len(rows) for split, rows in index.items()} == {"train": 8, "val": 2, "test": 3}
    assert index["train"][-2:] == ["mine/columns/train/000000", "mine/columns/train/000001"]
    assert index["test"][0] == "shapes/shapes/A/test/000000"
    for row_id, source in ((index["train"][0], "shapes"), (index["train"][-1], "mine")):
        kind, options = "vlmft.data.datasets.shapes:Shapes", SHAPES["options"]
        part = make_dataset(DataConfig(name="x", dataset=kind, options=options))  # type: ignore[arg-type]
        if source == "mine":
            options = {"group": "label", "class_column": "label"}
            part = make_dataset(
                DataConfig(name="x", dataset="vlmft.data.datasets.columns:Columns", path=path, options=options)
            )
        sample, theirs = mixture.to_sample(mixture.read(row_id)), part.to_sample(part.read(row_id.partition("/")[2]))
        assert sample.id == row_id and sample.tags["source"] == source
        assert sample.prompt.sha256 == theirs.prompt.sha256 and sample.answer == theirs.answer
    assert (sample.tags["group"], sample.tags["class"]) == ("mine/x", "mine/x"), "ties no row of another part"
    assert pickle.loads(pickle.dumps(mixture)).read(index["train"][-1])["answer"] == "red 2"
    with pytest.raises(BadRowError, match="begins with shapes, mine, got 'other/1'"):
        mixture.read("other/1")


def test_the_command_line_s_form(compose: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path / "a", [1, 2])
    parts = f"data.options.parts={{shapes: 2, mine: {{data: columns, path: '{path}', weight: 0.5}}}}"
    mixture = make_dataset(compose("data=mixture", parts, "data.metric=exact_match").data)
    assert mixture.weights() == {"shapes": 2.0, "mine": 0.5} and mixture.max_new_tokens == 64


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_tell_how_often_rows_come(tmp_path: Path, workers: int) -> None:
    path = table(tmp_path / "a", list(range(10)))
    parts = {"shapes": {**SHAPES, "weight": 2}, "mine": own(path, 0.5), "twin": own(table(tmp_path / "b", [200]), 1.5)}
    data = module(parts, val_rows=0, test_rows=0, workers=workers)
    survey_splits(data)
    assert data.epoch_sentence() == (
        "an epoch has 12 rows of shapes (6 x 2), 5 rows of mine (10 x 0.5), 2 rows of twin (1 x 1.5)"
    )
    loader, epochs = data.train_dataloader(), []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        epochs.append([row.id for window in loader for row in window])
        assert len(epochs[-1]) == 19 and len(loader) == 5
    counts = [Counter(Counter(rows).values()) for rows in epochs]
    assert counts == [Counter({2: 7, 1: 5})] * 2, "6 scenes and the twin twice, 5 of 10 own rows once"
    assert len({tuple(sorted(rows)) for rows in epochs}) == 2, "another half of the own rows"
    assert Counter(row.id for window in data.val_dataloader() for row in window) == Counter(data.ids["val"])
    assert [len(data.ids[split]) for split in ("val", "test")] == [2, 3]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    mix = Mix(np.array([0] * 100 + [1] * 50), {"a": 0.25, "b": 2.5})
    orders = {(seed, epoch): epoch_order(150, seed, epoch, mix).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert all(epoch_order(150, seed, epoch, mix).tolist() == order for (seed, epoch), order in orders.items())
    for order in orders.values():
        assert mix.rows() == [25, 125] == [sum(row < 100 for row in order), sum(row >= 100 for row in order)]
        assert {Counter(order)[row] for row in range(100, 150)} == {2, 3}


def test_ranks_and_a_resumed_run_see_the_same_windows() -> None:
    mix = Mix(np.array([0] * 7 + [1] * 5), {"a": 1, "b": 1.4})

    def windows(rank: int = 0, n_ranks: int = 1, served: int = 0) -> list[list[int]]:
        sampler = WindowSampler(12, 4, 3, rank, n_ranks, mix)
        sampler.served = served
        return list(sampler)

    whole = windows()
    assert list(map(len, whole)) == [4, 4, 4, 2] and windows(served=2) == whole[2:]
    dealt = [windows(rank, 2) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*dealt, strict=True)] == [sorted(window) for window in whole]


def test_weights_of_one_change_nothing(tmp_path: Path) -> None:
    path = table(tmp_path / "a", list(range(10)))
    alone = module({"mine": own(path)})
    assert alone.mix() is None and alone.epoch_sentence() == ""
    assert alone.train_dataloader().batch_sampler.mix is None  # type: ignore[union-attr]


def test_splits_are_taken_from_the_parts_that_declare_none(tmp_path: Path) -> None:
    data = module({"shapes": SHAPES, "mine": own(table(tmp_path / "a", list(range(20))))})
    survey_splits(data)
    found = {split: Counter(row.partition("/")[0] for row in rows) for split, rows in data.ids.items()}
    assert found == {
        "train": {"shapes": 6, "mine": 14},
        "val": {"shapes": 2, "mine": 2},
        "test": {"shapes": 3, "mine": 4},
    }
    assert {data.sample(row).tags["source"] for row in data.ids["test"]} == {"shapes", "mine"}


def test_an_image_of_two_parts_stands_in_one_split(tmp_path: Path) -> None:
    shades = list(range(20))
    data = module({"a": own(table(tmp_path / "a", shades)), "b": own(table(tmp_path / "b", shades[::-1]))})
    survey_splits(data)
    shown = {split: {data.sample(row).answer for row in rows} for split, rows in data.ids.items()}
    assert {split: len(answers) for split, answers in shown.items()} == {"train": 14, "val": 2, "test": 4}
    assert {split: len(rows) for split, rows in data.ids.items()} == {"train": 28, "val": 4, "test": 8}
    assert sum(map(len, shown.values())) == len(set.union(*shown.values())) == 20


def test_an_image_that_another_part_tests_is_an_error(tmp_path: Path) -> None:
    """The defect: each part is disjoint in itself, and the mixture trains on what it tests."""
    declared = tmp_path / "a"
    table(declared, [1, 2, 3])
    for split, row in zip(("train", "val", "test"), (declared / "rows.jsonl").read_text().splitlines(), strict=True):
        (declared / f"{split}.jsonl").write_text(row)
    (declared / "rows.jsonl").unlink()
    survey_splits(module({"a": own(str(declared))}))
    other = own(table(tmp_path / "b", [3, 4, 5]))
    with pytest.raises(ConfigError, match=r"1 of 1 test rows show what train rows show, such as 'a/.*' and 'b/.*'"):
        survey_splits(module({"a": own(str(declared)), "b": other}, val_rows=0, test_rows=0))


def test_one_metric_for_all(tmp_path: Path) -> None:
    path = table(tmp_path / "a", [1, 2])
    parts = {"shapes": SHAPES, "mine": own(path)}
    with pytest.raises(ConfigError, match=r"got count_accuracy of shapes, exact_match of mine; set data\.metric"):
        _ = module(parts).metric_name
    assert module(parts, metric="exact_match").metric_name == "exact_match"
    assert module({"a": own(path), "b": own(path)}, val_rows=0, test_rows=0).metric_name == "exact_match"
    assert Mixture(parts={"clevr_count": 1, "shapes": 1}).metric == "count_accuracy", "a file's own metric"


def test_the_leak_canary_reaches_the_part_s_record(tmp_path: Path) -> None:
    data = module({"mine": own(table(tmp_path / "a", [1, 2]))}, val_rows=0, test_rows=0)
    row_id = data.ids["train"][0]
    censored, in_source = with_answer(data.dataset, data.dataset.read(row_id), "quetzalcoatl")
    assert in_source and (censored.id, censored.answer) == (row_id, "quetzalcoatl")


def test_facts_are_kept_where_each_part_names_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = own(table(tmp_path / "a", [1, 2]))
    (tmp_path / "a" / "rows.jsonl").touch()
    assert Mixture(parts={"mine": mine}).comes_from() is None, "changed just now"
    os.utime(tmp_path / "a" / "rows.jsonl", (0, 0))
    sources = Mixture(parts={"mine": mine}).comes_from()
    assert sources is not None and sources[0] == "mine" and "rows.jsonl" in sources[-1]
    assert sources != Mixture(parts={"mine": own(mine["path"], group="answer")}).comes_from()
    both = Mixture(parts={"mine": mine, "shapes": SHAPES})
    drawn = both.comes_from()
    assert drawn is not None and "rows.jsonl" in " ".join(drawn) and "shapes" in drawn
    monkeypatch.setattr(Shapes, "comes_from", lambda self: None)
    assert both.comes_from() is None


MISTAKES: dict[str, tuple[Any, str]] = {
    "none": ({}, "got none"),
    "no such file": ({"chartqq": 1}, "there is no dataset 'chartqq'; did you mean 'chartqa'?"),
    "a mixture in it": ({"mixture": 1}, "there is no dataset 'mixture'"),
    "no weight": ({"shapes": 0}, "Expected a weight above 0, or settings with one, got 0"),
    "no number": ({"shapes": "2"}, "got '2'"),
    "true": ({"shapes": True}, "got True"),
    "infinite": ({"shapes": float("inf")}, "got inf"),
    "slash": ({"a/b": {"data": "shapes"}}, "Expected a name without '/'"),
    "typo": ({"shapes": {"wieght": 2}}, "shapes.wieght: no such setting of a part; did you mean 'weight'?"),
    "limit": ({"shapes": {"limit_train": 2}}, "shapes.limit_train: no such setting of a part"),
    "wrong type": ({"shapes": {"path": [1]}}, "data.options.parts.shapes: path"),
    "option": (
        {"shapes": {"options": {"sead": 1}}},
        "data.options.sead: Shapes has no such option; did you mean 'seed'?",
    ),
    "class": ({"x": {"dataset": "os:system"}}, "data.dataset"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str) -> None:
    parts, words = MISTAKES[name]
    with pytest.raises(ConfigError) as error:
        module(parts)
    assert words in str(error.value) and "\n" not in str(error.value)
