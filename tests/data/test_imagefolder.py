"""Images in class folders become questions; nothing in the folder is dropped silently."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.data.datasets.imagefolder import ImageFolder
from vlmft.sample import BadRowError, Message, Prompt, Sample

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "data/sports100"


def paint(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 6), (shade, 80, 160)).save(file)


def sample_of(dataset: ImageFolder, row_id: str) -> Sample:
    return dataset.to_sample(dataset.read(row_id))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for number, name in enumerate(["tom_cat/b.png", "tom_cat/a.JPG", "dog/1.png", "dog/more/2.png"]):
        paint(tmp_path / name, number)
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "dog" / "phone.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_a_stored_record_becomes_exactly_this_question(pets: Path) -> None:
    dataset = ImageFolder(path=str(pets))
    assert list(dataset.index()["train"]) == [f"imagefolder/train/{n:06d}" for n in range(5)]
    record = dataset.read("imagefolder/train/000003")
    assert record == {"id": "imagefolder/train/000003", "image": "tom_cat/a.JPG", "class": "tom_cat"}
    sample = dataset.to_sample(record)
    (image,) = sample.prompt.images
    asked = "What is in this image? Answer with one of: dog, tom cat."
    assert sample == Sample(
        id="imagefolder/train/000003",
        prompt=Prompt((Message("user", (image, asked)),)),
        answer="tom cat",
        references=("tom cat",),
        tags={"class": "tom_cat"},
        question="What is in this image?",
    )
    assert image.name == "tom_cat/a.JPG" and image.pixels.shape == (6, 8, 3)


def test_a_file_that_is_no_image_is_refused_by_name_and_not_left_out(pets: Path) -> None:
    dataset = ImageFolder(path=str(pets))
    files = [dataset.read(row_id)["image"] for row_id in dataset.index()["train"]]
    assert files == ["dog/1.png", "dog/more/2.png", "dog/phone.heic", "tom_cat/a.JPG", "tom_cat/b.png"]
    (image,) = sample_of(dataset, "imagefolder/train/000002").prompt.images
    with pytest.raises(BadRowError, match=r"phone\.heic"):
        _ = image.pixels


def test_splits_of_the_folder(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        paint(tmp_path / split / "cat" / "1.png", 1)
    dataset = ImageFolder(path=str(tmp_path), question_text="Which?")
    assert {split: len(ids) for split, ids in dataset.index().items()} == {"test": 1, "train": 1, "val": 1}
    sample = sample_of(dataset, "imagefolder/val/000000")
    assert (sample.prompt.images[0].name, sample.prompt.messages[0].text) == ("valid/cat/1.png", "Which?")


def test_many_classes_are_not_listed(tmp_path: Path) -> None:
    for number in range(21):
        paint(tmp_path / f"c{number}" / "1.png", number)
    sample = sample_of(ImageFolder(path=str(tmp_path)), "imagefolder/train/000000")
    assert sample.prompt.messages[0].text == "What is in this image?"


@pytest.mark.parametrize("as_file", [False, True])
def test_labels(pets: Path, as_file: bool) -> None:
    labels: Any = {"tom_cat": ["cat", "kitty"]}
    if as_file:
        (pets / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    dataset = ImageFolder(path=str(pets), labels="labels.json" if as_file else labels)
    sample = sample_of(dataset, "imagefolder/train/000003")
    assert (sample.answer, sample.references, sample.tags) == ("cat", ("cat", "kitty"), {"class": "tom_cat"})
    assert sample_of(dataset, "imagefolder/train/000000").references == ("dog",)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("where", [".", "train"])
def test_metadata_with_captions(tmp_path: Path, form: str, where: str) -> None:
    paint(tmp_path / where / "a.png", 1)
    text = {
        "csv": 'file_name,caption\na.png,"A cat, asleep"\n',
        "jsonl": '{"file_name":"a.png","caption":"A cat, asleep"}',
    }
    (tmp_path / where / f"metadata.{form}").write_text(text[form], encoding="utf-8")
    sample = sample_of(ImageFolder(path=str(tmp_path)), "imagefolder/train/000000")
    assert (sample.answer, sample.prompt.messages[0].text, sample.tags) == (
        "A cat, asleep",
        "What is in this image?",
        {},
    )
    assert sample.prompt.images[0].pixels.shape == (6, 8, 3)


def wrong_places() -> dict[str, tuple[Callable[[Path], str | None], str]]:
    return {
        "none": (lambda root: None, "Expected a folder of images, got none"),
        "file": (lambda root: str(root / "dog" / "1.png"), "name the folder itself"),
        "no classes": (lambda root: str(root / "dog" / "more"), "Expected images in class folders"),
    }


@pytest.mark.parametrize("place", wrong_places())
def test_a_wrong_place_is_one_line(pets: Path, place: str) -> None:
    path, words = wrong_places()[place]
    with pytest.raises(ConfigError, match=r"data\.path: Expected") as error:
        ImageFolder(path=path(pets)).index()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_travels_to_workers(pets: Path) -> None:
    dataset = ImageFolder(path=str(pets))
    before = sample_of(dataset, "imagefolder/train/000000")
    assert len(pickle.dumps(dataset)) < 2000
    assert sample_of(pickle.loads(pickle.dumps(dataset)), before.id).prompt.sha256 == before.prompt.sha256


# --- sports: a config of this dataset


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference data are not here")
def test_sports(compose: Any) -> None:
    from vlmft.data.make import make_dataset

    config = compose("data=sports", f"data.path={REFERENCE}")
    dataset = make_dataset(config.data)
    assert {split: len(ids) for split, ids in dataset.index().items()} == {"test": 100, "train": 200, "val": 100}
    samples = [dataset.to_sample(dataset.read(row_id)) for row_id in dataset.index()["test"]]
    canoe = next(sample for sample in samples if sample.tags["class"] == "canoe slamon")
    assert (canoe.answer, canoe.references) == ("canoe slalom", ("canoe slalom", "canoe slamon"))
    assert canoe.prompt.messages[0].text == "What sport is in this image?"
    assert len({sample.answer for sample in samples}) == 100
    known = {sample.tags["class"] for sample in samples}
    assert set(config.data.options["labels"]) <= known, "an alias of a folder that is not there"
