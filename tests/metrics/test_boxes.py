"""Scores of boxes, against hand-made cases and pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import vlmft.metrics.boxes as boxes_file
from vlmft.metrics import METRICS, beside, metric_named
from vlmft.metrics.boxes import are_boxes, box_accuracy, box_f1, box_iou, iou, point_accuracy
from vlmft.metrics.detection import detection
from vlmft.metrics.table import Row
from vlmft.sample import Box, Mark, Point, marks_text
from vlmft.tools.cli import run_tool


def text(*marks: Mark) -> str:
    return marks_text(marks)


A, B = Box(0, 0, 10, 10, "cat"), Box(20, 20, 30, 40, "dog")
HALF = Box(0, 0, 10, 20, "cat")
"""IoU 0.5 with A."""
LESS = Box(0, 0, 10, 20.5, "cat")

CASES = [
    ("the same", text(A, B), text(A, B), 1.0, 1.0, 1.0),
    ("another order", text(B, A), text(A, B), 1.0, 1.0, 1.0),
    ("a letter's case", text(Box(0, 0, 10, 10, "CAT")), text(A), 1.0, 1.0, 1.0),
    ("no label is any", text(Box(0, 0, 10, 10)), text(A), 1.0, 1.0, 1.0),
    ("another label", text(Box(0, 0, 10, 10, "dog")), text(A), 0.0, 0.0, 0.0),
    ("half is found", text(HALF), text(A), 1.0, 1.0, 0.5),
    ("less is not", text(LESS), text(A), 0.0, 0.0, 100 / 205),
    ("one too many", text(A, B), text(A), 2 / 3, 0.0, 0.5),
    ("twice the same", text(A, A), text(A), 2 / 3, 0.0, 0.5),
    ("one of two", text(A), text(A, B), 2 / 3, 0.0, 0.5),
    ("nothing, rightly", text(), text(), 1.0, 1.0, 1.0),
    ("nothing, wrongly", text(), text(A), 0.0, 0.0, 0.0),
    ("something, wrongly", text(A), text(), 0.0, 0.0, 0.0),
    ("corners the wrong way", text(Box(10, 10, 0, 0, "cat")), text(A), 0.0, 0.0, 0.0),
    ("a point is no box", text(Point(5, 5, "cat")), text(A), 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("prediction", "reference", "f1", "accuracy", "overlap"), [c[1:] for c in CASES])
def test_by_hand(prediction: str, reference: str, f1: float, accuracy: float, overlap: float) -> None:
    assert box_f1(prediction, [reference]).value == pytest.approx(f1)
    assert box_accuracy(prediction, [reference]).value == accuracy
    assert box_iou(prediction, [reference]).value == pytest.approx(overlap)
    assert box_f1(prediction, [reference]).parsed == prediction


@pytest.mark.parametrize("answer", ["", "cat", '[{"bbox_2d": [0, 0, 10, 10], "label": "cat"}]', "[[0, 0, 10, 10]]"])
def test_what_is_not_in_pixels_is_not_parsed(answer: str) -> None:
    for name in ("box_f1", "box_accuracy", "box_iou", "point_accuracy"):
        assert metric_named(name)(answer, [text(A)]) == METRICS[name]("no", [text(A)])
        assert METRICS[name](answer, [text(A)]).parsed is None


def test_the_best_of_several_references() -> None:
    assert box_f1(text(A), [text(B), text(A)]).value == 1


def test_a_reference_that_is_no_boxes() -> None:
    for reference in ("cat", text(Point(1, 2))):
        with pytest.raises(ValueError, match="Expected boxes as reference"):
            box_f1(text(A), [reference])


def test_pairs_are_the_most_there_can_be() -> None:
    """Greedy by IoU takes the middle box first, and leaves two without a partner."""
    gold = [Box(0, 0, 10, 10), Box(0, 3, 10, 13)]
    found = [Box(0, 2, 10, 12), Box(0, 5.5, 10, 15.5)]
    assert iou(found[0], gold[1]) > iou(found[0], gold[0]) > 0.5
    assert iou(found[1], gold[1]) > 0.5 > iou(found[1], gold[0])
    assert box_f1(text(*found), [text(*gold)]).value == 1


def test_points() -> None:
    assert point_accuracy(text(Point(9, 9, "cat")), [text(A)]).value == 1
    assert point_accuracy(text(Point(11, 9, "cat")), [text(A)]).value == 0
    assert point_accuracy(text(HALF), [text(A)]).value == 1, "the centre of a box, here on the edge"
    assert point_accuracy(text(Point(5, 5), Point(6, 6)), [text(A)]).value == pytest.approx(2 / 3)


def random_rows(seed: int, n: int = 60) -> list[tuple[list[Box], list[Box]]]:
    """Predictions near the references, some missing, some invented, some of another label."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        gold, found = [], []
        for _ in range(draw.integers(0, 6)):
            x, y, w, h = draw.uniform(5, 60, 4).round(1)
            gold.append(Box(x, y, x + w, y + h, str(draw.choice(["cat", "dog", "cow"]))))
            if draw.uniform() < 0.8:
                dx, dy = draw.uniform(-w / 4, w / 4), draw.uniform(-h / 4, h / 4)
                label = gold[-1].label if draw.uniform() < 0.9 else "cow"
                found.append(Box(*(round(float(v), 2) for v in (x + dx, y + dy, x + w, y + h)), label=label))  # type: ignore[misc]
        if draw.uniform() < 0.3:
            found.append(Box(1, 1, 9, 9, "dog"))
        rows.append((found, gold))
    return rows


def texts(rows: list[tuple[list[Box], list[Box]]]) -> list[Row]:
    return [(text(*found), (text(*gold),)) for found, gold in rows]


def test_iou_against_pycocotools() -> None:
    for found, gold in random_rows(1):
        if found and gold:
            ours = [[iou(one, other) for other in gold] for one in found]
            wide = [[[b.left, b.top, b.right - b.left, b.bottom - b.top] for b in some] for some in (found, gold)]
            np.testing.assert_allclose(ours, mask.iou(wide[0], wide[1], [0] * len(gold)), atol=1e-9)


def coco_stats(rows: list[tuple[list[Box], list[Box]]], tmp_path: Path) -> np.ndarray:
    """pycocotools by the path that its demo shows: an annotation file, results loaded beside it."""
    names = sorted({box.label for _, gold in rows for box in gold})
    notes, answers = [], []
    for image, (found, gold) in enumerate(rows, start=1):
        for boxes, kept in ((gold, notes), (found, answers)):
            for b in boxes:
                wide = [b.left, b.top, b.right - b.left, b.bottom - b.top]
                kept.append({"image_id": image, "category_id": names.index(b.label) + 1, "bbox": wide, "score": 1.0})
    notes = [
        {**note, "id": i, "area": note["bbox"][2] * note["bbox"][3], "iscrowd": 0} for i, note in enumerate(notes, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(1, len(rows) + 1)],
            "annotations": notes,
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
            "info": {},
        }
        truth.createIndex()
        found = COCOeval(truth, truth.loadRes(answers), "bbox")
        found.evaluate()
        found.accumulate()
        found.summarize()
    return found.stats


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ap_is_that_of_pycocotools(seed: int, tmp_path: Path) -> None:
    rows = random_rows(seed)
    table, stats = detection(texts(rows)), coco_stats(rows, tmp_path)
    assert 0.1 < stats[0] < 0.9
    assert [table.values[name] for name in ("ap", "ap50", "ap75")] == pytest.approx(list(stats[:3]))
    per_label = {line["label"]: line for line in table.lists["per_label"]}
    assert set(per_label) == {"cat", "cow", "dog"}
    assert np.mean([line["ap"] for line in per_label.values()]) == pytest.approx(stats[0])
    assert sum(line["n"] for line in per_label.values()) == sum(len(gold) for _, gold in rows)


def test_detection_by_hand() -> None:
    table = detection([(text(A), (text(A, B),)), ("no boxes", (text(A),)), (text(A, B), (text(A),))])
    assert table.values["precision"] == pytest.approx(2 / 3)
    assert table.values["recall"] == pytest.approx(2 / 4)
    assert table.values["iou"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert detection([(text(), (text(),))]).values["precision"] is None


def test_without_pycocotools_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.coco", None)
    table = detection(texts(random_rows(1)))
    assert table.values["ap"] is None and table.values["recall"] is not None
    assert "pip install 'vlmft[boxes]'" in table.notes[-1]


def test_beside_has_the_other_numbers() -> None:
    found = beside("box_f1", texts(random_rows(2)))
    assert "detection/coco-unscored@1: ap" in found and "box_accuracy/iou50-labels@1" in found
    assert boxes_file.FOUND_IOU == 0.5


def test_vlmft_score_knows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of texts in pixels is scored as boxes without being told."""
    rows = [
        {"id": "1", "prediction": text(A), "reference": text(A, B)},
        {"id": "2", "prediction": "", "reference": text()},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run_tool("score", [str(tmp_path / "p.jsonl")])
    said = capsys.readouterr().out
    assert "box_f1" in said and "33.3" in said
    assert not are_boxes([text(), text()]) and not are_boxes([text(A), "cat"]) and not are_boxes([text(Point(1, 2))])
