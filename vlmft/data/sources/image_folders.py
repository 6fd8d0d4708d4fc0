"""Images in class folders, or with their captions in text files beside them; by split where folders are named so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES
from vlmft.data.sources.locate import SKIPPED
from vlmft.data.sources.split_names import LEFT_OUT, Names, splits_in
from vlmft.data.sources.text import read_text

NOT_IMAGES = frozenset(
    ".txt .caption .md .json .jsonl .csv .tsv .xlsx .parquet .xml .yaml .yml .db .ini .html .py .ipynb .zip .tar "
    ".pdf .url .lnk .log .npy".split()
)
"""Suffixes of files that lie beside images; hidden files do so, too. Every other file is a row, or a bad one."""
CAPTIONS = (".txt", ".caption", ".json")

Row = Mapping[str, Any]


@dataclass
class Found:
    """Rows by split, and what is said about them."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """{"image": path below the root, "class": folder} or {"image", "caption"} and what a .json beside it says."""
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
        found.rows.setdefault(split, []).extend(rows)
    if not splits and not found.captions:
        _by_inner_splits(found, names)
    if left_out := found.rows.pop(LEFT_OUT, []):
        found.notes.append(f"{len(left_out)} images are left out by split_names")
    if not found.captions and (loose := sum(_pictures(folder) for folder in {top, *(f for _, f in splits)})):
        found.notes.append(f"{loose} images lie in no class folder and are not read")
    return found


def descended(root: Path) -> Path:
    """`root`, or the one folder in it, and so on, where there is nothing else: how archives unpack."""
    while not _pictures(root) and len(inner := folders_of(root)) == 1 and folders_of(inner[0]):
        root = inner[0]
    return root


def _splits(top: Path, names: Names) -> list[tuple[str, Path]]:
    """The folders that are splits, in order; [] where folders are classes."""
    said = {folder: splits_in(folder.name, names) for folder in folders_of(top)}
    splits = {folder: next(iter(found)) for folder, found in said.items() if len(found) == 1}
    if "train" not in splits.values() or (len(splits) == 1 and len(said) > 1 and not folders_of(next(iter(splits)))):
        return []  # a class may be called "train", as that of vehicles is
    others = [folder for folder in said if folder not in splits and (folders_of(folder) or _pictures(folder))]
    if others and not any(map(folders_of, splits)):
        return []
    if others:
        told = ", ".join(folder.name for folder in splits)
        raise ConfigError(
            f"data.path: Expected folders that are all splits or all classes in {top}, got {told} beside "
            f"{others[0].name}; move it out, or set data.options.split_names={{{others[0].name}: none}}"
        )
    return [(split, folder) for folder, split in splits.items()]


def _by_inner_splits(found: Found, names: Names) -> None:
    """Classes first, splits below them: class/train/1.png."""
    rows = found.rows["train"]
    said = [splits_in(parts[-2], names) if len(parts := row["image"].split("/")) > 2 else set() for row in rows]
    if not rows or not all(len(one) == 1 for one in said) or {"train"} not in said:
        return
    if any(row["class"] == row["image"].split("/")[-2] for row in rows):
        return
    found.rows, found.declared = {}, True
    for row, (split,) in zip(rows, said, strict=True):
        found.rows.setdefault(split, []).append(row)


def folders_of(root: Path) -> list[Path]:
    hidden = (".", "__MACOSX")
    return sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith(hidden) and f.name not in SKIPPED)


def _pictures(folder: Path) -> int:
    """Images that lie in the folder itself."""
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
    """Of each image below `folder` its caption from the file of its name beside it; None where no image has one."""
    files = list(_files(folder))
    beside = {file: next((t for s in CAPTIONS if (t := file.with_suffix(s)).is_file()), None) for file in files}
    if not any(beside.values()):
        return None
    return [{"image": file.relative_to(root).as_posix(), **_caption(text)} for file, text in beside.items()]


def _caption(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {"caption": None}
    text = read_text(file).text.strip()
    if file.suffix != ".json":
        return {"caption": text}
    try:
        found = json.loads(text)
    except ValueError:
        return {"caption": None}
    return found if isinstance(found, dict) else {"caption": found}


def listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
