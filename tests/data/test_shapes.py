"""The counting task: the answer is what the picture shows, and no picture is in two splits."""

from __future__ import annotations

import pickle
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vlmft.data.datasets.scenes import id_mask
from vlmft.data.datasets.shapes import FIRST_SCENE, MAX_ROWS, QUESTION, Shapes
from vlmft.data.splits import all_ids
from vlmft.data.survey.facts import Facts, survey
from vlmft.sample import SPLITS, BadRowError, Sample


def samples(dataset: Shapes) -> dict[str, list[Sample]]:
    return {split: [dataset.to_sample(dataset.read(row)) for row in rows] for split, rows in dataset.index().items()}


@pytest.fixture(scope="module")
def small() -> Shapes:
    return Shapes(train_rows=120, val_rows=60, test_rows=60)


def test_default_index() -> None:
    index = Shapes().index()
    assert {split: len(rows) for split, rows in index.items()} == {"train": 6_000, "val": 200, "test": 500}
    assert index["train"][12] == "shapes/A/train/000012"
    assert len({row for rows in index.values() for row in rows}) == 6_700


def test_sample_form(small: Shapes) -> None:
    sample = small.to_sample(small.read("shapes/A/train/000012"))
    (message,) = sample.prompt.messages
    image, question = message.content
    assert message.role == "user" and question == QUESTION == "How many items are there in the image?"
    assert sample.prompt.images == (image,)
    assert isinstance(sample.prompt.images[0].load, partial)
    assert sample.prompt.images[0].name == "scene A/12"
    assert sample.references == (sample.answer,) and sample.tags == {"count": sample.answer}


def test_answer_is_the_number_of_objects_in_the_mask(small: Shapes) -> None:
    rows = small.index()["train"]
    for row in rows:
        record = small.read(row)
        mask = id_mask(record["scene"])
        assert small.to_sample(record).answer == str(len(np.unique(mask[mask > 0])))
    assert len(rows) == 120


def test_picture_is_of_the_scene_that_was_counted(small: Shapes) -> None:
    record = small.read("shapes/A/val/000003")
    image = small.to_sample(record).prompt.images[0]
    assert isinstance(image.load, partial) and image.load.args == (record["scene"],)
    assert image.pixels.shape == (96, 96, 3) and image.pixels.dtype == np.uint8


def test_splits_share_no_image(small: Shapes) -> None:
    by_split = {split: {sample.group for sample in found} for split, found in samples(small).items()}
    assert [len(by_split[split]) for split in SPLITS] == [120, 60, 60]
    assert len(set.union(*by_split.values())) == 240


def test_scene_ranges_cannot_meet() -> None:
    starts = sorted(FIRST_SCENE[split] for split in SPLITS)
    assert all(later - earlier >= MAX_ROWS for earlier, later in pairwise(starts))


def test_counts_stay_in_range_and_reach_both_ends() -> None:
    dataset = Shapes(min_objects=2, max_objects=5, train_rows=100, val_rows=0, test_rows=0)
    assert set(Counter(sample.answer for sample in samples(dataset)["train"])) == {"2", "3", "4", "5"}


def test_options_change_the_scene() -> None:
    def first(dataset: Shapes) -> str:
        return dataset.to_sample(dataset.read(dataset.index()["train"][0])).group

    assert (
        len({first(Shapes()), first(Shapes(seed=1)), first(Shapes(condition="B")), first(Shapes(image_size=64))}) == 4
    )


def test_more_rows_keep_the_earlier_ones() -> None:
    few, many = Shapes(train_rows=10), Shapes(train_rows=20, val_rows=7)
    assert few.read("shapes/A/train/000009") == many.read("shapes/A/train/000009")


def test_a_second_start_knows_the_rows_without_drawing_a_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path))
    read: list[str] = []

    def facts(**options: int) -> Facts:
        dataset = Shapes(**{"train_rows": 9, "val_rows": 4, "test_rows": 3, **options})  # type: ignore[arg-type]

        def sample_of(row_id: str) -> Sample:
            read.append(row_id)
            return dataset.to_sample(dataset.read(row_id))

        return survey(dataset, all_ids(dataset.index()), sample_of)

    first, n_first = facts(), len(read)
    again = facts()
    assert n_first == len(read) == 16
    assert (again.rows == first.rows).all() and (again.contents == first.contents).all()
    others = facts(seed=1)
    assert len(read) == 32 and not set(others.contents) & set(first.contents)


def test_pickles(small: Shapes) -> None:
    assert len(pickle.dumps(small)) < 1000
    copy = pickle.loads(pickle.dumps(small))
    sample = small.to_sample(small.read("shapes/A/test/000005"))
    again = pickle.loads(pickle.dumps(copy.to_sample(copy.read("shapes/A/test/000005"))))
    assert again.group == sample.group and again.answer == sample.answer


@pytest.mark.parametrize(
    "row",
    ["shapes/A/train/000120", "shapes/B/train/000000", "shapes/A/train/12", "shapes/A/dev/000001", "000001", ""],
)
def test_unknown_row_is_a_bad_row(small: Shapes, row: str) -> None:
    with pytest.raises(BadRowError, match=r"Expected a row id such as 'shapes/A/train/000000', got"):
        small.read(row)


@pytest.mark.parametrize("options", [{"min_objects": 0}, {"min_objects": 8, "max_objects": 7}, {"max_objects": 13}])
def test_impossible_counts_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="Expected 1 <= min_objects <= max_objects <= 12, got"):
        Shapes(**options)  # type: ignore[arg-type]


def test_other_invalid_options_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected condition 'A' or 'B', got 'C'"):
        Shapes(condition="C")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected image_size >= 48 pixels, got 20"):
        Shapes(image_size=20)
    with pytest.raises(ValueError, match="Expected seed >= 0, got -1"):
        Shapes(seed=-1)
    with pytest.raises(ValueError, match=r"Expected val_rows in 0\.\.1000000, got -5"):
        Shapes(val_rows=-5)


def test_what_draws_another_picture_is_another_identity() -> None:
    """The features of an image are found by it: two datasets that draw other scenes must not meet."""

    class Other(Shapes):
        name = "others"

    made = [Shapes(), Shapes(seed=1), Shapes(condition="B"), Shapes(min_objects=4), Shapes(image_size=64), Other()]
    images = []
    for dataset in made:
        row_id = dataset.index()["train"][0]
        images += dataset.to_sample(dataset.read(row_id)).prompt.images
    assert len({image.identity for image in images}) == len(made) and len({image.sha256 for image in images}) >= 5
    again = Shapes().to_sample(Shapes().read("shapes/A/train/000000")).prompt.images[0]
    assert again.identity == images[0].identity and again.sha256 == images[0].sha256
