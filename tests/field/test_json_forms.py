"""JSON in the containers that tools write, and in any encoding: rows, or a refusal that says what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Check = Callable[..., None]
IMAGES = {"a.png": 1, "b.png": 2}
ROWS = [{"image": f"{name}.png", "question": "q", "answer": text} for name, text in (("a", "x"), ("b", "y"))]
BOTH = ["train: [1] q => x", "train: [2] q => y"]
LINES = "\n".join(map(json.dumps, ROWS))
COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}

CONTAINERS: dict[str, Any] = {
    "list": ROWS,
    "data": {"info": {"v": 1}, "data": ROWS},
    "annotations": {"annotations": ROWS},
    "annotations with ids": {"annotations": [{**row, "question_id": n} for n, row in enumerate(ROWS)]},
    "questions": {"questions": [{**row, "question_id": n} for n, row in enumerate(ROWS)]},
    "columns": COLUMNS,
    "columns of lists": {**COLUMNS, "image": [["a.png"], ["b.png"]]},
    "pandas": {key: dict(zip(("0", "1"), cells, strict=True)) for key, cells in COLUMNS.items()},
    "pandas of an index": {key: dict(zip(("r1", "r2"), cells, strict=True)) for key, cells in COLUMNS.items()},
    "pandas index": {"0": ROWS[0], "1": ROWS[1]},
    "pandas split": {"columns": [*ROWS[0]], "index": [0, 1], "data": [[*row.values()] for row in ROWS]},
    "pandas table": {"schema": {"fields": []}, "data": [{"index": n, **row} for n, row in enumerate(ROWS)]},
    "by id": {"q1": ROWS[0], "q2": ROWS[1]},
    "by image": {row["image"]: {"question": "q", "answer": row["answer"]} for row in ROWS},
    "by image, lists": {row["image"]: [{"question": "q", "answer": row["answer"]}] for row in ROWS},
    "viewer": {"features": [], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)]},
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_containers(check: Check, case: str) -> None:
    check(BOTH, "columns", {"t.json": CONTAINERS[case], **IMAGES}, "t.json")


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.ndjson", "t.txt"])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        f"\n{LINES.replace(chr(10), chr(10) * 3)}\n",
        "\ufeff" + LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        f"[\n{LINES.replace(chr(10), ',' + chr(10))}\n]",
        "".join(map(json.dumps, ROWS)),
    ],
    ids="lines crlf blank bom list pretty objects bracketed glued".split(),
)
def test_what_a_file_holds_counts_and_not_its_name(check: Check, name: str, text: str) -> None:
    check(BOTH, "columns", {name: text, **IMAGES}, name)


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_one_row_that_holds_lists(check: Check, name: str, indent: int | None) -> None:
    row = {"image": "a.png", "question": "q", "answers": [{"answer": "x", "answer_id": n} for n in range(3)]}
    check("train: [1] q => x", "columns", {name: json.dumps(row, indent=indent), **IMAGES}, name)


TEXTS = {
    "cp1251": "Чебурашка и крокодил Гена на одной картинке",
    "koi8-r": "Чебурашка и крокодил Гена на одной картинке",
    "cp1252": "près de l’été, déjà vu à côté du café",
    "gbk": "一只可爱的小猫坐在椅子上看着窗外",
    "shift-jis": "かわいい猫が椅子に座っています",
    **dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"), "Чебурашка, the 猫"),
}


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("encoding", TEXTS)
def test_encodings(check: Check, encoding: str, lines: bool) -> None:
    row = {"image": "a.png", "question": "q", "answer": TEXTS[encoding]}
    text = json.dumps(row if lines else [row], ensure_ascii=False)
    check(f"train: [1] q => {TEXTS[encoding]}", "columns", {"t.json": text.encode(encoding), **IMAGES}, "t.json")


def test_a_mark_under_a_named_encoding(check: Check) -> None:
    check(
        BOTH, "columns", {"t.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), **IMAGES}, "t.json", encoding="utf-8"
    )


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty": ("t.json", b" \n", "got an empty file"),
    "no line": ("t.jsonl", b"", "got an empty file"),
    "number": ("t.json", b"3", "Expected rows with named fields, got 3"),
    "lengths": ("t.json", b'{"image": ["a.png", "b.png"], "answer": ["x"]}', "got 2 of image, 1 of answer"),
    "comma": ("t.json", b'[{"image": "a.png"},]', "Expected JSON, got an error"),
    "zeros": ("t.json", json.dumps(ROWS).encode() + b"\0\0", "zero bytes"),
    "depth": ("t.json", b"[" * 100_000, "too deep"),
    "HTML": ("t.jsonl", b"<!DOCTYPE html><html>", "an HTML page"),
    "LFS": ("t.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "encoding": ("t.json", "Žluťoučký kůň úpěl ďábelské ódy".encode("cp1250") * 2, "data.options.encoding="),
    "gzip": ("t.json.gz", b"\x1f\x8b", "unpack it"),
    "zip": ("t.zip", b"PK", "unpack it"),
    "old Excel": ("t.xls", b"\xd0\xcf", "save it as .xlsx"),
    "pickle": ("t.pkl", b"x", "no pickle is read"),
    "YAML": ("t.yaml", b"a: 1", "write its rows as JSON Lines"),
    "XML": ("t.xml", b"<a/>", "write its rows as JSON Lines"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(read: Callable[..., list[str]], case: str) -> None:
    name, data, words = REFUSED[case]
    (found,) = read("columns", {name: data, **IMAGES}, name)
    assert found.startswith(f"REFUSED @/{name}: ") and words in found


@pytest.mark.parametrize("text", ["[]", '["a", "b"]', '[["a.png", "q", "x"]]', '["a.png", "q"]\n["b.png", "q"]\n'])
def test_rows_without_names(check: Check, text: str) -> None:
    check("REFUSED data.path: Expected rows with named fields in t.jsonl..., got none...", "columns", {"t.jsonl": text})


def test_bad_lines_are_rows_of_their_own(check: Check) -> None:
    text = "\n".join(["{broken", json.dumps(ROWS[0]), "[" * 100_000, json.dumps(ROWS[1])[:30]])
    expected = ["train: BAD ...line 1...", BOTH[0], "train: BAD ...line 3...", "train: BAD ...line 4..."]
    check(expected, "columns", {"t.jsonl": text, **IMAGES}, "t.jsonl")


# --- datasets' own forms


def vqa(split: str, number: int) -> dict[str, Any]:
    ids = {"question_id": number, "image_id": number}
    return {
        f"v2_OpenEnded_mscoco_{split}_questions.json": {"questions": [{**ids, "question": "q"}]},
        f"v2_mscoco_{split}_annotations.json": {
            "annotations": [{**ids, "answers": [{"answer": "x", "answer_id": n} for n in range(10)]}]
        },
        f"{split}/COCO_{split}_{number:012d}.png": number,
    }


def test_vqa(check: Check) -> None:
    expected = ["train: [1] q => x", "val: [2] q => x"]
    check(expected, "columns", {**vqa("train2014", 1), **vqa("val2014", 2)})


def test_vqa_without_annotations(check: Check, read: Callable[..., list[str]]) -> None:
    questions = {"test2015_questions.json": {"questions": [{"question_id": 9, "image_id": 9, "question": "q"}]}}
    files = {**vqa("train2014", 1), **questions}
    check("REFUSED @/test2015_questions.json: ...got none; put it there, or...{test: none})", "columns", files)


def test_vqa_without_annotations_left_out(check: Check) -> None:
    questions = {"test2015_questions.json": {"questions": [{"question_id": 9, "image_id": 9, "question": "q"}]}}
    check("train: [1] q => x", "columns", {**vqa("train2014", 1), **questions}, split_names={"test": "none"})


def captions(number: int) -> dict[str, Any]:
    notes = [{"id": n, "image_id": number, "caption": text} for n, text in enumerate("xy")]
    return {"images": [{"id": number, "file_name": f"{number}.png"}], "annotations": notes}


BOXES = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}


def test_coco(check: Check) -> None:
    files = {
        "ann/captions_train2017.json": captions(1),
        "ann/captions_val2017.json": captions(1),
        "ann/instances_train2017.json": BOXES,
        "train2017/1.png": 1,
        "val2017/1.png": 2,
    }
    notes = ["note: not read: ann/instances_train2017.json (COCO's boxes)", "note: images...", "note: images..."]
    expected = ["train: [1] q => x | y", "val: [2] q => x | y", *notes]
    check(expected, "columns", files, question_text="q")


@pytest.mark.parametrize(("note", "what"), [({"bbox": [1, 2, 3, 4]}, "boxes"), ({"segments_info": []}, "segments")])
def test_coco_without_captions(check: Check, note: dict[str, Any], what: str) -> None:
    value = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, **note}]}
    check(
        f"REFUSED @/t.json: Expected annotations in words, got COCO's {what}...", "columns", {"t.json": value}, "t.json"
    )


def task(*answers: Any, kind: str = "text", **more: Any) -> dict[str, Any]:
    notes = [{"result": [{"from_name": "a", "type": kind, "value": {kind: answer}}], **more} for answer in answers]
    return {"id": 1, "data": {"image": "/data/upload/1/a.png", "question": "q"}, "annotations": notes}


STUDIO: dict[str, tuple[list[dict[str, Any]], str | list[str]]] = {
    "one": ([task(["x"])], "train: [1] q => x"),
    "several people": ([task(["x"]), task(["x"], ["y"])], ["train: [1] q => x", "train: [1] q => x | y"]),
    "choices": ([task(["x", "y"], kind="choices")], 'train: [1] q => ["x", "y"]'),
    "cancelled": (
        [task(["x"]), task(["y"], was_cancelled=True), task()],
        ["train: [1] q => x", "train: BAD ...", "train: BAD ..."],
    ),
    "boxes": ([task(["x"], kind="rectanglelabels")], "REFUSED @/t.json: ...got Label Studio's rectanglelabels..."),
    "short": (
        [
            {
                "image": "/data/upload/1/a.png",
                "question": "q",
                "answer": {"choices": ["x", "y"]},
                "annotator": 1,
                "lead_time": 2,
            }
        ],
        'train: [1] q => ["x", "y"]',
    ),
}


@pytest.mark.parametrize("case", STUDIO)
def test_label_studio(check: Check, case: str) -> None:
    tasks, expected = STUDIO[case]
    check(expected, "columns", {"t.json": tasks, **IMAGES}, "t.json")
