"""Folders of images: classes, splits in any spelling, captions beside the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Check = Callable[..., None]
ASK = {"question_text": "q"}


def lines(**answers: list[str]) -> list[str]:
    return [f"{split}: {text}" for split, texts in answers.items() for text in texts]


def shown(*reds_and_names: tuple[int, str]) -> list[str]:
    return [f"[{red}] q => {name}" for red, name in reds_and_names]


def tree(*folders: str) -> dict[str, Any]:
    """One picture in each folder, its red counting from 1."""
    return {f"{folder}/x.png": red for red, folder in enumerate(folders, start=1)}


TWO = lines(train=shown((1, "cat"), (2, "dog")), test=shown((3, "cat"), (4, "dog")))
LAYOUTS: dict[str, tuple[dict[str, Any], str | list[str]]] = {
    **{
        f"{train} {test}": (tree(f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog"), TWO)
        for train, test in (
            ("Train", "TEST"),
            ("train_images", "test_images"),
            ("training_set", "test_set"),
            ("seg_train/seg_train", "seg_test/seg_test"),
            ("my set/Train", "my set/Test"),
            ("TRAINING", "Testing"),
        )
    },
    "macOS": (
        {
            **tree("w/Train/cat", "w/Train/dog", "w/Test/cat", "w/Test/dog"),
            "__MACOSX/w/Train/cat/._x.png": b"",
            "w/.DS_Store": b"",
        },
        TWO,
    ),
    "a file beside": ({**tree("w/train/cat", "w/train/dog", "w/test/cat", "w/test/dog"), "LICENSE": ""}, TWO),
    "classes above": (
        tree("cat/train", "dog/train", "cat/test", "dog/test"),
        TWO,
    ),
    "val and test": (
        tree("val/cat", "val/dog", "test/cat", "test/dog"),
        lines(val=shown((1, "cat"), (2, "dog")), test=shown((3, "cat"), (4, "dog"))),
    ),
    "a class called train": (tree("bus", "train"), lines(train=shown((1, "bus"), (2, "train")))),
    "in splits": (
        tree("train/bus", "train/train", "test/bus", "test/train"),
        lines(train=shown((1, "bus"), (2, "train")), test=shown((3, "bus"), (4, "train"))),
    ),
    "words in names": (
        tree("beaker", "test tube", "training shoe"),
        lines(train=shown((1, "beaker"), (2, "test tube"), (3, "training shoe"))),
    ),
    "letters": (tree("dr. who.", "кошка", "猫"), lines(train=shown((1, "dr. who."), (2, "кошка"), (3, "猫")))),
    "one level down": (tree("pets/train/cat", "pets/train/dog"), lines(train=shown((1, "cat"), (2, "dog")))),
    "images below": (tree("cat/images", "dog/images"), [*lines(train=shown((1, "cat"), (2, "dog")))]),
    "loose": (
        {**tree("cat", "dog"), "y.png": 9},
        [*lines(train=shown((1, "cat"), (2, "dog"))), "note: 1 images lie in no class folder and are not read"],
    ),
    "two levels": (
        tree("animals/cat", "plants/oak"),
        [
            *lines(train=shown((1, "animals"), (2, "plants"))),
            "note: folders within class folders are not read as classes: cat, oak",
        ],
    ),
    "other classes": (
        tree("train/cat", "train/dog", "test/Cat"),
        [
            *lines(train=shown((1, "cat"), (2, "dog")), test=shown((3, "Cat"))),
            "note: classes of test that train does not have: Cat",
        ],
    ),
    "folds": (
        tree("f1/cat", "f1/dog", "f2/cat", "f2/dog"),
        "REFUSED ...got cat, dog in f1 and in f2; ...{f1: train, f2: val}...",
    ),
    "no classes in test": (
        {**tree("train/cat", "train/dog"), "test/1.png": 3},
        "REFUSED ...in @/test, got images; ...{test: none})",
    ),
    "no classes below test": (
        tree("train/cat", "train/dog", "test/test"),
        "REFUSED ...Expected a folder for each class in @, got test...",
    ),
    "another folder": (
        tree("train/cat", "train/dog", "test/cat", "extra/dog"),
        "REFUSED ...beside extra; ...{extra: none}",
    ),
    "YOLO": ({**tree("train/images", "valid/images"), "train/labels/x.txt": "0 0.5"}, "REFUSED ...got images..."),
    "masks": (tree("images", "masks"), "REFUSED ...got images, masks..."),
    "VOC": ({**tree("JPEGImages"), "Annotations/x.xml": "<a/>"}, "REFUSED ...got JPEGImages..."),
    "images alone": ({"a.png": 1}, "REFUSED ...got none below '@'..."),
    "a table": (
        {"a.png": 1, "captions.csv": "image,caption\n"},
        "REFUSED ...there is captions.csv: set data=columns...",
    ),
    "a zip": ({"data.zip": b"PK"}, "REFUSED ...there is data.zip: unpack it"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_folders(check: Check, case: str) -> None:
    files, expected = LAYOUTS[case]
    check(expected, "imagefolder", files, **ASK)


def test_split_names_make_splits_of_folders(check: Check) -> None:
    files = tree("f1/cat", "f1/dog", "f2/cat", "f2/dog")
    check(TWO, "imagefolder", files, split_names={"f1": "train", "f2": "test"}, **ASK)


def test_other_files_are_rows_that_cannot_be_used(tmp_path: Path) -> None:
    from vlmft.data.datasets.imagefolder import ImageFolder

    for name in ("cat/clip.mp4", "dog/Thumbs.db", "dog/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert len(ImageFolder(path=str(tmp_path)).index()["train"]) == 1


def test_a_zip_itself(check: Check) -> None:
    check(
        "REFUSED data.path: Expected a folder of images, got '@/d.zip'; unpack it",
        "imagefolder",
        {"d.zip": b"PK"},
        "d.zip",
    )


CAPTIONS: dict[str, tuple[dict[str, Any], str | list[str]]] = {
    "txt": ({"a.txt": "A cat\n", "b.txt": "A dog"}, ["[1] q => A cat", "[2] q => A dog"]),
    "caption": ({"a.caption": "A cat", "b.caption": "A dog"}, ["[1] q => A cat", "[2] q => A dog"]),
    "json": ({"a.json": {"caption": "A cat"}, "b.json": {"caption": "A dog"}}, ["[1] q => A cat", "[2] q => A dog"]),
    "whole name": ({"a.png.txt": "A cat", "b.png.json": {"caption": "A dog"}}, ["[1] q => A cat", "[2] q => A dog"]),
    "half": (
        {"a.txt": "A cat"},
        ["[1] q => A cat", "BAD Expected a caption, got no file such as b.txt beside b.png..."],
    ),
    "empty": (
        {"a.txt": "A cat", "b.txt": " "},
        ["[1] q => A cat", "BAD Expected a caption, got an empty file b.txt..."],
    ),
    "broken": ({"a.txt": "A cat", "b.json": "{x"}, ["[1] q => A cat", "BAD ...b.json that is not JSON..."]),
    "both": (
        {"a.txt": "cat", "a.caption": "A cat", "b.txt": "dog"},
        ["[1] q => cat", "[2] q => dog", "note: 1 images have several text files, such as a.png; .txt is read"],
    ),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_captions_beside_the_images(check: Check, case: str) -> None:
    texts, answers = CAPTIONS[case]
    expected = [text if text.startswith("note") else f"train: {text}" for text in answers]
    check(expected, "imagefolder", {"a.png": 1, "b.png": 2, **texts}, **ASK)


def test_captions_in_folders_of_splits(check: Check) -> None:
    files = {"train/a.png": 1, "train/a.txt": "A cat", "Test/b.png": 2, "Test/b.txt": "A dog"}
    check(["train: [1] q => A cat", "test: [2] q => A dog"], "imagefolder", files, **ASK)


@pytest.mark.parametrize("texts", [True, False])
def test_numbers_that_kohya_reads_as_repeats_are_noted(read: Callable[..., list[str]], texts: bool) -> None:
    files = {"10_dog/a.png": 1, "5_cat/b.png": 2}
    files |= {"10_dog/a.txt": "A dog", "5_cat/b.txt": "A cat"} if texts else {}  # type: ignore[dict-item]
    assert any(line.startswith("note: ") and "10_dog" in line for line in read("imagefolder", files, **ASK))


TABLES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "in each split": (
        {
            "train/metadata.csv": "file_name,caption\na.png,A cat\n",
            "test/metadata.csv": "file_name,caption\nb.png,A dog\n",
        },
        ["train: [1] q => A cat", "test: [2] q => A dog"],
    ),
    "above": (
        {
            "metadata.jsonl": [
                {"file_name": "train/a.png", "text": "A cat"},
                {"file_name": "test/b.png", "text": "A dog"},
            ]
        },
        ["train: [1] q => A cat", "test: [2] q => A dog"],
    ),
    "above, capital": ({"Metadata.csv": "file_name,text\ntrain/a.png,A cat\n"}, ["train: [1] q => A cat"]),
}


@pytest.mark.parametrize("case", TABLES)
def test_metadata(check: Check, case: str) -> None:
    tables, expected = TABLES[case]
    check(expected, "imagefolder", {"train/a.png": 1, "test/b.png": 2, **tables}, **ASK)
