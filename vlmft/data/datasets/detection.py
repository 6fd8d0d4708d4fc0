"""Images with labelled boxes, as annotation tools export them: where is what?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Dataset, Description, Record
from vlmft.data.images import image_at
from vlmft.data.sources.boxes import Annotations, read_boxes, some_labels
from vlmft.data.sources.locate import ImageFolders, settled
from vlmft.data.sources.split_names import LEFT_OUT, known_names, split_of
from vlmft.data.sources.tables import image_folder
from vlmft.data.survey.cache import stamps
from vlmft.sample import SPLITS, BadRowError, Box, Mark, Message, Point, Prompt, Sample, Split, marks_text

QUESTION = "Detect all objects of these kinds: {labels}."
BEYOND_PIXELS = 1.0
"""Boxes may stick out of the picture by rounding, and are cut there; by more, they are another picture's."""


class Detection(Dataset):
    """COCO JSON, a YOLO folder, Pascal VOC XML or Roboflow JSON Lines: `path` is a folder or a file of those."""

    name: ClassVar[str] = "detection"
    metric: ClassVar[str] = "box_f1"
    max_new_tokens: ClassVar[int] = 512
    fills_splits: ClassVar[bool] = True

    def __init__(
        self,
        *,
        path: str | None = None,
        images: str | None = None,
        ask: Literal["image", "label", "every_label"] = "image",
        question: str | None = None,
        separator: str = ", ",
        labels: Sequence[str] = (),
        points: bool = False,
        split_names: Mapping[str, str] | None = None,
    ) -> None:
        """`ask`: one question an image, or one for each label that it has (`label`), or for each that there is.

        `question`: "{labels}" in it stands for the labels that are asked for, `separator` between them; JSON Lines
        bring their own questions. `labels`: only these, in this order; null: all. `points`: the answers are the
        centres of the boxes, scored by point_accuracy. `images`: folder in which names of images begin.
        `split_names`: a source's name for a split -> train, val, test or none, which leaves it out.

        Raises:
            ValueError: a question without a place for labels where several are asked for one by one.
        """
        if ask not in ("image", "label", "every_label"):
            raise ValueError(f"Expected ask of image, label or every_label, got {ask!r}")
        if question is not None and "{labels}" not in question and ask != "image":
            raise ValueError(f"Expected {{labels}} in question with ask={ask}, got {question!r}")
        self.path, self.images, self.ask, self.question = path, images, ask, question
        self.separator, self.labels, self.points = separator, tuple(labels), points
        self.split_names = dict(split_names or {})
        if points:
            self.metric = "point_accuracy"  # type: ignore[misc]  # of this object
        self._found: Annotations | None = None
        self._rows: dict[Split, list[tuple[int, int]]] = {}
        self._folders: list[ImageFolders] = []
        self._description = Description()

    def __getstate__(self) -> dict[str, Any]:  # a worker reads the annotations again
        return {**self.__dict__, "_found": None, "_rows": {}, "_folders": []}

    @property
    def found(self) -> Annotations:
        """Read at first use.

        Raises:
            ConfigError: no annotations, or labels that no box has.
        """
        if self._found is None:
            if self.path is None:
                raise ConfigError("data.path: Expected a file or folder of annotations, got none; set it")
            place = Path(self.path).expanduser()
            self._read(place, read_boxes(place))
        assert self._found is not None
        return self._found

    def _read(self, place: Path, found: Annotations) -> None:
        if unknown := [label for label in self.labels if label not in found.labels]:
            there = some_labels(found.labels)
            raise ConfigError(
                f"data.options.labels: Expected labels of the boxes, got {unknown[0]!r}; there are {there}"
            )
        top = place if place.is_dir() else place.parent
        named = None if self.images is None else image_folder(self.images, top)
        names, rows, notes = known_names(self.split_names), dict[Split, list[tuple[int, int]]](), list(found.notes)
        declared = [
            part.split or split_of(part.source.absolute().relative_to(top.absolute()), names) for part in found.parts
        ]
        for number, (part, split) in enumerate(zip(found.parts, declared, strict=True)):
            split = split or ("train" if "train" not in declared else LEFT_OUT)
            own = ImageFolders(part.source.parent, top, named)
            folders, note = settled(own, [row["image"] for row in part.rows if row["image"]], split, place.is_file())
            self._folders.append(folders)
            notes += [note] if note else []
            if split == LEFT_OUT or names.get(split, split) == LEFT_OUT:
                notes.append(f"{len(part.rows)} images of {part.source.name} are left out: its name is no split's")
                continue
            rows.setdefault(split, []).extend((number, i) for i in range(len(part.rows)))  # type: ignore[arg-type]
        self._rows = {split: rows[split] for split in SPLITS if split in rows}
        origin = {split: f"{len(some)} images, {found.form}" for split, some in self._rows.items()}
        self._description = Description(origin, {"boxes": some_labels(self._kinds(found))}, notes=notes)
        self._found = found

    def _kinds(self, found: Annotations) -> Sequence[str]:
        return self.labels or found.labels

    def describe(self) -> Description:
        assert self.found
        return self._description

    def comes_from(self) -> tuple[str, ...] | None:
        """The annotation files."""
        return stamps(list(dict.fromkeys(self.found.files)))

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "detection/train/000012", or "detection/train/000012/cat" with a question a label."""
        found, kinds = self.found, self._kinds(self.found)
        ids: dict[Split, Sequence[str]] = {}
        for split, places in self._rows.items():
            spelled = []
            for n, (part, i) in enumerate(places):
                own = {box[0] for box in found.parts[part].rows[i]["boxes"]}
                asked = {"image": [""], "label": [k for k in kinds if k in own], "every_label": list(kinds)}[self.ask]
                spelled += [f"{self.name}/{split}/{n:06d}" + (f"/{label}" if label else "") for label in asked]
            ids[split] = spelled
        return ids

    def read(self, row_id: str) -> Record:
        """The image's row of the source, and which labels are asked for.

        Raises:
            BadRowError: no such row, or one that the source has wrong.
        """
        found = self.found
        _, split, number, *label = row_id.split("/", 3)
        if split not in self._rows or not number.isdecimal() or int(number) >= len(self._rows[split]):  # type: ignore[index]
            raise BadRowError(
                f"Expected a row id such as '{self.name}/train/000000', got {row_id!r}; take ids from index()"
            )
        part, i = self._rows[split][int(number)]  # type: ignore[index]
        row = found.parts[part].rows[i]
        if row["problem"]:
            raise BadRowError(row["problem"])
        return {"id": row_id, "part": part, **row, "asked": label or list(self._kinds(found))}

    def to_sample(self, record: Record) -> Sample:
        """The question, and the boxes of the labels that are asked for, by label, then from the top left.

        Raises:
            BadRowError: no such image, one of another size than the annotations say, or a box that is none.
        """
        image = image_at(self._folders[record["part"]].file(record["image"]), str(record["image"]))
        size = image.size
        if record["size"] is not None and tuple(record["size"]) != size:
            turned = (
                " (its EXIF turn was not applied when it was annotated)" if tuple(record["size"])[::-1] == size else ""
            )
            raise BadRowError(
                f"Expected an image of {record['size'][0]}x{record['size'][1]} as its annotations say, got "
                f"{size[0]}x{size[1]}{turned}; export images and boxes together"
            )
        asked, unit = record["asked"], record["unit"]
        boxes = [_box(box, size, unit) for box in record["boxes"] if box[0] in asked or not box[0]]
        boxes.sort(key=lambda box: (asked.index(box.label) if box.label else 0, box.top, box.left))
        reference = marks_text(boxes)
        marks: list[Mark] = list(boxes)
        if self.points:
            marks = [Point((b.left + b.right) / 2, (b.top + b.bottom) / 2, b.label) for b in boxes]
        question = self.question or record["question"] or QUESTION
        text = question.replace("{labels}", self.separator.join(asked))
        prompt = Prompt((Message("user", (image, text)),), "points" if self.points else "boxes")
        return Sample(record["id"], prompt, marks_text(marks), (reference,), tags={"boxes": str(min(len(boxes), 10))})


def _box(box: Sequence[Any], size: tuple[int, int], unit: float | None) -> Box:
    label, *numbers = box
    scale = [1.0, 1.0] if unit is None else [size[0] / unit, size[1] / unit]
    pixels = [float(n) * scale[i % 2] for i, n in enumerate(numbers)]
    inside = [min(max(n, 0.0), float(size[i % 2])) for i, n in enumerate(pixels)]
    if (
        not all(map(math.isfinite, pixels))
        or max(abs(a - b) for a, b in zip(pixels, inside, strict=True)) > BEYOND_PIXELS
    ):
        raise BadRowError(
            f"Expected a box inside {size[0]}x{size[1]}, got {_told(pixels)} of {label!r}; mend or drop it"
        )
    left, top, right, bottom = inside
    if right <= left or bottom <= top:
        raise BadRowError(
            f"Expected a box with a width and a height, got {_told(pixels)} of {label!r}; mend or drop it"
        )
    return Box(left, top, right, bottom, str(label))


def _told(pixels: Sequence[float]) -> str:
    return f"[{', '.join(f'{n:g}' for n in pixels)}]"
