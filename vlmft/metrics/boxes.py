"""Boxes and points in pixels: how well they overlap, and how many of them were found.

Answers and references are texts of `marks_text` (vlmft/sample.py). What is none counts as not parsed, and wrong.
A predicted mark may stand for a reference one where their labels are the same in any letter case, or one has none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from vlmft.metrics.score import Score, expect_references
from vlmft.sample import Box, Mark, Point, read_marks

Marks = Sequence[Mark]
Boxes = Sequence[Box]
FOUND_IOU = 0.5
"""From here on a box counts as found: Everingham et al., "The Pascal VOC challenge", 2010, section 4.2."""


def box_f1(prediction: str, references: Sequence[str]) -> Score:
    """F1 of the boxes found: 2 * pairs / (predicted + reference), pairs of IoU 0.5 or more, each box in one at most.

    1 where there is nothing and nothing was said. Raises ValueError without references, or where one is no boxes.
    """
    return _best(prediction, references, _f1)


def box_accuracy(prediction: str, references: Sequence[str]) -> Score:
    """1 where all boxes are found and no other is said: of questions for one box, accuracy at IoU 0.5."""
    return _best(prediction, references, lambda found, gold: float(_f1(found, gold) == 1))


def box_iou(prediction: str, references: Sequence[str]) -> Score:
    """Mean IoU of the best pairs, a box without a partner as 0: of questions for one box, its IoU."""
    return _best(prediction, references, mean_iou)


def point_accuracy(prediction: str, references: Sequence[str]) -> Score:
    """F1 of points that lie in a reference box, each box hit once; of a predicted box, its centre."""
    return _best(prediction, references, lambda found, gold: _share(pairs(found, gold, _hits), found, gold))


def _best(prediction: str, references: Sequence[str], score: Callable[[Marks, Boxes], float]) -> Score:
    expect_references(references)
    golds = [reference_boxes(text) for text in references]
    found = read_marks(prediction)
    if found is None:
        return Score(0.0, None)
    return Score(max(score(found, gold) for gold in golds), prediction)


def are_boxes(texts: Sequence[str]) -> bool:
    """Whether all are lists of boxes in pixels, and one at least is not empty."""
    read = [read_marks(text) for text in texts]
    return any(read) and all(m is not None and all(isinstance(mark, Box) for mark in m) for m in read)


def reference_boxes(text: str) -> tuple[Box, ...]:
    marks = read_marks(text)
    if marks is None or not all(isinstance(mark, Box) for mark in marks):
        raise ValueError(f'Expected boxes as reference, [{{"pixels": [x0, y0, x1, y1]}}], got {text[:60]!r}')
    return marks  # type: ignore[return-value]  # all of them, as seen


def _f1(found: Marks, gold: Boxes) -> float:
    return _share(pairs(found, gold, lambda a, b: at_least(iou(a, b))), found, gold)


def at_least(overlap: float) -> float:
    """More pairs count more than better ones."""
    return 1 + overlap / 1e3 if overlap >= FOUND_IOU else 0.0


def _share(pairs: Sequence[float], found: Marks, gold: Boxes) -> float:
    return 2 * len(pairs) / (len(found) + len(gold)) if found or gold else 1.0


def mean_iou(found: Marks, gold: Boxes) -> float:
    return sum(pairs(found, gold, iou)) / max(len(found), len(gold)) if found or gold else 1.0


def _hits(mark: Mark, box: Box) -> float:
    x, y = mark.numbers if isinstance(mark, Point) else ((mark.left + mark.right) / 2, (mark.top + mark.bottom) / 2)
    return float(box.left <= x <= box.right and box.top <= y <= box.bottom)


def pairs(found: Marks, gold: Boxes, worth: Callable[[Mark, Box], float]) -> list[float]:
    """What the pairs of the best assignment are worth, those that are worth something (Hungarian algorithm)."""
    if not found or not gold:
        return []
    table = np.array([[worth(one, other) if _alike(one, other) else 0.0 for other in gold] for one in found])
    if 1 in table.shape:
        return [best] if (best := float(table.max())) > 0 else []
    from scipy.optimize import linear_sum_assignment  # slow to import

    return [value for value in table[linear_sum_assignment(table, maximize=True)].tolist() if value > 0]


def _alike(one: Mark, other: Mark) -> bool:
    return not one.label or not other.label or folded(one.label) == folded(other.label)


def folded(label: str) -> str:
    return " ".join(unicodedata.normalize("NFC", label).casefold().split())


def iou(one: Mark, other: Mark) -> float:
    """Intersection over union; 0 of a point, and of a box whose corners are the wrong way round."""
    if isinstance(one, Point) or isinstance(other, Point):
        return 0.0
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box.right - box.left) * (box.bottom - box.top) for box in (one, other))
    return width * height / (areas - width * height)
