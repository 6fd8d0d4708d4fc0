"""Boxes of a whole test set: precision and recall over all of them, and COCO's average precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmft.metrics.boxes import Boxes, Marks, at_least, folded, iou, mean_iou, pairs, reference_boxes
from vlmft.metrics.table import Row, Table, expect_rows
from vlmft.sample import Box, read_marks


def detection(rows: Sequence[Row]) -> Table:
    """Precision and recall at IoU 0.5 over all boxes, mean IoU of rows, and COCO's AP by pycocotools, with a line a
    label; only the first reference of a row counts. AP is None where pycocotools is not installed.

    Raises ValueError without rows, or on a reference that is no boxes.
    """
    expect_rows(rows)
    read = [(read_marks(prediction) or (), reference_boxes(references[0])) for prediction, references in rows]
    n_pairs = sum(len(pairs(found, gold, lambda a, b: at_least(iou(a, b)))) for found, gold in read)
    n_found, n_gold = (sum(map(len, column)) for column in zip(*read, strict=True))
    values: dict[str, float | None] = {
        "precision": n_pairs / n_found if n_found else None,
        "recall": n_pairs / n_gold if n_gold else None,
        "iou": sum(mean_iou(found, gold) for found, gold in read) / len(read),
    }
    notes = ["answers carry no confidence: AP takes boxes in the order of rows, so it is that of one operating point"]
    averages, lines = _coco(read)
    if averages is None:
        notes.append("AP needs pycocotools: pip install 'vlmft[boxes]'")
    return Table(values | dict.fromkeys(("ap", "ap50", "ap75")) | (averages or {}), notes, {"per_label": lines})


def _coco(read: Sequence[tuple[Marks, Boxes]]) -> tuple[dict[str, float | None] | None, list[dict[str, Any]]]:
    """COCO's AP, AP50 and AP75, and AP and AP50 of each label with its number of boxes."""
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
    except ImportError:
        return None, []
    labels = sorted({folded(box.label) for _, gold in read for box in gold})
    if not labels:
        return {"ap": None, "ap50": None, "ap75": None}, []
    gold = [_annotation(i, box, labels) for i, (_, boxes) in enumerate(read) for box in boxes]
    # One label in all that the answers leave out is meant; a label that no reference has counts against no class.
    boxes = [(i, mark) for i, (found, _) in enumerate(read) for mark in found if isinstance(mark, Box)]
    named = [(i, box) for i, box in boxes if folded(box.label) in labels or len(labels) == 1]
    truth, answers = COCO(), COCO()
    images = [{"id": i} for i in range(len(read))]
    kinds = [{"id": i, "name": name} for i, name in enumerate(labels)]
    for coco, some in ((truth, gold), (answers, [_annotation(i, box, labels) for i, box in named])):
        numbered = [{**one, "id": number} for number, one in enumerate(some, start=1)]
        coco.dataset = {"images": images, "annotations": numbered, "categories": kinds}
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
    found = COCOeval(truth, answers, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        found.evaluate()
        found.accumulate()
    precision = found.eval["precision"][:, :, :, 0, -1]  # (IoU thresholds, recalls, labels), -1: nothing of the label
    counts = [sum(one["category_id"] == i for one in gold) for i in range(len(labels))]
    lines = [
        {"label": name, "n": counts[i], "ap": _mean(precision[..., i]), "ap50": _mean(precision[0, :, i])}
        for i, name in enumerate(labels)
    ]
    return {"ap": _mean(precision), "ap50": _mean(precision[0]), "ap75": _mean(precision[5])}, lines


def _annotation(image: int, box: Box, labels: Sequence[str]) -> dict[str, Any]:
    width, height = max(0.0, box.right - box.left), max(0.0, box.bottom - box.top)
    kind = labels.index(folded(box.label)) if folded(box.label) in labels else 0
    sizes = {"bbox": [box.left, box.top, width, height], "area": width * height}
    return {"image_id": image, "category_id": kind, **sizes, "iscrowd": 0, "score": 1.0}


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None
