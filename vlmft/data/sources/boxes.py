"""Boxes as annotation tools write them: COCO's JSON, Pascal VOC's XML, YOLO's folders and Roboflow's JSON Lines.

COCO: https://cocodataset.org/#format-data; Pascal VOC: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf;
YOLO: https://docs.ultralytics.com/datasets/detect; JSON Lines: https://maestro.roboflow.com/develop/datasets/jsonl
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.files import json_value
from vlmft.data.sources.roles import some_of

Row = dict[str, Any]
"""image: its name; boxes: [label, left, top, right, bottom] each; unit: pixels, or what the picture's side counts;
size: [width, height] as declared, or None; question: the row's own; problem: why it cannot be used."""

DEEP = ("*", "*/*", "*/*/*", "*/*/*/*")
_LOC = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*([^<;]*)")
_LOC_BEHIND = re.compile(r"([^<>]*)((?:<loc_\d+>)+)")
"""Florence-2: the label, then x0, y0, x1, y1 in thousandths, box by box."""
_BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box")


@dataclass
class Part:
    """The rows of one file or folder."""

    source: Path
    """What names the split, and where names of images begin."""
    rows: list[Row]
    split: str | None = None
    """As the source itself declares it."""


@dataclass
class Annotations:
    form: str
    parts: list[Part]
    labels: list[str]
    """In the source's order."""
    files: list[Path]
    notes: list[str] = field(default_factory=list)


def row(image: str, boxes: Sequence[Any], size: Any = None, unit: float | None = None) -> Row:
    return {"image": image, "boxes": list(boxes), "size": size, "unit": unit, "question": "", "problem": ""}


def files_below(root: Path, suffix: str) -> list[Path]:
    """Sorted; at most four folders deep, hidden ones left out."""
    found = (file for pattern in DEEP for file in root.glob(f"{pattern}{suffix}"))
    return sorted(file for file in found if file.is_file() and not file.name.startswith("."))


def read_boxes(place: Path) -> Annotations:
    """The annotations of a file or of a folder, whatever form they have.

    Raises:
        ConfigError: there are none, or such of two forms.
    """
    from vlmft.data.sources.yolo import read_yolo

    if place.is_file():
        readers: Mapping[str, Callable[[Path, list[Path]], Annotations | None]]
        readers = {".json": coco, ".xml": voc, ".jsonl": json_lines, ".yaml": read_yolo, ".yml": read_yolo}
        reader = readers.get(place.suffix.lower())
        found = [one] if reader is not None and (one := reader(place.parent, [place])) is not None else []
    elif place.is_dir():
        tried = ((coco, ".json"), (json_lines, ".jsonl"), (voc, ".xml"), (read_yolo, ""))
        found = [one for read, end in tried if (one := read(place, files_below(place, end) if end else [])) is not None]
    else:
        raise ConfigError(f"data.path: Expected a file or folder of annotations, got {str(place)!r}; check the path")
    if not found:
        raise ConfigError(
            f"data.path: Expected boxes in {place}: COCO JSON, a YOLO data.yaml with labels, Pascal VOC XML or "
            'Roboflow JSON Lines, got none; write {"images": [...], "annotations": [{"bbox": ...}]} as COCO does'
        )
    if len(found) > 1:
        forms = " and ".join(f"{one.form} ({one.files[0].name})" for one in found)
        raise ConfigError(f"data.path: Expected annotations of one form, got {forms}; name the file that is meant")
    return found[0]


# ------------------------------------------------------------------------------------------------------------- COCO


def coco(root: Path, files: list[Path]) -> Annotations | None:
    """Of every file that has boxes; None where none has."""
    labels, used, parts, notes = dict[str, None](), list[Path](), list[Part](), list[str]()
    for file in files:
        try:
            value = json_value(file, dict)
        except ConfigError:
            if len(files) > 1:
                continue  # a list, or a file of something else
            raise
        annotations = value.get("annotations")
        if not isinstance(annotations, list) or not isinstance(value.get("images"), list):
            continue
        if annotations and not any("bbox" in note for note in annotations if isinstance(note, dict)):
            continue
        used.append(file)
        parts.append(Part(file, _coco_rows(file, value, labels, notes)))
    return Annotations("COCO JSON", parts, list(labels), used, notes) if used else None


def _coco_rows(file: Path, value: Mapping[str, Any], labels: dict[str, None], notes: list[str]) -> list[Row]:
    try:
        names = {kind["id"]: str(kind["name"]) for kind in value["categories"]}
        images = {image["id"]: image for image in value["images"]}
        rows = {i: row(str(image["file_name"]), (), _size(image)) for i, image in images.items()}
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"{file}: Expected COCO's categories with id and name and images with id and file_name, got none of "
            f"{error}; export it anew"
        ) from error
    crowds = strays = 0
    seen = set[Any]()
    for number, note in enumerate(value["annotations"]):
        note = note if isinstance(note, dict) else {}
        here = rows.get(note.get("image_id"))
        if here is None:
            strays += 1
        elif note.get("iscrowd"):
            crowds += 1
        elif (box := _coco_box(note.get("bbox"))) is None or note.get("category_id") not in names:
            what = f"bbox {note.get('bbox')} of category {note.get('category_id')}"
            here["problem"] = (
                f"annotation {note.get('id', number)} in {file.name}: Expected [x, y, width, height] of a known "
                f"category, got {what}; mend it"
            )
        else:
            seen.add(note["category_id"])
            here["boxes"].append([names[note["category_id"]], *box])
    labels.update((name, None) for i, name in names.items() if i in seen)
    if crowds:
        notes.append(f"{crowds} regions of {file.name} are crowds (iscrowd), which are no single object: not read")
    if strays:
        notes.append(f"{strays} annotations of {file.name} belong to images that it does not list: not read")
    return list(rows.values())


def _coco_box(bbox: Any) -> list[float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(n) for n in bbox):
        return None
    x, y, width, height = map(float, bbox)
    return [x, y, x + width, y + height]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _size(image: Mapping[str, Any]) -> list[int] | None:
    width, height = image.get("width"), image.get("height")
    return [int(width), int(height)] if width and height else None


# -------------------------------------------------------------------------------------------------------- Pascal VOC


def voc(root: Path, files: list[Path]) -> Annotations | None:
    """A row each XML file; splits as ImageSets/Main says, else by folder."""
    rows: dict[Path, Row] = {}
    for file in files:
        found = _voc_row(file)
        if found is not None:
            rows[file] = found
    if not rows:
        return None
    labels = dict.fromkeys(box[0] for one in rows.values() for box in one["boxes"])
    sets = {
        file.stem: set(file.read_text(encoding="utf-8").split())
        for file in sorted(root.rglob("ImageSets/Main/*.txt"))
        if file.stem in ("train", "val", "test")
    }
    parts: dict[tuple[Path, str | None], Part] = {}
    left_out = 0
    for file, one in rows.items():
        split = next((name for name, stems in sets.items() if file.stem in stems), None)
        if sets and split is None:
            left_out += 1
            continue
        key = (file.parent, split)
        parts.setdefault(key, Part(file.parent / "annotations.xml", [], split)).rows.append(one)
    notes = [f"{left_out} images are in no list of ImageSets/Main: not read"] if left_out else []
    if any(one.get("from_one") for one in rows.values()):
        notes.append("pixels are counted from 1, as VOC's own: the first column is 1, here 0")
    return Annotations("Pascal VOC XML", list(parts.values()), sorted(labels), list(rows), notes)


def _voc_row(file: Path) -> Row | None:
    """None where it is the XML of something else."""
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        broken = row(file.stem, ())
        return broken | {"problem": f"{file.name}: Expected XML, got an error ({error}); mend it"}
    if tree.tag != "annotation":
        return None
    found = row((tree.findtext("filename") or file.stem).strip(), ())
    # VOC's own files count from 1, with the last pixel inside; tools that write the form count from 0
    found["from_one"] = "VOC20" in (tree.findtext("source/database") or "").replace(" ", "")
    try:
        width, height = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        found["size"] = [width, height] if width and height else None
        for thing in tree.iter("object"):
            numbers = [float(thing.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
            if found["from_one"]:
                numbers = [numbers[0] - 1, numbers[1] - 1, *numbers[2:]]
            found["boxes"].append([(thing.findtext("name") or "").strip(), *numbers])
    except ValueError as error:
        found["problem"] = f"{file.name}: Expected numbers in size and bndbox, got an error ({error}); mend it"
    return found


# ---------------------------------------------------------------------------------------------------------- JSON Lines


def json_lines(root: Path, files: list[Path]) -> Annotations | None:
    """image, prefix and suffix, as Roboflow exports for PaliGemma and others; None where no file has them."""
    parts, used = list[Part](), list[Path]()
    for file in files:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        rows = [_jsonl_row(line, number) for number, line in enumerate(lines, 1)]
        if any("suffix" in one for one in rows):
            parts.append(Part(file, rows))
            used.append(file)
    labels = dict.fromkeys(box[0] for part in parts for one in part.rows for box in one["boxes"])
    return Annotations("Roboflow JSON Lines", parts, sorted(labels), used) if used else None


def _jsonl_row(line: str, number: int) -> Row:
    try:
        value = json.loads(line)
        image, suffix = str(value["image"]), str(value["suffix"])
    except (ValueError, TypeError, LookupError) as error:
        return row("", ()) | {"problem": f"line {number}: Expected JSON with image, prefix and suffix, got {error!r}"}
    boxes, unit = _boxes_in(suffix)
    found = row(image, boxes or (), unit=unit) | {"question": str(value.get("prefix") or ""), "suffix": suffix}
    if boxes is None:
        found["problem"] = (
            f"line {number}: Expected boxes in the suffix, got {suffix[:40]!r}; set data=columns for texts"
        )
    return found


def _boxes_in(suffix: str) -> tuple[list[list[Any]] | None, float | None]:
    """Boxes, and how many steps a side of the picture has; None for pixels."""
    if found := _LOC.findall(suffix):
        return [[label.strip(), *(float(n) for n in (x0, y0, x1, y1))] for y0, x0, y1, x1, label in found], 1024
    if "<loc_" in suffix:
        boxes = list[list[Any]]()
        for label, tokens in _LOC_BEHIND.findall(suffix):
            numbers = [float(n) for n in re.findall(r"\d+", tokens)]
            boxes += [[label.strip(), *numbers[i : i + 4]] for i in range(0, len(numbers) - 3, 4)]
        return boxes or None, 1000
    try:
        items = json.loads(suffix) if suffix.strip() else []
        boxes = [[str(one.get("label", "")), *map(float, _first(one, _BOX_KEYS))] for one in items]
    except (ValueError, TypeError, AttributeError, LookupError):
        return None, None
    return (boxes if all(len(box) == 5 for box in boxes) else None), None


def _first(one: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next(one[key] for key in keys if key in one) if any(key in one for key in keys) else one["bbox"]


def some_labels(labels: Sequence[str]) -> str:
    return f"{len(labels)} labels: {some_of(labels, 8)}"
