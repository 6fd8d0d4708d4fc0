"""What a source declares of its splits is used or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Check = Callable[..., None]
IMAGES = {f"{name}.png": red for red, name in enumerate("abcd", start=1)}


def row(n: int, **more: Any) -> dict[str, Any]:
    return {"image": f"{'abcd'[n]}.png", "question": "q", "answer": f"A{n}", **more}


def by_column(name: str, *cells: Any) -> dict[str, Any]:
    return {"t.jsonl": [row(n, **{name: cell}) for n, cell in enumerate(cells)], **IMAGES}


THREE = ["train: [1] q => A0", "val: [2] q => A1", "test: [3] q => A2"]


@pytest.mark.parametrize("name", "split Split SPLIT set subset Usage phase partition data_split stage".split())
@pytest.mark.parametrize("cells", [("train", "VALID", "Test"), ("training", "dev", "testing")])
def test_a_column_that_says_splits_divides(check: Check, name: str, cells: tuple[str, ...]) -> None:
    if name == "stage" and "dev" not in cells:
        cells = ("train", "val", "test")
    check(THREE, "columns", by_column(name, *cells), "t.jsonl")


COLUMNS: dict[str, tuple[dict[str, Any], str | list[str]]] = {
    "PublicTest": (by_column("Usage", "Training", "PublicTest"), ["train: [1] q => A0", "test: [2] q => A1"]),
    "unknown": (by_column("split", "a", "b"), "REFUSED data.options.split: ...got 'a' in row 0; set ...{a: train}..."),
    "partly unknown": (by_column("set", "train", "holdout"), "REFUSED ...got 'holdout' in row 1; ..."),
    "of another meaning": (
        by_column("set", "x", "y"),
        ["train: [1] q => A0", "train: [2] q => A1", "unread: set"],
    ),
    "empty": (by_column("split", "train", ""), "REFUSED ...got '' in row 1; ..."),
    "null": (by_column("split", "train", None), "REFUSED ...got None in row 1; ..."),
    "folds": (by_column("fold", 0, 1), ["train: [1] q => A0", "train: [2] q => A1", "unread: fold"]),
    "numbers": (by_column("split", 0, 1), "REFUSED ...got 0 in row 0; ..."),
    "flag": (by_column("is_train", 1, 0), "REFUSED ...'is_train' says splits ...split_names={1: train, 0: test}..."),
    "test alone": (by_column("split", "test"), "test: [1] q => A0"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_other_columns(check: Check, case: str) -> None:
    files, expected = COLUMNS[case]
    check(expected, "columns", files, "t.jsonl")


def test_a_flag_is_used_as_its_refusal_says(check: Check) -> None:
    expected = ["train: [1] q => A0", "test: [2] q => A1"]
    names = {1: "train", 0: "test"}
    check(expected, "columns", by_column("is_train", 1, 0), "t.jsonl", split="is_train", split_names=names)


def test_a_row_that_cannot_be_read_does_not_stop_the_division(check: Check) -> None:
    table = "image,question,answer,split\na.png,q,A0,train\nb.png,q\nc.png,q,A2,test\n"
    expected = ["train: [1] q => A0", "train: BAD Expected a cell for each column, got 2 fewer...", "test: [3] q => A2"]
    check(expected, "columns", {"t.csv": table, **IMAGES}, "t.csv")


FILES: dict[str, tuple[dict[str, Any], str | list[str]]] = {
    "names": ({"data_train.json": [row(0)], "data_dev.json": [row(1)], "X_TEST.json": [row(2)]}, THREE),
    "shards": (
        {"train-00000-of-00002.json": [row(0)], "train-00001-of-00002.json": [row(1)], "test-0.json": [row(2)]},
        ["train: [1] q => A0", "train: [2] q => A1", "test: [3] q => A2"],
    ),
    "no names": ({"p1.json": [row(0)], "p2.json": [row(1)]}, ["train: [1] q => A0", "train: [2] q => A1"]),
    "extra": ({"train.json": [row(0)], "extra.json": [row(1)]}, ["train: [1] q => A0", "note: not read...extra.json"]),
    "twice": (
        {"train.jsonl": [row(0)], "train.csv": "image,question,answer\na.png,q,A0\n"},
        "REFUSED data.path: Expected the rows once, got train.csv and train.jsonl...",
    ),
    "contradiction": (
        {"train.json": [row(0, split="test")], "test.json": [row(1, split="test")]},
        "REFUSED data: train.json...its row 0 says 'test'...fix one of them",
    ),
    "no answers": (
        {"train.csv": "image,question,answer\na.png,q,A0\n", "test.csv": "image,question\nb.png,q\n"},
        "REFUSED ...the column 'answer' in test.csv...split_names={test: none})",
    ),
    "JSON object": ({"all.json": {"train": [row(0)], "dev": [row(1)], "test": [row(2)]}}, THREE),
    "JSON object of others": ({"all.json": {"easy": [row(0)], "hard": [row(1)]}}, "REFUSED ...{easy: train}..."),
    "JSON object of one other": (
        {"all.json": {"train": [row(0)], "spare": [row(1)]}},
        "REFUSED ...got train, spare...{spare: none}...",
    ),
    "a wrapper of macOS": (
        {"wrap/train.json": [row(0)], "wrap/test.json": [row(1)], "__MACOSX/wrap/._train.json": b"\0"},
        ["train: [1] q => A0", "test: [2] q => A1", "note: images are taken from @..."],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_names_of_files(check: Check, case: str) -> None:
    files, expected = FILES[case]
    check(expected, "columns", {**files, **IMAGES})


def test_a_lone_file_named_test_is_noted(read: Callable[..., list[str]], tmp_path: Path) -> None:
    from vlmft.data.datasets.columns import Columns

    assert read("columns", {"test.json": [row(0)], **IMAGES}) == ["train: [1] q => A0"]
    assert "its name says test" in Columns(path=str(tmp_path / "mine")).describe().splits["train"]


CARD = (
    "---\nconfigs:\n- config_name: en\n  data_files:\n"
    "  - split: train\n    path: a.json\n  - split: test\n    path: b.json\n"
)
CARDS: dict[str, tuple[str, str | list[str], dict[str, Any]]] = {
    "splits": (f"{CARD}---\n", ["train: [1] q => A0", "test: [2] q => A1"], {}),
    "windows": (f"{CARD}---\n".replace("\n", "\r\n"), ["train: [1] q => A0", "test: [2] q => A1"], {}),
    "several": (
        f"{CARD}- config_name: de\n  data_files: c.json\n---\n",
        "REFUSED data.options.subset: ...en, de...",
        {},
    ),
    "named": (f"{CARD}- config_name: de\n  data_files: c.json\n---\n", "train: [3] q => A2", {"subset": "de"}),
    "default": (
        f"{CARD}- config_name: de\n  default: true\n  data_files: {{train: [c.json]}}\n---\n",
        "train: [3] q => A2",
        {},
    ),
    "missing": (
        "---\nconfigs:\n- data_files: data/*.parquet\n---\n",
        "REFUSED ...README.md: ...got none of them...",
        {},
    ),
}


@pytest.mark.parametrize("case", CARDS)
def test_the_card_of_a_cloned_repository(check: Check, case: str) -> None:
    card, expected, options = CARDS[case]
    files = {"README.md": card, "a.json": [row(0)], "b.json": [row(1)], "c.json": [row(2)], **IMAGES}
    check(expected, "columns", files, **options)


@pytest.mark.parametrize(
    ("first", "second"), [("train", "val"), ("img/train2017", "img/val2017"), ("x/Train", "x/dev")]
)
def test_the_folders_of_images_divide_one_table(check: Check, first: str, second: str) -> None:
    rows = [row(0, image=f"{first}/a.png"), row(1, image=f"{second}/b.png")]
    expected = ["train: [1] q => A0", "val: [2] q => A1"]
    check(expected, "columns", {"t.jsonl": rows, f"{first}/a.png": 1, f"{second}/b.png": 2}, "t.jsonl")


def test_a_folder_named_train_may_be_a_class(check: Check) -> None:
    rows = [row(0, image="train/a.png"), row(1, image="bus/b.png")]
    expected = ["train: [1] q => A0", "train: [2] q => A1"]
    check(expected, "columns", {"t.jsonl": rows, "train/a.png": 1, "bus/b.png": 2}, "t.jsonl")
