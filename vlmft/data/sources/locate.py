"""Where a table's images lie: beside it, in a folder that has their names, or in `data.options.images`.

No name leads out: a file is read only below the data folder, the folder of images that was named, or the one that was
found beside the annotations.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote, urlsplit

from vlmft.config.check import ConfigError
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES, LABEL_STUDIO_PATH
from vlmft.sample import BadRowError

MOST_FOLDERS, MOST_DEPTH = 3_000, 3
"""Folders that are looked into for images that are not where their names say."""
SAMPLED_NAMES = 64
LAST_NUMBER = re.compile(r"(\d+)$")
SKIPPED = ("__MACOSX", "__pycache__", "node_modules")
ADDED_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".JPG", ".PNG")


@dataclass(frozen=True)
class ImageFolders:
    """Where the images of one table's rows are looked for."""

    root: Path
    """The table's own folder, where names begin."""
    top: Path
    """The data folder: nothing above it is read."""
    named: Path | None = None
    """`data.options.images`: names begin there and nowhere else."""
    found: Path | None = None
    """A folder that has the names, looked for because `root` has them not."""
    strip: str = ""
    """How names begin that is left out below `found`."""
    numbers: Mapping[int, str] = field(default_factory=dict, hash=False, compare=False)
    """Of images that rows call by a number: the file's name in `found`."""

    def file(self, value: str | int) -> Path:
        """The file that a row names; the path is not resolved, so that a link's change shows in the file's stamp.

        Raises:
            BadRowError: it would lie outside, or there is none.
        """
        return _located(self, value)

    def _places(self, text: str) -> Iterator[tuple[Path, Path]]:
        """(path, the folder that it must not leave) in the order in which they are tried."""
        if self.named is not None:
            yield self.named / text, self.named
            return
        yield self.root / text, self.top
        if self.found is not None and text.startswith(self.strip):
            yield self.found / text.removeprefix(self.strip), self.found


@lru_cache(maxsize=1 << 16)
def _located(folders: ImageFolders, value: str | int) -> Path:
    if folders.numbers:
        name = folders.numbers.get(int(value)) if str(value).isdigit() else None
        if name is not None and folders.found is not None:
            return folders.found / name
    text = plain_name(str(value))
    spelled = [text, *([text.replace("\\", "/")] if "\\" in text else [])]
    if PurePosixPath(text).suffix.lower() not in IMAGE_SUFFIXES:
        spelled += [f"{name}{suffix}" for name in spelled for suffix in ADDED_SUFFIXES]
    for name in spelled:
        for path, fence in folders._places(name):
            if _is_file(path, fence, name):
                return path
    raise BadRowError(_missing(folders, text))


def plain_name(text: str) -> str:
    """A path out of a file:// address, or without what Label Studio writes before it."""
    text = text.strip()
    if text.lower().startswith("file:"):
        return unquote(urlsplit(text).path)
    return LABEL_STUDIO_PATH.sub("", text)


def _is_file(path: Path, fence: Path, name: str) -> bool:
    """Raises BadRowError for a path that leaves `fence`, by its own words or over a link."""
    inside = Path(os.path.normpath(path.absolute()))  # ".." is taken by its words: what it leads to is resolved below
    if not inside.is_relative_to(Path(os.path.normpath(fence.absolute()))):
        raise BadRowError(
            f"Expected an image path below the data folder {fence}, got {name!r}; set data.options.images to its folder"
        )
    try:
        if not path.is_file():
            return False
        if path.resolve().is_relative_to(fence.resolve()):
            return True
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        raise BadRowError(f"Expected an image path, got {name!r} ({error}); mend it") from error
    raise BadRowError(f"Expected an image inside {fence}, got a link out of it at {name!r}; copy the file")


def _missing(folders: ImageFolders, text: str) -> str:
    place = folders.named or folders.root
    hint = "check the path" if folders.named else "check the path, or set data.options.images to the images' folder"
    parent = place / PurePosixPath(text).parent
    try:
        names = [f.name for f in parent.iterdir()] if parent.is_dir() and ".." not in parent.parts else []
    except (OSError, ValueError):
        names = []
    if same := [name for name in names if name.lower() == PurePosixPath(text).name.lower()]:
        hint = f"there is {same[0]!r}, in other letter case: rename one"
    return f"Expected an image file {text!r} in {place}, got none; {hint}"


def settled(folders: ImageFolders, values: Sequence[str | int], beside: bool) -> tuple[ImageFolders, str]:
    """`folders`, with a folder found for a table's sampled names where its own folder has them not; and a sentence.

    `beside`: whether folders beside the data folder may be looked into, too: the user named a single file.

    Raises:
        ConfigError: two folders have the names, and they are other files.
    """
    if folders.named is not None or not values:
        return folders, ""
    every = max(1, len(values) // SAMPLED_NAMES)
    some = [*dict.fromkeys(values[::every])][: 2 * SAMPLED_NAMES]
    if all(str(value).isdigit() for value in some):
        return _by_number(folders, [int(value) for value in some], beside)
    names = [plain_name(str(value)).replace("\\", "/") for value in some]
    names = [name for name in names if not PurePosixPath(name).is_absolute() and not PureWindowsPath(name).drive]
    if not names or any(_exists(folders.root, name) for name in names):
        return folders, ""
    for least, near in ((len(names), True), (len(names), False), (1, True)):
        # all names in the data folder; all of them beside it, where a single file was named; else some in the former
        if near or beside:
            fits: dict[tuple[str, ...], ImageFolders] = {}
            for folder, strip in itertools.product(
                _folders(folders.top if near else folders.top.parent), _strips(names)
            ):
                here = [os.path.realpath(folder / n.removeprefix(strip)) for n in names if _exists(folder, n, strip)]
                if len(here) >= least:
                    fits.setdefault(tuple(here), replace(folders, found=folder, strip=strip))
            if fits:
                return _only_fit(folders, list(fits.values()))
    return folders, ""


def _exists(folder: Path, name: str, strip: str = "") -> bool:
    if not name.startswith(strip) or ".." in name.split("/"):
        return False
    path = folder / name.removeprefix(strip)
    try:
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
            return path.is_file()
        return any(path.with_name(path.name + suffix).is_file() for suffix in ("", *ADDED_SUFFIXES))
    except (OSError, ValueError):
        return False


def _only_fit(folders: ImageFolders, fits: Sequence[ImageFolders]) -> tuple[ImageFolders, str]:
    if not fits:
        return folders, ""
    if len(fits) > 1:
        told = " and in ".join(sorted(str(fit.found) for fit in fits)[:3])
        raise ConfigError(f"data.options.images: the image names stand in {told}, and the files differ; say which")
    (fit,) = fits
    return fit, f"images are taken from {fit.found}, which has their names (data.options.images)"


def _strips(names: Sequence[str]) -> list[str]:
    """ "", and what all names begin with, folder by folder."""
    common = PurePosixPath(os.path.commonpath([PurePosixPath(name).parent for name in names]) or ".")
    parts = common.parts
    return ["", *("/".join(parts[:n]) + "/" for n in range(1, len(parts) + 1))]


def _folders(top: Path) -> Iterator[Path]:
    """`top` and every folder in which images may lie below it, the nearest first."""
    seen, level = 0, [top]
    for _ in range(MOST_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            if seen >= MOST_FOLDERS:
                return
            seen += 1
            yield folder
            below += _subfolders(folder)
        level = below


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # not for this user
        return []
    return [folder / name for name in sorted(found) if not name.startswith(".") and name not in SKIPPED]


def _by_number(folders: ImageFolders, numbers: Sequence[int], beside: bool) -> tuple[ImageFolders, str]:
    """Images by the number at the end of their names, as COCO's: 9 is COCO_train2014_000000000009.jpg."""
    fits: list[ImageFolders] = []
    for folder in itertools.chain(_folders(folders.top), _folders(folders.top.parent) if beside else ()):
        if fits and not folder.is_relative_to(folders.top):
            break
        index: dict[int, str] = {}
        twice = set()
        for file in sorted(folder.iterdir()):
            match = LAST_NUMBER.search(file.stem)
            if match and file.suffix.lower() in IMAGE_SUFFIXES:
                twice |= {int(match[1])} & index.keys()
                index[int(match[1])] = file.name
        if index.keys() >= set(numbers) and not twice & set(numbers):
            fits.append(replace(folders, found=folder, numbers=index))
    found, told = _only_fit(folders, fits)
    return found, told.replace("has their names", "has files that end in their numbers")
