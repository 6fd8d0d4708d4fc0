"""Splits that a source does not declare, subsets of classes, and the data card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig, OnBadRow
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.dataset import Dataset, Record
from vlmft.data.ledger import Ledger
from vlmft.data.survey.card import Spread
from vlmft.data.survey.survey import survey_splits
from vlmft.sample import BadRowError, Image, Message, Prompt, Sample, Split


def picture(number: int) -> PIL.Image.Image:
    if number >= 900:
        raise BadRowError("Expected an image, got none; replace the file")
    return PIL.Image.new("RGB", (4, 3), (number, 0, 0))


class Pile(Dataset):
    """Rows as (image, question, answer, class); `declared` says which split holds how many of them."""

    name: ClassVar[str] = "pile"
    metric: ClassVar[str] = "exact_match"
    max_new_tokens: ClassVar[int] = 4
    fills_splits: ClassVar[bool] = True

    def __init__(self, rows: Sequence[tuple[int, str, str, str]], declared: Mapping[Split, int] | None = None) -> None:
        self.rows, self.declared = rows, declared or {"train": len(rows)}

    def index(self) -> Mapping[Split, Sequence[str]]:
        numbers = iter(range(len(self.rows)))
        return {split: [f"{next(numbers):03d}" for _ in range(n)] for split, n in self.declared.items()}

    def read(self, row_id: str) -> Record:
        return {"id": row_id}

    def to_sample(self, record: Record) -> Sample:
        image, question, answer, name = self.rows[int(record["id"])]
        prompt = Prompt((Message("user", (Image(partial(picture, image), f"{image}"), question)),))
        return Sample(record["id"], prompt, answer, (answer,), tags={"class": name} if name else {})


ROWS = [(number // 2, f"q{number % 2}", f"a{number % 3}", "odd" if number // 2 % 2 else "even") for number in range(80)]


def module(dataset: Dataset, folder: Path | None = None, seed: int = 0, **settings: Any) -> VLMDataModule:
    config = DataConfig(name="pile", dataset="tests:Pile", **settings)
    ledger = Ledger(folder / "bad.jsonl" if folder else None, config.on_bad_row, config.bad_row_ceiling)
    return VLMDataModule(dataset, config, lambda sample: sample, ledger, rows_per_step=4, seed=seed)  # type: ignore[arg-type, return-value]


def test_missing_splits_are_taken_from_train_by_content() -> None:
    data = module(Pile(ROWS))
    assert {split: len(ids) for split, ids in data.ids.items()} == {"train": 56, "val": 8, "test": 16}
    assert data.divided == ("test", "val")
    images = {split: {ROWS[int(row_id)][0] for row_id in ids} for split, ids in data.ids.items()}
    assert not images["train"] & images["val"] | images["train"] & images["test"] | images["val"] & images["test"]
    survey_splits(data)  # and the assertion agrees
    other = module(Pile(ROWS), seed=7)
    assert other.ids == data.ids, "the training seed moves no row into the test split"
    assert module(Pile(ROWS), split_seed=7).ids["test"] != data.ids["test"]


def test_the_defect_is_caught() -> None:
    """Rows dealt out one by one, as `train_test_split` does, put one image into two splits."""
    declared: dict[Split, int] = {"train": 41, "val": 0, "test": 39}
    with pytest.raises(ConfigError, match="1 of 39 test rows show what train rows show, such as '041' and '040'"):
        survey_splits(module(Pile(ROWS, declared)))


def test_a_declared_split_is_left_as_it_is() -> None:
    data = module(Pile(ROWS, {"train": 60, "test": 20}), val_rows=10)
    assert (len(data.ids["train"]), len(data.ids["val"]), data.divided) == (50, 10, ("val",))
    assert data.ids["test"] == [f"{number:03d}" for number in range(60, 80)]
    off = module(Pile(ROWS), val_rows=0, test_rows=0)
    assert (len(off.ids["train"]), off.ids["val"], off.ids["test"], off.divided) == (80, [], [], ())
    assert module(Pile(ROWS, {"test": 80})).ids["test"] == [f"{number:03d}" for number in range(80)]


def test_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match=r"data\.test_rows=998, data\.val_rows=0\.1: Expected fewer than the 80"):
        module(Pile(ROWS), test_rows=998)


def test_bad_rows_are_counted_before_anything_is_divided(tmp_path: Path) -> None:
    rows = [*ROWS, *((900 + n, "q", "a", "odd") for n in range(3))]
    with pytest.raises(BadRowError, match="3 rows cannot be used; the first: row 080: Expected an image, got none"):
        module(Pile(rows), tmp_path)
    skipping = module(Pile(rows), tmp_path, on_bad_row=OnBadRow["skip"], bad_row_ceiling=0.02)
    assert sum(map(len, skipping.ids.values())) == 80 and list(skipping.ledger.bad) == ["080", "081", "082"]
    with pytest.raises(BadRowError, match="3 of 83 rows are bad"):
        module(Pile(rows), tmp_path, on_bad_row=OnBadRow["skip"], bad_row_ceiling=0.01)


def test_bad_rows_of_declared_splits_stop_before_training(tmp_path: Path) -> None:
    rows = [*ROWS[:4], (900, "q", "a", "odd"), (901, "q", "a", "odd")]
    data = module(Pile(rows, {"train": 2, "val": 2, "test": 2}), tmp_path)
    with pytest.raises(BadRowError, match="2 rows cannot be used; the first: row 004: "):
        survey_splits(data)


def test_rows_of_each_class() -> None:
    data = module(Pile(ROWS), train_per_class=5)
    classes = [ROWS[int(row_id)][3] for row_id in data.ids["train"]]
    assert sorted(classes) == ["even"] * 5 + ["odd"] * 5 and data.ids["train"] == sorted(data.ids["train"])
    more = module(Pile(ROWS), train_per_class=9).ids["train"]
    assert {*data.ids["train"]} < {*more} and len(more) == 18
    assert data.ids["test"] == module(Pile(ROWS)).ids["test"]
    with pytest.raises(ConfigError, match=r"data\.train_per_class: pile knows no classes"):
        module(Pile([(1, "q", "a", ""), (2, "q", "a", "")]), train_per_class=5, val_rows=0, test_rows=0)


@pytest.mark.parametrize(("limit", "n_rows"), [(0.5, 28), (0.05, 3), (0.001, 1), (10, 10), (1.0, 1)])
def test_a_limit_is_a_count_or_a_share(limit: float, n_rows: int) -> None:
    assert len(module(Pile(ROWS), limit_train=limit).ids["train"]) == n_rows


def test_the_card() -> None:
    rows = [
        (1, "What?", "a cat", "cat"),
        (1, "Why?", "because it is", "cat"),
        (1, "What?", "a cat", "cat"),
        (2, "What?", "a dog", "dog"),
        (3, "What?", "a cat", "cat"),
    ]
    data = module(Pile(rows, {"train": 4, "val": 0, "test": 1}))
    survey = survey_splits(data)
    assert list(survey.cards) == ["train", "test"]
    card = survey.cards["train"]
    assert (card.rows, card.looked_at, card.bad, card.images, card.repeated) == (4, 4, 0, 2, 1)
    assert card.questions_per_image.counts == {3: 1, 1: 1} and card.questions_per_image.mean == 2.0
    assert card.answer_words.counts == {2: 3, 3: 1}
    assert (card.answers, card.classes, card.sizes) == (3, 2, {(4, 3): 2})
    assert card.top_answers == {"a cat": 0.5, "because it is": 0.25, "a dog": 0.25}


class Sure(Pile):
    """No image can be in two of its splits, so a sample of it is enough."""

    disjoint_by_construction: ClassVar[bool] = True


def test_where_splits_are_disjoint_by_construction_the_card_is_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmft.data.survey.survey.SAMPLED_ROWS", 20)
    data = module(Sure(ROWS, {"train": 60, "test": 20}), val_rows=0)
    survey = survey_splits(data)
    card = survey.cards["train"]
    assert (card.rows, card.looked_at, card.answer_words.n, card.bad) == (60, 20, 20, 0)
    assert (survey.cards["test"].looked_at, survey.cards["test"].rows) == (20, 20)
    again = module(Sure(ROWS, {"train": 60, "test": 20}), val_rows=0)
    assert survey_splits(again).cards == survey.cards


@pytest.mark.parametrize(
    ("counts", "marks"),
    [({5: 1}, (5, 5, 5, 5)), ({1: 19, 7: 1}, (1, 1, 1, 7)), ({1: 18, 7: 2}, (1, 1, 7, 7)), ({}, (0, 0, 0, 0))],
)
def test_marks_of_a_spread(counts: Mapping[int, int], marks: tuple[int, ...]) -> None:
    summary = Spread(counts).to_dict()
    assert tuple(summary[name] for name in ("min", "median", "p95", "max")) == marks
    assert summary["n"] == sum(counts.values()) and summary["counts"] == {str(value): n for value, n in counts.items()}


# --- near-duplicates


def drawing(number: int, again: bool) -> PIL.Image.Image:
    levels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(levels).resize((96, 96), PIL.Image.Resampling.BICUBIC)
    return picture.resize((60, 60)) if again else picture


class Drawn(Pile):
    """Image n and n + 100 are one drawing at two sizes."""

    def to_sample(self, record: Record) -> Sample:
        image, question, answer, _ = self.rows[int(record["id"])]
        load = partial(drawing, image % 100, again=image >= 100)
        return Sample(record["id"], Prompt((Message("user", (Image(load, f"{image}.png"), question)),)), answer, ("a",))


def test_near_duplicates_are_counted_and_are_no_overlap() -> None:
    rows = [(1, "q", "a", ""), (2, "q", "a", ""), (101, "q", "a", ""), (103, "q", "a", ""), (101, "q2", "a", "")]
    data = module(Drawn(rows, {"train": 2, "val": 0, "test": 3}))
    survey = survey_splits(data)
    (pair,) = survey.near_duplicates["train", "test"]
    assert (pair.held_out.row_id, pair.held_out.name) == ("002", "101.png")
    assert (pair.other.row_id, pair.other.name) == ("000", "1.png")
    with pytest.raises(ConfigError, match="1 of 1 test rows show what train rows show"):
        survey_splits(module(Drawn([rows[0], rows[0]], {"train": 1, "val": 0, "test": 1})))


def test_near_duplicates_stay_together_where_that_is_asked() -> None:
    rows = [(image, "q", f"a{image}", "") for number in range(20) for image in (number, 100 + number)]
    apart, together = (module(Drawn(rows), group_near_duplicates=asked) for asked in (False, True))
    drawings = [
        {split: {rows[int(i)][0] % 100 for i in ids} for split, ids in d.ids.items()} for d in (apart, together)
    ]
    shared = [d["train"] & d["test"] | d["train"] & d["val"] | d["val"] & d["test"] for d in drawings]
    assert shared[0] and not shared[1]
    assert (apart.splits.largest_group, together.splits.largest_group) == (0, 2)
    for data, any_near in ((apart, True), (together, False)):
        assert any(survey_splits(data).near_duplicates.values()) == any_near


def test_a_declared_split_is_not_rearranged() -> None:
    with pytest.raises(ConfigError, match=r"data\.group_near_duplicates: pile declares its splits"):
        module(Drawn(ROWS[:4], {"train": 2, "val": 1, "test": 1}), group_near_duplicates=True)
