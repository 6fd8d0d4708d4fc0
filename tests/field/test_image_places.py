"""Where the images of a table are, and in what form: found, reported, or refused with what to do."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import PIL.Image
import pytest

Check = Callable[..., None]
ONE = "train: [1] q => x"
BOTH = ["train: [1] q => x", "train: [2] q => x"]


def rows(*images: Any, key: str = "image") -> list[dict[str, Any]]:
    return [{key: image, "question": "q", "answer": "x"} for image in images]


NAMES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str | list[str], dict[str, Any]]] = {
    "dots and slashes": (
        rows("./i/a.png", "i//b.png"),
        {"i/a.png": 1, "i/b.png": 2},
        BOTH,
        {},
    ),
    "backslash": (rows("i\\a.png"), {"i/a.png": 1}, ONE, {}),
    "percent": (rows("my%20a.png"), {"my a.png": 1}, ONE, {}),
    "percent in the name": (rows("my%20a.png"), {"my%20a.png": 1, "my a.png": 2}, ONE, {}),
    "blanks around": (rows(" a.png "), {"a.png": 1}, ONE, {}),
    "no suffix": (rows("a", "b"), {"a.png": 1, "b.png": 2}, BOTH, {}),
    "two suffixes": (rows("a"), {"a.png": 1, "a.jpg": 2}, "train: BAD Expected one image of that name...", {}),
    "dots and no suffix": (rows("2021.01.a"), {"2021.01.a.png": 1}, ONE, {}),
    "wrong suffix": (rows("a.jpg"), {"a.png": 1}, "train: BAD ...there is 'a.png': fix the suffix", {}),
    "case": (rows("A.PNG"), {"a.png": 1}, "train: BAD ...there is 'a.png', which differs in case...", {}),
    "two cases": (rows("a.png", "A.png"), {"a.png": 1, "A.png": 2}, BOTH, {}),
    "address": (rows("https://x.org/a.png"), {}, "train: BAD ...got the address...download it...", {}),
    "missing": (
        rows("zz.png", "a.png"),
        {"a.png": 1},
        ["train: BAD Expected an image file 'zz.png' in @, got none...", ONE],
        {},
    ),
    "another machine": (
        rows("/home/me/data/i/a.png", "/home/me/data/i/b.png"),
        {"i/a.png": 1, "i/b.png": 2},
        [*BOTH, "note: images are taken from @...without the 'home/me/data/'..."],
        {},
    ),
    "another machine, named": (rows("/home/me/data/i/a.png"), {"k/a.png": 1, "a.png": 9}, ONE, {"images": "@/k"}),
    "Windows, named": (rows("C:\\Users\\me\\i\\a.png"), {"k/a.png": 1, "a.png": 9}, ONE, {"images": "@/k"}),
    "folder, named": (rows("i/a.png"), {"k/a.png": 1}, ONE, {"images": "k"}),
    "root": (rows("/i/a.png"), {"i/a.png": 1}, ONE, {}),
    "no such folder": (
        rows("a.png"),
        {"a.png": 1},
        "REFUSED data.options.images: Expected a folder...",
        {"images": "k"},
    ),
    "two folders": (
        rows("a.png"),
        {"x/a.png": 1, "y/a.png": 2},
        "REFUSED data.options.images: ...different files have the images' names in @/x and in @/y; name the folder",
        {},
    ),
    "two folders, named": (rows("a.png"), {"x/a.png": 2, "y/a.png": 1}, ONE, {"images": "y"}),
    "halves": (rows("a.png", "b.png"), {"x/a.png": 1, "y/b.png": 2}, BOTH, {}),
    "other roots": (rows("coco/a.png", "vg/b.png"), {"i/coco/a.png": 1, "i/vg/b.png": 2}, BOTH, {}),
    "COCO": (
        rows(9, 25, key="image_id"),
        {"train2014/COCO_train2014_000000000009.jpg": 1, "train2014/COCO_train2014_000000000025.jpg": 2},
        BOTH,
        {},
    ),
    "COCO, one missing": (
        rows("9", "26", key="image_id"),
        {"t/COCO_000000000009.jpg": 1},
        [ONE, "train: BAD Expected an image whose name ends in 26 in @/t, got none..."],
        {},
    ),
    "COCO, two folders": (
        rows(9, 7, key="image_id"),
        {"x/9.jpg": 1, "y/7.jpg": 2},
        "REFUSED data.options.images...",
        {},
    ),
    "Kaggle": (rows("a", "b", key="id"), {"train/a.jpg": 1, "train/b.jpg": 2}, BOTH, {}),
    "Kaggle, named": (rows("a", "b", key="id"), {"train/a.jpg": 1, "train/b.jpg": 2}, BOTH, {"image": "id"}),
    "none, one question": (
        [{"label": "x", "note": "y"}],
        {},
        "REFUSED data.options.image: ...every row would ask the same question without an image...",
        {"question_text": "q"},
    ),
    "by look": (rows("a.png", "b.png", key="foo"), {"a.png": 1, "b.png": 2}, BOTH, {}),
    "pair": (
        [{"before": "a.png", "after": "b.png", "question": "q", "answer": "x"}],
        {"a.png": 1, "b.png": 2},
        "REFUSED data.options.image: ...got before and after; say which...",
        {},
    ),
    "second": (
        [{"image": "a.png", "image2": "b.png", "question": "q", "answer": "x"}],
        {"a.png": 1, "b.png": 2},
        [ONE, "unread: image2", "note: more columns look like images and are not read: image2"],
        {},
    ),
    "object": (rows({"path": "a.png"}, {"filename": "b.png"}), {"a.png": 1, "b.png": 2}, BOTH, {}),
    "other object": (rows({"width": 3}), {}, "train: BAD ...got an object of width...", {}),
    "empty": (rows("", None, "a.png"), {"a.png": 1}, ["train: BAD ...", "train: BAD ...", ONE], {}),
    "list in a text": (rows("['a.png', 'b.png']"), {"a.png": 1, "b.png": 2}, "train: [1] [2] q => x", {}),
    "list by bars": (rows("a.png|b.png"), {"a.png": 1, "b.png": 2}, "train: [1] [2] q => x", {}),
    "comma in the name": (rows("a,1.png"), {"a,1.png": 1}, ONE, {}),
}


@pytest.mark.parametrize("case", NAMES)
def test_names(check: Check, case: str) -> None:
    table, files, expected, options = NAMES[case]
    check(expected, "columns", {"t.jsonl": table, **files}, "t.jsonl", **options)


@pytest.mark.parametrize("split", ["train", "test"])
def test_folders_of_splits_with_the_same_names(check: Check, split: str) -> None:
    tables = {"ann/train.json": rows("a.png"), "ann/test.json": rows("a.png")}
    expected = ["train: [1] q => x", "test: [7] q => x"]
    check(expected, "columns", {**tables, "i/train/a.png": 1, "i/test/a.png": 7})


def outside(root: Path, image: Any) -> Path:
    path = root.parent / "other/a.png"
    path.parent.mkdir()
    PIL.Image.new("RGB", (8, 6), (1, 80, 160)).save(path)
    (root / "t.jsonl").write_text(json.dumps(image(str(path))), encoding="utf-8")
    return path


def openai(path: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": f"file://{quote(path)}"}}, {"type": "text", "text": "q"}]
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]}


def sharegpt(path: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "x"}]
    return {"conversations": turns, "images": [f"file://{path}"]}


def column(path: str) -> dict[str, Any]:
    return rows(path)[0]


def column_uri(path: str) -> dict[str, Any]:
    return rows(f"file://localhost{path}")[0]


@pytest.mark.parametrize("form", [openai, sharegpt, column, column_uri], ids=lambda form: form.__name__)
def test_a_path_out_of_the_data_folder(read: Callable[..., list[str]], tmp_path: Path, form: Any) -> None:
    kind = "columns" if form in (column, column_uri) else "messages"
    (found,) = read(kind, lambda root: outside(root, form), "t.jsonl")
    assert "BAD Expected an image path below the data folder @" in found and "set data.options.images" in found


@pytest.mark.parametrize("form", [openai, sharegpt, column, column_uri], ids=lambda form: form.__name__)
def test_a_path_in_the_named_folder(read: Callable[..., list[str]], tmp_path: Path, form: Any) -> None:
    kind = "columns" if form in (column, column_uri) else "messages"
    assert read(kind, lambda root: outside(root, form), "t.jsonl", images=str(tmp_path / "other")) == [ONE]


def test_links(read: Callable[..., list[str]], tmp_path: Path) -> None:
    def make(root: Path) -> None:
        outside(root, lambda path: rows("l.png")[0])
        (root / "l.png").symlink_to(root.parent / "other/a.png")

    (found,) = read("columns", make, "t.jsonl")
    assert "BAD Expected an image inside @, got a link out of it" in found


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("data:image/png;base64,{}", ONE),
        ("DATA:IMAGE/PNG;BASE64,{}", ONE),
        ("data:image/png;charset=utf-8;base64,{}", ONE),
        ("data:image/png;base64, {}", ONE),
        ("{}", ONE),
        ("data:image/png;base64,@@", "train: BAD Expected base64..."),
        ("b'{}'", "train: BAD Expected an image's path or base64, got ..., which is neither..."),
        ("{}!", "train: BAD Expected an image's path or base64, got ..., which is neither..."),
    ],
)
def test_base64(check: Check, encoded: Callable[..., str], image: str, expected: str) -> None:
    check(expected, "columns", {"t.jsonl": rows(image.format(encoded(1)))}, "t.jsonl")


def test_base64_of_other_forms(check: Check, encoded: Callable[..., str]) -> None:
    percent = encoded(2).replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    wrapped = "\n".join(encoded(3)[n : n + 40] for n in range(0, 200, 40))
    table = rows(
        f"data:image/png;base64,{percent}", wrapped, encoded(4, "GIF"), encoded(5, "BMP"), encoded(6).rstrip("=")
    )
    expected = [f"train: [{red}] q => x" for red in (2, 3, 4, 5, 6)]
    check(expected, "columns", {"t.jsonl": [{**row, "foo": row.pop("image")} for row in table]}, "t.jsonl")


MARKS = "<image_1> <image1> <|image_1|> <IMAGE> <image/> <ImageHere> <im_start> <|vision_start|> <video>".split()


@pytest.mark.parametrize("mark", [*MARKS, "<image 1>", "< image >", "<image></image>", "<img>a.png</img>"])
def test_marks_of_other_formats_are_not_learned_as_text(read: Callable[..., list[str]], mark: str) -> None:
    table = [{"image": "a.png", "question": f"{mark} q", "answer": "x"}]
    (found,) = read("columns", {"t.jsonl": table, "a.png": 1}, "t.jsonl")
    assert found.startswith("train: BAD Expected") and "in a question" in found


@pytest.mark.parametrize("text", ["what does <img src='x.png'> do?", "is 1 <image count?", "<imagine> it"])
def test_other_brackets_are_text(check: Check, text: str) -> None:
    table = [{"image": "a.png", "question": text, "answer": "<image>"}]
    check(f"train: [1] {text} => <image>", "columns", {"t.jsonl": table, "a.png": 1}, "t.jsonl")


MORE: dict[str, tuple[dict[str, Any], str | list[str]]] = {
    "decomposed letters": ({"t.jsonl": rows("é.png"), unicodedata.normalize("NFD", "é.png"): 1}, ONE),
    "GQA": ({"t.jsonl": rows("a", key="imageId"), "i/a.jpg": 1}, ONE),
    "numbers of rows": ({"t.jsonl": rows(1, key="id"), "i/1.png": 9}, "train: q => x"),
    "nearest to the table": (
        {
            "train/t.json": rows("a.png"),
            "train/i/a.png": 1,
            "test/t.json": rows("a.png"),
            "test/i/a.png": 2,
            "a.png": 9,
        },
        [ONE, "test: [2] q => x"],
    ),
    "the whole name": ({"t.jsonl": rows("sub/a.png"), "i/sub/a.png": 1, "a.png": 9}, ONE),
}


@pytest.mark.parametrize("case", MORE)
def test_more_names(check: Check, case: str) -> None:
    files, expected = MORE[case]
    check(expected, "columns", files)


@pytest.mark.parametrize("address", ["file:a#1.png", "file://a#1.png", "file:///@/a%231.png", "FILE:///@/a%231.png"])
def test_addresses_of_files(check: Check, tmp_path: Path, address: str) -> None:
    row = rows(address.replace("/@", str(tmp_path / "mine")))
    check(ONE, "columns", {"t.jsonl": row, "a#1.png": 1}, "t.jsonl")


SIBLINGS: dict[str, tuple[dict[str, int | str], str]] = {
    "images": ({"images/a.png": 1}, ONE),
    "of another table": ({"other/images/a.png": 9, "other/t.csv": "image\n"}, "train: BAD Expected an image file..."),
    "of a table in a folder": (
        {"other/i/a.png": 9, "other/t/t.csv": "image\n"},
        "train: BAD Expected an image file...",
    ),
    "two": ({"x/a.png": 8, "y/a.png": 9}, "train: BAD Expected an image file..."),
}


@pytest.mark.parametrize("case", SIBLINGS)
def test_images_beside_the_folder_of_a_single_file(check: Check, case: str) -> None:
    files, expected = SIBLINGS[case]

    def make(root: Path) -> None:
        (root / "t.jsonl").write_text(json.dumps(rows("a.png")[0]), encoding="utf-8")
        for name, red in files.items():
            place = root.parent / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(red, int):
                PIL.Image.new("RGB", (8, 6), (red, 80, 160)).save(place)
            else:
                place.write_text(red, encoding="utf-8")

    check(expected, "columns", make, "t.jsonl")
