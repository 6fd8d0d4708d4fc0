"""YOLO's layout: data.yaml names classes and folders of images; each image has a text file of boxes in `labels`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlmft.config.check import ConfigError
from vlmft.data.sources.boxes import Annotations, Part, Row, files_below, row
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES

SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_yolo(root: Path, files: list[Path]) -> Annotations | None:
    """By the YAML file with `names`, else by classes.txt beside a folder `labels`; None where there is neither.

    Raises:
        ConfigError: names that are no list, folders that are not there, or images without a single label file.
    """
    for file in files or [*files_below(root, ".yaml"), *files_below(root, ".yml")]:
        try:
            value = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            continue
        if isinstance(value, dict) and "names" in value:
            return _of_yaml(file, value)
    for file in files_below(root, "classes.txt"):
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        top = file.parent.parent if file.parent.name == "labels" else file.parent
        folder = top / "images" if (top / "images").is_dir() else top
        rows = _rows(top, _images(folder), dict(enumerate(names)))
        return _checked(file, [Part(top / "labels.txt", rows)], names)
    return None


def _of_yaml(file: Path, value: Mapping[str, Any]) -> Annotations:
    names = value["names"]
    try:
        known = {int(i): str(name) for i, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{file}: Expected names as a list or by number, got {names!r}; mend it") from error
    parts = []
    for key, split in SPLIT_KEYS.items():
        places = value.get(key) or ()
        images = [
            image
            for place in ([places] if isinstance(places, str) else places)
            for image in _at(file, value, place, key)
        ]
        if images:
            parts.append(Part(file, _rows(file.parent, images, known), split))
    if not parts:
        raise ConfigError(f"{file}: Expected folders of images under train, val or test, got none; name them")
    return _checked(file, parts, list(known.values()))


def _checked(file: Path, parts: list[Part], names: list[str]) -> Annotations:
    """Raises ConfigError where no image has a label file: then they are elsewhere, and not all pictures are empty."""
    rows = [one for part in parts for one in part.rows]
    bare = sum(one.pop("unlabelled") for one in rows)
    if bare == len(rows):
        raise ConfigError(
            f"{file}: Expected label files in a folder labels beside images, got none for {len(rows)} images; "
            "lay them out as .../images/a.jpg and .../labels/a.txt"
        )
    notes = [f"{bare} images have no label file: pictures of nothing, as YOLO reads them"] if bare else []
    return Annotations("YOLO", parts, names, [file, *(Path(one["labels"]) for one in rows if one["labels"])], notes)


def _at(file: Path, value: Mapping[str, Any], place: str, key: str) -> list[Path]:
    """Images of a folder or list; exports for a training script write "../train/images" where the folder lies beside
    the file."""
    base = Path(str(value.get("path") or "."))
    text = str(place)
    bare = text.removeprefix("../")
    for candidate in (
        file.parent / base / text,
        file.parent / text,
        file.parent / bare,
        file.parent / base.name / bare,
    ):
        if candidate.is_dir():
            return _images(candidate)
        if candidate.is_file() and candidate.suffix == ".txt":
            lines = (line.strip() for line in candidate.read_text(encoding="utf-8").splitlines())
            listed = [candidate.parent / line.removeprefix("./") for line in lines if line]
            return [image if image.is_file() else file.parent / image.name for image in listed]
    if key == "test":
        return []  # exports name one that they do not write
    raise ConfigError(f"{file}: Expected a folder of images at {key}: {text!r}, got none; correct the path")


def _images(folder: Path) -> list[Path]:
    found = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return sorted(file for file in found if not file.name.startswith("."))


def _rows(root: Path, images: list[Path], names: Mapping[int, str]) -> list[Row]:
    """Named below `root` where they are."""
    rows = []
    for image in images:
        place = _labels_of(image)
        below = image.is_relative_to(root)
        found = row(image.relative_to(root).as_posix() if below else str(image.absolute()), (), unit=1.0)
        there = place.is_file()
        found |= {"unlabelled": not there, "labels": str(place) if there else ""}
        if there:
            _read_labels(place, names, found)
        rows.append(found)
    return rows


def _labels_of(image: Path) -> Path:
    """In the folder `labels` at the place of the last `images`, else beside the image."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :]).with_suffix(".txt")
    return image.with_suffix(".txt")


def _read_labels(place: Path, names: Mapping[int, str], found: Row) -> None:
    """Class, centre and size, each a share of the picture; of a polygon the box around it."""
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            label = names[int(float(line.split()[0]))]
            numbers = [float(word) for word in line.split()[1:]]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("numbers that are not finite")
            if len(numbers) in (4, 5):  # the fifth is a confidence
                x, y, width, height = numbers[:4]
                found["boxes"].append([label, x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            elif len(numbers) >= 6 and len(numbers) % 2 == 0:
                across, down = numbers[::2], numbers[1::2]
                found["boxes"].append([label, min(across), min(down), max(across), max(down)])
            else:
                raise ValueError(f"{len(numbers)} numbers")
        except (ValueError, LookupError) as error:
            found["problem"] = (
                f"{place.name} line {number}: Expected a class of {len(names)} and x, y, width and height as shares, "
                f"got {line.strip()[:60]!r} ({error}); mend it"
            )
            return
