"""Images in class folders, or with captions in text files beside them; by split if folders are named like splits."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES
from vlmft.data.sources.locate import SKIPPED
from vlmft.data.sources.roles import some_of
from vlmft.data.sources.split_names import LEFT_OUT, SPLIT_NAMES, Names, splits_in
from vlmft.data.sources.text import read_text

NOT_IMAGES = frozenset(
    ".txt .caption .md .json .jsonl .csv .tsv .xlsx .parquet .xml .yaml .yml .db .ini .html .py .ipynb .zip .tar "
    ".pdf .url .lnk .log .npy".split()
)
"""Suffixes of files that are ignored beside images, as hidden files are. Every other file is a row, or a bad one."""
CAPTIONS = (".txt", ".caption", ".json")
NO_CLASSES = frozenset(
    "images image imgs img pictures photos jpegimages files masks mask labels annotations captions depth".split()
)
"""Names of folders that hold images or annotations and are not classes."""
REPEATS = re.compile(r"\d+_.+")
"""Folder names of kohya's scripts: the number is how often the images come in an epoch."""

Row = Mapping[str, Any]


@dataclass
class Found:
    """Rows by split, and notes about them."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """{"image": path below the root, "class": folder} or {"image", "caption"} and the fields of a .json beside it."""
    captions: bool = False
    declared: bool = False
    notes: list[str] = field(default_factory=list)


def image_rows(root: Path, names: Names) -> Found:
    """The images below `root` with their classes or captions.

    Raises:
        ConfigError: there are none; folders of which some are splits and others classes; a split without classes.
    """
    top = descended(root)
    found = Found()
    splits = _splits(top, names)
    found.declared = bool(splits)
    for split, folder in splits or [("train", top)]:
        rows = caption_rows(root, folder)
        found.captions |= rows is not None
        if rows is None:
            rows = class_images(root, descended(folder))
            if splits and not rows and _pictures(folder):
                raise ConfigError(
                    f"data.path: Expected a folder for each class in {folder}, got images; sort them, write a "
                    f"metadata.csv, or leave them out (data.options.split_names={{{folder.name}: none}})"
                )
        else:
            found.notes += _caption_notes(folder)
        found.rows.setdefault(split, []).extend(rows)
    if not splits and not found.captions:
        _by_inner_splits(found, names)
    if left_out := found.rows.pop(LEFT_OUT, []):
        found.notes.append(f"{len(left_out)} images are left out by split_names")
    if not found.captions and (loose := sum(_pictures(folder) for folder in {top, *(f for _, f in splits)})):
        found.notes.append(f"{loose} images lie in no class folder and are not read")
    _require_classes(found, top)
    return found


def _require_classes(found: Found, top: Path) -> None:
    """Raises ConfigError where folders are not classes, or several hold folders of the same names."""
    by_split = {split: {row["class"] for row in rows if "class" in row} for split, rows in found.rows.items()}
    for names in map(sorted, filter(None, by_split.values())):
        if all(name.lower() in NO_CLASSES or name.lower() in SPLIT_NAMES for name in names):
            raise ConfigError(
                f"data.path: Expected a folder for each class in {top}, got {some_of(names, 6)}; sort the images into "
                "classes, write their answers into a table (data=columns), put a .txt beside each, or remove them"
            )
    inner: dict[str, set[str]] = {}
    for row in itertools.chain(*found.rows.values()):
        within = row["image"].split("/")[-2:-1]
        if "class" in row and within != [row["class"]] and within[0].lower() not in SPLIT_NAMES:
            inner.setdefault(within[0], set()).add(row["class"])
    shared = sorted(name for name, classes in inner.items() if len(classes) > 1)
    if len(shared) > 1:
        one, other = sorted(inner[shared[0]])[:2]
        raise ConfigError(
            f"data.path: Expected classes in one level of folders, got {some_of(shared, 6)} in {one} and in {other}; "
            f"move the classes up, or set data.options.split_names={{{one}: train, {other}: val}} if those are splits"
        )
    found.notes += _class_notes(by_split, sorted(inner) if not shared else [])


def _class_notes(by_split: Mapping[str, set[str]], inner: Sequence[str]) -> list[str]:
    notes = [f"folders within class folders are not read as classes: {some_of(inner, 6)}"] if inner else []
    known = by_split.get("train", set())
    for split in ("val", "test"):
        if known and (new := sorted(by_split.get(split, set()) - known)):
            notes.append(f"classes of {split} that train does not have: {some_of(new, 6)}")
    if known and all(map(REPEATS.fullmatch, known)):
        notes.append(f"the number in a folder name, such as {min(known)!r}, is read as part of the class")
    return notes


def _caption_notes(folder: Path) -> list[str]:
    texts = {file: found for file in _files(folder) if len(found := _beside(file)) > 1}
    several = [file for file, found in texts.items() if len({text.read_bytes().strip() for text in found}) > 1]
    repeats = [f.name for f in folders_of(folder) if REPEATS.fullmatch(f.name)]
    notes = []
    if several:
        notes.append(f"{len(several)} images have several text files, such as {several[0].name}; .txt is read")
    if repeats:
        notes.append(f"numbers in folder names, such as {repeats[0]}, do not repeat images")
    return notes


def _beside(file: Path) -> list[Path]:
    """The text files that belong to an image: a.txt or a.png.txt of a.png."""
    names = (place for end in CAPTIONS for place in (file.with_suffix(end), file.with_name(file.name + end)))
    return [place for place in names if place.is_file()]


def descended(root: Path) -> Path:
    """`root`, or the only folder in it, and so on, as archives unpack."""
    while not _pictures(root) and len(inner := folders_of(root)) == 1 and folders_of(inner[0]):
        root = inner[0]
    return root


def _splits(top: Path, names: Names) -> list[tuple[str, Path]]:
    """The folders that are splits, in order; [] where folders are classes."""
    named = {folder: splits_in(folder.name, names) for folder in folders_of(top)}
    splits = {folder: next(iter(found)) for folder, found in named.items() if len(found) == 1}
    alone = len(set(splits.values())) > 1 and len(splits) == len(named) and all(map(folders_of, splits))
    if ("train" not in splits.values() and not alone) or (
        len(splits) == 1 and len(named) > 1 and not folders_of(next(iter(splits)))
    ):
        return []  # a class may be called "train": the vehicle
    others = [folder for folder in named if folder not in splits and (folders_of(folder) or _pictures(folder))]
    if others and not any(map(folders_of, splits)):
        return []
    if others:
        names_of_splits = ", ".join(folder.name for folder in splits)
        raise ConfigError(
            f"data.path: Expected folders that are all splits or all classes in {top}, got {names_of_splits} beside "
            f"{others[0].name}; move it out, or set data.options.split_names={{{others[0].name}: none}}"
        )
    return [(split, folder) for folder, split in splits.items()]


def _by_inner_splits(found: Found, names: Names) -> None:
    """Classes first, splits below them: class/train/1.png."""
    rows = found.rows["train"]
    inner = [splits_in(parts[-2], names) if len(parts := row["image"].split("/")) > 2 else set() for row in rows]
    if not rows or not all(len(splits) == 1 for splits in inner) or {"train"} not in inner:
        return
    if any(row["class"] == row["image"].split("/")[-2] for row in rows):
        return
    found.rows, found.declared = {}, True
    for row, (split,) in zip(rows, inner, strict=True):
        found.rows.setdefault(split, []).append(row)


def folders_of(root: Path) -> list[Path]:
    hidden = (".", "__MACOSX")
    return sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith(hidden) and f.name not in SKIPPED)


def _pictures(folder: Path) -> int:
    """How many images are in the folder itself."""
    return sum(
        f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".") for f in folder.iterdir() if f.is_file()
    )


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        inside = not any(part.startswith((".", "__MACOSX")) for part in file.relative_to(folder).parts)
        if inside and file.suffix.lower() not in NOT_IMAGES and file.is_file():
            yield file


def class_images(root: Path, folder: Path) -> list[dict[str, Any]]:
    """{"image": path below `root`, "class": name of the folder} of each file below `folder`'s folders."""
    return [
        {"image": file.relative_to(root).as_posix(), "class": inner.name}
        for inner in folders_of(folder)
        for file in _files(inner)
    ]


def caption_rows(root: Path, folder: Path) -> list[dict[str, Any]] | None:
    """Each image below `folder` with its caption, from the text file beside it; None where no image has one."""
    files = list(_files(folder))
    beside = {file: next(iter(_beside(file)), None) for file in files}
    if not any(beside.values()):
        return None
    return [{"image": file.relative_to(root).as_posix(), **_caption(file, text)} for file, text in beside.items()]


NO_CAPTION = ""
"""Key of the reason why a row has no caption; a column without a name is not listed as unread."""


def _caption(image: Path, file: Path | None) -> dict[str, Any]:
    if file is None:
        return {"caption": None, NO_CAPTION: f"no file such as {image.with_suffix('.txt').name} beside {image.name}"}
    text = read_text(file).text.strip()
    if file.suffix != ".json":
        return {"caption": text} if text else {"caption": None, NO_CAPTION: f"an empty file {file.name}"}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {"caption": None, NO_CAPTION: f"a file {file.name} that is not JSON ({error})"}
    return found if isinstance(found, dict) else {"caption": found}
