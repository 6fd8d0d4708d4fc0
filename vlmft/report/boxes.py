"""What the report says of boxes: how many were found, how well they fit, COCO's average precision, by label."""

from __future__ import annotations

from vlmft.evaluation.evaluate import Evaluation
from vlmft.evaluation.numbers import DASH, count, share
from vlmft.metrics.detection import detection
from vlmft.metrics.table import Table
from vlmft.report.content import Grid, Section
from vlmft.sample import Point, read_marks

MAX_LABELS = 30
_VALUES = {"Precision": "precision", "Recall": "recall", "Mean IoU": "iou", "AP": "ap", "AP50": "ap50", "AP75": "ap75"}


def boxes_section(found: Evaluation) -> Section:
    """A line for each arm, and one for each label where there are several."""
    references = {sample.id: sample.references for sample in found.samples if sample.prompt.marks}
    answers = {arm: {i: rows[i].text for i in references if i in rows} for arm, rows in found.rows.items()}
    tables = {arm: detection([(text, references[i]) for i, text in some.items()]) for arm, some in answers.items()}
    lines = []
    for arm, table in tables.items():
        read = [read_marks(text) for text in answers[arm].values()]
        numbers = [share(value) if (value := table.values[name]) is not None else DASH for name in _VALUES.values()]
        none = sum(marks is None for marks in read)
        places = sum(isinstance(mark, Point) for marks in read for mark in marks or ())
        lines.append((arm, *numbers, count(sum(map(len, filter(None, read)))), count(places), count(none)))
    said = (
        "A box is found where its IoU with a reference box of its label is 0.5 or more. Precision and recall are over "
        "all boxes, mean IoU over rows; AP is COCO's, over IoU 0.5 to 0.95. All in pixels of the picture, whatever the "
        "model writes.",
        *([f"The model writes them as {found.coordinates}."] if found.coordinates is not None else []),
    )
    notes = list(dict.fromkeys(f"{note[:1].upper()}{note[1:]}." for table in tables.values() for note in table.notes))
    notes += [f"{arm}: its first draw of examples." for arm in found.draws]
    heads = ("Arm", *_VALUES, "Boxes, points said", "Of them points", "Nothing read")
    parts = (_by_label(tables),) if any(len(table.lists["per_label"]) > 1 for table in tables.values()) else ()
    return Section("Boxes", said, Grid(heads, lines), parts=parts, notes=tuple(notes))


def _by_label(tables: dict[str, Table]) -> Section:
    """AP50 of each label, the most frequent first."""
    lists = {arm: {line["label"]: line for line in table.lists["per_label"]} for arm, table in tables.items()}
    known = {label: line["n"] for some in lists.values() for label, line in some.items()}
    shown = sorted(known, key=lambda label: (-known[label], label))[:MAX_LABELS]
    values = [[some.get(label, {}).get("ap50") for some in lists.values()] for label in shown]
    lines = [
        (label or "(no label)", count(known[label]), *(DASH if ap is None else share(ap) for ap in row))
        for label, row in zip(shown, values, strict=True)
    ]
    said = (f"The {MAX_LABELS} most frequent of {len(known)} labels.",) if len(known) > len(shown) else ()
    heat = [(None, None, *row) for row in values]
    return Section(
        "AP50 by label", said, Grid(("Label", "Boxes", *tables), lines, heat=heat), is_folded=len(lines) > 10
    )
