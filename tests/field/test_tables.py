"""CSV, Excel, saved datasets and tar files as programs write them."""

from __future__ import annotations

import datetime
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

Check = Callable[..., None]
HEAD = "image,question,answer\n"
IMAGES = {"a.png": 1, "b.png": 2}
ONE, BOTH = "train: [1] q => x", ["train: [1] q => x", "train: [2] q => y"]
ROWS = "a.png,q,x\nb.png,q,y\n"

READ: dict[str, tuple[str, str | list[str]]] = {
    "comma": (HEAD + ROWS, BOTH),
    "semicolon": ((HEAD + ROWS).replace(",", ";"), BOTH),
    "tab": ((HEAD + ROWS).replace(",", "\t"), BOTH),
    "bar": ((HEAD + ROWS).replace(",", "|"), BOTH),
    "decimal comma": ("image;question;answer\na.png;q;1,5\n", "train: [1] q => 1,5"),
    "sep=": ("sep=;\n" + (HEAD + ROWS).replace(",", ";"), BOTH),
    "SEP=": ("\ufeffSEP=,\r\n" + (HEAD + ROWS).replace("\n", "\r\n"), BOTH),
    "CR": ((HEAD + ROWS).replace("\n", "\r"), BOTH),
    "blank lines": ("\n\n" + HEAD + "\n".join(ROWS.split("\n")) + ",,\n\n", BOTH),
    "quoted": (HEAD + 'a.png,"q, r\ns","x ""y"""\n', 'train: [1] q, r\ns => x "y"'),
    "inch": (HEAD + 'a.png,the 5" disk,x\n', 'train: [1] the 5" disk => x'),
    "ends": ("image,question,answer,\na.png,q,x,\n", ONE),
    "index": (",image,question,answer\n0,a.png,q,x\n", ONE),
    "heads": (' Image ,"QUESTION",Answer\na.png,q,x\n', ONE),
    "long": (HEAD + f"a.png,q,{'w' * 140_000}\n", f"train: [1] q => {'w' * 140_000}"),
    "one row": (
        HEAD + "a.png,q,x,y\nb.png,q,y\nb.png,q\n",
        ["train: BAD ...1 more...", BOTH[1], "train: BAD ...1 fewer..."],
    ),
    "zero byte": (HEAD + "a.png,q,x\0y\nb.png,q,y\n", ["train: BAD ...zero byte...", BOTH[1]]),
    "headless": (ROWS, "REFUSED @/t.csv: Expected a header line, got data (a.png..."),
    "title": ("My table,,\n" + HEAD + ROWS, "REFUSED @/t.csv: Expected a header of 3 names, got 'My table' alone..."),
    "comment": (
        "# made by me\n" + HEAD + ROWS,
        "REFUSED @/t.csv: Expected a header of 3 names, got '# made...delete...",
    ),
    "unclosed": (
        HEAD + 'a.png,"q,x\nb.png,q,y\na.png,q,x\n',
        "REFUSED @/t.csv: Expected a quote to be closed...row 1...",
    ),
    "header": (HEAD, "REFUSED data.path: Expected rows with named fields in t.csv..., got none"),
    "empty": ("", "REFUSED @/t.csv: Expected a header line and rows, got an empty file"),
    "twice": ("image,question,answer,answer\na.png,q,x,y\n", "REFUSED ...several called answer..."),
    "JSON": ('{"image": "a.png"}\n', "REFUSED @/t.csv: ...JSON; give it the suffix .jsonl"),
    "HTML": ("<html>", "REFUSED @/t.csv: ...an HTML page..."),
    "Excel": ("PK\x03\x04", "REFUSED @/t.csv: ...give it the suffix .xlsx..."),
    "LFS": ("version https://git-lfs.github.com/spec/v1\n", "REFUSED @/t.csv: ...run git lfs pull"),
}


@pytest.mark.parametrize("case", READ)
def test_csv(check: Check, case: str) -> None:
    text, expected = READ[case]
    check(expected, "columns", {"t.csv": text, **IMAGES}, "t.csv")


def test_quotes_that_c_escapes_are_noted(read: Callable[..., list[str]], tmp_path: Path) -> None:
    from vlmft.data.datasets.columns import Columns

    read("columns", {"t.csv": HEAD + 'a.png,"say \\"hi\\" q",x\n', **IMAGES}, "t.csv")
    assert 'line 2 has \\" in it' in Columns(path=str(tmp_path / "mine/t.csv")).describe().splits["train"]


def test_a_text_file_that_is_a_table(check: Check) -> None:
    check(
        "train: [1] q => x, y",
        "columns",
        {"c.txt": 'image,caption\na.png,"x, y"\n', **IMAGES},
        "c.txt",
        question_text="q",
    )


CODE_PAGES = {
    "cp1251": "Чебурашка и крокодил Гена на картинке",
    "koi8-r": "Чебурашка и крокодил Гена на картинке",
    "cp866": "Чебурашка и крокодил Гена на картинке",
    "cp1252": "près du café à côté de l’école",
    "gbk": "一只可爱的小猫坐在椅子上看着窗外",
    "shift-jis": "かわいい猫が椅子に座っています",
    "utf-16": "Чебурашка",
    "utf-16-le": "Чебурашка",
}


@pytest.mark.parametrize("encoding", CODE_PAGES)
def test_encodings(check: Check, encoding: str) -> None:
    text = CODE_PAGES[encoding]
    check(
        f"train: [1] q => {text}", "columns", {"t.csv": f"{HEAD}a.png,q,{text}\n".encode(encoding), **IMAGES}, "t.csv"
    )


# --- Excel

NAMES = ["image", "question", "answer"]
SHEETS: dict[str, tuple[Mapping[str, list[list[Any]]], str | list[str]]] = {
    "one": ({"S": [NAMES, ["a.png", "q", "x"]]}, ONE),
    "splits": (
        {"train": [NAMES, ["a.png", "q", "x"]], "Test": [NAMES, ["b.png", "q", "y"]]},
        [ONE, "test: [2] q => y"],
    ),
    "no splits": ({"A": [NAMES, ["a.png", "q", "x"]], "B": [NAMES, ["b.png", "q", "y"]]}, "REFUSED ...{A: train}..."),
    "beside": ({"train": [NAMES, ["a.png", "q", "x"]], "notes": [["by"], ["me"]]}, "REFUSED ...{notes: none}..."),
    "an empty one": ({"S": [NAMES, ["a.png", "q", "x"]], "T": []}, ONE),
    "numbers": (
        {"S": [NAMES, ["a.png", "q", 3.0], ["a.png", "q", 0.5], ["a.png", "q", "007"]]},
        [f"train: [1] q => {n}" for n in ("3", "0.5", "007")],
    ),
    "dates": ({"S": [NAMES, ["a.png", "q", datetime.datetime(2020, 1, 2)]]}, "train: [1] q => 2020-01-02"),
    "errors": ({"S": [NAMES, ["a.png", "q", "#N/A"], ["b.png", "q", "y"]]}, ["train: BAD ...", BOTH[1]]),
    "formula": ({"S": [NAMES, ["a.png", "q", "=1+1"], ["b.png", "q", "y"]]}, ["train: BAD ...", BOTH[1]]),
    "gaps": ({"S": [[None], NAMES, ["a.png", "q", "x"], [None] * 3, ["b.png", "q", "y"]]}, BOTH),
    "title": ({"S": [["My table", None, None], NAMES, ["a.png", "q", "x"]]}, "REFUSED ...got 'My table' alone..."),
    "twice": ({"S": [[*NAMES, "answer"], ["a.png", "q", "x", "y"]]}, "REFUSED ...several called answer..."),
    "header": ({"S": [NAMES]}, "REFUSED @/t.xlsx: Expected a sheet with a header and rows, got none"),
}


@pytest.mark.parametrize("case", SHEETS)
def test_excel(check: Check, case: str) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    sheets, expected = SHEETS[case]
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    stream = io.BytesIO()
    book.save(stream)
    check(expected, "columns", {"t.xlsx": stream.getvalue(), **IMAGES}, "t.xlsx")


@pytest.mark.parametrize("name", ["t.xlsx", "t.parquet"])
@pytest.mark.parametrize("data", [b"image,question\n", b"PK\x03\x04 cut", b"PAR1 cut"])
def test_damaged(read: Callable[..., list[str]], name: str, data: bytes) -> None:
    (found,) = read("columns", {name: data}, name)
    assert found.startswith("REFUSED ") and name in found


# --- parquet, save_to_disk


def saved(reds: Mapping[str, int]) -> Any:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    parts = {}
    for split, red in reds.items():
        picture = PIL.Image.new("RGB", (8, 6), (red, 80, 160))
        parts[split] = datasets.Dataset.from_list([{"image": picture, "label": 1}], features=features)
    return datasets.DatasetDict(parts)


@pytest.mark.parametrize("path", ["set", ""])
def test_a_saved_dataset(check: Check, path: str) -> None:
    def make(root: Path) -> None:
        saved({"train": 1, "validation": 2, "test": 3}).save_to_disk(root / "set")

    expected = ["train: [1] q => dog", "val: [2] q => dog", "test: [3] q => dog"]
    check(expected, "columns", make, path, question_text="q")


@pytest.mark.parametrize("name", ["image", "blob"])
def test_pictures_stored_in_parquet(check: Check, name: str) -> None:
    def make(root: Path) -> None:
        rows = saved({"train": 1})["train"]
        (rows if name == "image" else rows.rename_column("image", name)).to_parquet(root / "t.parquet")

    check("train: [1] q => dog", "columns", make, "t.parquet", question_text="q")


# --- tar


def tar(root: Path, name: str, members: Mapping[str, int | str]) -> None:
    with tarfile.open(root / name, "w") as file:
        for member, value in members.items():
            stream = io.BytesIO()
            if isinstance(value, int):
                PIL.Image.new("RGB", (8, 6), (value, 80, 160)).save(stream, "PNG")
            else:
                stream.write(value.encode())
            info = tarfile.TarInfo(member)
            info.size = stream.tell()
            stream.seek(0)
            file.addfile(info, stream)


PAIR: Mapping[str, int | str] = {"0.png": 1, "0.txt": "x"}
TARS: dict[str, tuple[Mapping[str, Mapping[str, int | str]], str, str | list[str]]] = {
    "one": ({"d.tar": PAIR}, "d.tar", ONE),
    "shards": (
        {"train-000.tar": PAIR, "train-001.tar": {"1.png": 2, "1.txt": "y"}, "val-000.tar": {"2.png": 3, "2.txt": "z"}},
        "",
        [*BOTH, "val: [3] q => z"],
    ),
    "dots": (
        {"d.tar": {"a.b.0.png": 1, "a.b.0.txt": "x", "a.b.1.png": 2, "a.b.1.txt": "y"}},
        "d.tar",
        "REFUSED ...Expected one dot...'a.b.0.txt'; rename...",
    ),
    "two pictures": ({"d.tar": {**PAIR, "0.seg.png": 5}}, "d.tar", ONE),
    "no texts": ({"d.tar": {"cat/0.png": 1, "dog/1.png": 2}}, "d.tar", "REFUSED @/d.tar: ...unpack it..."),
    "no pictures": ({"d.tar": {"0.json": "{}", "1.json": "{}"}}, "d.tar", "REFUSED @/d.tar: ...unpack it..."),
}


@pytest.mark.parametrize("case", TARS)
def test_tar(check: Check, case: str) -> None:
    tars, path, expected = TARS[case]

    def make(root: Path) -> None:
        for name, members in tars.items():
            tar(root, name, members)

    check(expected, "columns", make, path, question_text="q")


def test_a_table_beside_a_tar(check: Check) -> None:
    def make(root: Path) -> None:
        tar(root, "images.tar", PAIR)
        (root / "t.csv").write_text(HEAD + "a.png,q,x\n", encoding="utf-8")

    check("REFUSED data.path: Expected tables or tar files, got t.csv and images.tar...", "columns", make)
