"""Where a table's images are: beside it, in a folder that has their names, or in `data.options.images`.

Files are read only below the data folder, the folder of images that was named, or the one that was found beside the
annotations.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias
from urllib.parse import unquote

from vlmft.config.check import ConfigError
from vlmft.data.sources.files import SUFFIXES
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES, LABEL_STUDIO_PATH
from vlmft.data.sources.split_names import SPLIT_NAMES, splits_in
from vlmft.sample import BadRowError

MOST_FOLDERS, MOST_DEPTH = 3_000, 3
"""Limits on the search for images that are not where their names say."""
SAMPLED_NAMES = 64
LAST_NUMBER = re.compile(r"(\d+)$")
SKIPPED = ("__MACOSX", "__pycache__", "node_modules")
ADDED_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".JPG", ".PNG")


@dataclass(frozen=True)
class ImageFolders:
    """Where the images of one table's rows are searched."""

    root: Path
    """The table's own folder, where names begin."""
    top: Path
    """The data folder: nothing outside it is read."""
    named: Path | None = None
    """`data.options.images`: names begin there and nowhere else."""
    found: tuple[Path, ...] = ()
    """Folders that have the names, found by a search because `root`, or `named`, does not have them."""
    strip: str = ""
    """Prefix of the names that is removed below `found`."""
    numbers: Mapping[int, str] = field(default_factory=dict, hash=False, compare=False)
    """For images that rows name by a number: the file's name in the only folder of `found`."""

    def file(self, value: str | int) -> Path:
        """The file that a row names; the path is not resolved, so that a link's change shows in the file's stamp.

        Raises:
            BadRowError: it would lie outside, or there is none.
        """
        return _located(self, value)

    def has(self, value: object) -> bool:
        """Whether a row's value names an existing file."""
        try:
            return isinstance(value, (str, int)) and self.file(value).is_file()
        except BadRowError:
            return False

    def _places(self, text: str) -> Iterator[tuple[Path, Path]]:
        """(path, the folder that it must stay in), in the order in which they are tried."""
        if not self.found or not (_foreign(text) or text.startswith("../")):
            yield (self.root / text, self.top) if self.named is None else (self.named / text, self.named)
        bare = _bare(text)
        if bare.startswith(self.strip):
            yield from ((folder / bare.removeprefix(self.strip), folder) for folder in self.found)


@lru_cache(maxsize=1 << 16)
def _located(folders: ImageFolders, value: str | int) -> Path:
    if folders.numbers and str(value).isdigit():
        if int(value) in folders.numbers:
            return folders.found[0] / folders.numbers[int(value)]
        raise BadRowError(f"Expected an image whose name ends in {int(value)} in {folders.found[0]}, got none; add it")
    text = plain_name(str(value))
    spelled = [text, *([text.replace("\\", "/")] if "\\" in text else [])]
    spelled += [unquote(text)] if "%" in text else []
    spelled += [] if text.isascii() else [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    for name in spelled:
        if path := _only_file([(*place, name) for place in folders._places(name)]):
            return path
    if PurePosixPath(text).suffix.lower() not in IMAGE_SUFFIXES:
        longer = [f"{name}{suffix}" for name in spelled for suffix in ADDED_SUFFIXES]
        if path := _only_file([(*place, name) for name in longer for place in folders._places(name)]):
            return path
    raise BadRowError(_missing(folders, text))


def _only_file(places: Iterable[tuple[Path, Path, str]]) -> Path | None:
    """The only existing path of (path, fence, name); raises BadRowError for two files, and as `_is_file`."""
    files = [path for path, fence, name in places if _is_file(path, fence, name)]
    there = {(file.stat().st_dev, file.stat().st_ino): file for file in reversed(files)}
    if len(there) > 1:
        several = " and ".join(map(str, sorted(there.values())[:2]))
        raise BadRowError(f"Expected one image of that name, got {several}; write its suffix or folder into the row")
    return next(iter(there.values()), None)


def _foreign(text: str) -> bool:
    """Whether a path begins at the root of this computer or of another."""
    return PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive)


def _bare(text: str) -> str:
    """A path without its drive, its root and the steps up at its beginning."""
    parts = PureWindowsPath(text).parts if PureWindowsPath(text).drive else PurePosixPath(text).parts
    kept = itertools.dropwhile(lambda part: part == ".." or part.endswith(("/", "\\")), parts)
    return "/".join(kept)


def plain_name(text: str) -> str:
    """A path out of a file:// address, or without what Label Studio writes before it."""
    text = text.strip()
    if text.lower().startswith("file:"):
        path = unquote(text[len("file:") :])
        host, slash, below = path.removeprefix("//").partition("/") if path.startswith("//") else ("", "", path)
        path = f"{slash}{below}" if slash or not host else host
        return path[1:] if PureWindowsPath(path[1:]).drive else path
    return LABEL_STUDIO_PATH.sub("", text)


def _is_file(path: Path, fence: Path, name: str) -> bool:
    """Raises BadRowError for a path that leaves `fence`, by ".." or over a link."""
    shown = f"{name[:200]!r}"
    inside = Path(os.path.normpath(path.absolute()))  # ".." by text only: links are resolved below
    if not inside.is_relative_to(Path(os.path.normpath(fence.absolute()))):
        raise BadRowError(
            f"Expected an image path below the data folder {fence}, got {shown}; set data.options.images to its folder"
        )
    try:
        if not path.is_file():
            return False
        if path.resolve().is_relative_to(fence.resolve()):
            return True
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        raise BadRowError(f"Expected an image path, got {shown} ({error}); fix it") from error
    raise BadRowError(
        f"Expected an image inside {fence}, got a link out of it at {shown}; copy the file, or set "
        "data.options.images to the folder that the link leads to"
    )


def _missing(folders: ImageFolders, text: str) -> str:
    place = folders.named or folders.root
    hint = "check the path" if folders.named else "check the path, or set data.options.images to the images' folder"
    parent = place / PurePosixPath(text).parent
    try:
        names = _names_in(parent) if ".." not in parent.parts else ()
    except (OSError, ValueError):
        names = ()
    name = PurePosixPath(text).name.lower()
    if same := [other for other in names if other.lower() == name]:
        hint = f"there is {same[0]!r}, which differs in case: rename one"
    elif same := [other for other in names if PurePosixPath(other).stem.lower() == PurePosixPath(name).stem]:
        hint = f"there is {same[0]!r}: fix the suffix"
    return f"Expected an image file {text[:200]!r} in {place}, got none; {hint}"


@lru_cache(maxsize=8)
def _names_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(file.name for file in folder.iterdir())) if folder.is_dir() else ()


def settled(folders: ImageFolders, values: Sequence[str | int], split: str, beside: bool) -> tuple[ImageFolders, str]:
    """`folders`, with folders found for a table's sampled names if its own folder does not have them; and a note.

    `split`: that of the rows, which chooses between folders that are named like splits. `beside`: whether folders
    beside the data folder may be searched, too, where there are none below it: the user named a single file.

    Raises:
        ConfigError: two folders have the same names for different files.
    """
    every = max(1, len(values) // SAMPLED_NAMES)
    some = [*dict.fromkeys(values[::every])][: 2 * SAMPLED_NAMES]
    if not some:
        return folders, ""
    if all(str(value).isdigit() for value in some):
        return _by_number(folders, [int(value) for value in some], split, beside)
    names = [plain_name(str(value)).replace("\\", "/") for value in some]
    own = folders.named or folders.root
    if any(_exists(own, name) for name in names):
        return folders, ""
    bare = [_bare(name) for name in names if not _exists(own, name)]
    begins = {strip: _first_parts(bare, strip) for strip in _strips(bare)}
    for place, least in _stages(folders, len(bare), beside):
        fits = [
            (folder, strip, here)
            for folder, entries in _folders(folders, place)
            for strip, firsts in begins.items()
            if not firsts.isdisjoint(entries)  # thousands of folders are searched: most end here
            if (here := {name: path for name in bare if (path := _existing(folder, name, strip)) is not None})
        ]
        for strip in begins:  # the longer the part of a name that matches, the better
            same = [fit for fit in fits if fit[1] == strip]
            if same and max(len(here) for *_, here in same) >= least:
                if place == folders.top.parent and len({frozenset(here.items()) for *_, here in same}) > 1:
                    break  # several folders beside the data could be meant: none is taken
                return _fitting(folders, same, split)
    return folders, ""


def _stages(folders: ImageFolders, every: int, beside: bool) -> list[tuple[Path, int]]:
    """(where to look, how many names must be there): all below the table, else all in the data folder, else all beside
    that, else some in it."""
    if folders.named is not None:
        return [(folders.named, 1)]
    near = [(folders.root, every), (folders.top, every), (folders.top, 1)]
    return [*near[:2], (folders.top.parent, every), near[2]] if beside else near


Fit: TypeAlias = "tuple[Path, str, Mapping[str, str]]"
"""A folder, the prefix that is removed from names, and the files of the names that it has."""


def _exists(folder: Path, name: str) -> bool:
    return ".." not in name.split("/")[:1] and _existing(folder, name, "") is not None


def _existing(folder: Path, name: str, strip: str) -> str | None:
    """The file of that name, resolved."""
    if not name.startswith(strip):
        return None
    path = folder / name.removeprefix(strip)
    ends = ("",) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES else ("", *ADDED_SUFFIXES)
    try:
        there = (path.with_name(path.name + end) for end in ends if path.name)
        return next((os.path.realpath(file) for file in there if file.is_file()), None)
    except (OSError, ValueError):
        return None


def _fitting(folders: ImageFolders, fits: Sequence[Fit], split: str) -> tuple[ImageFolders, str]:
    """The fit with the most names; several folders if no name is in two of them."""
    most = max(len(here) for *_, here in fits)
    best = [fit for fit in fits if len(fit[2]) == most]
    named = [fit for fit in best if splits_in(fit[0].name, SPLIT_NAMES) == {split}]
    best = named if len({frozenset(here.items()) for *_, here in best}) > 1 and named else best
    used = best[:1]
    if len({frozenset(here.items()) for *_, here in best}) > 1 or (not named and most < len(_names_of(fits))):
        used = [fit for fit in fits if fit[1] == best[0][1]]
        if sum(len(here) for *_, here in used) > len(_names_of(used)):
            raise ConfigError(_twice([fit[0] for fit in best]))
    found = tuple(dict.fromkeys(folder for folder, *_ in used))
    places = " and ".join(map(str, found))
    left_out = f", without the {used[0][1]!r} at their beginning" if used[0][1] else ""
    note = f"images are taken from {places}, which has their names{left_out} (data.options.images)"
    return replace(folders, found=found, strip=used[0][1]), note


def _names_of(fits: Sequence[Fit]) -> set[str]:
    return {name for *_, here in fits for name in here}


def _twice(places: Sequence[Path]) -> str:
    folders = " and in ".join(sorted({str(place) for place in places})[:3])
    return f"data.options.images: different files have the images' names in {folders}; name the folder"


def _strips(names: Sequence[str]) -> list[str]:
    """ "", and what all names begin with, folder by folder."""
    common = PurePosixPath(os.path.commonpath([PurePosixPath(name).parent for name in names]) or ".")
    parts = common.parts
    return ["", *("/".join(parts[:n]) + "/" for n in range(1, len(parts) + 1))]


def _first_parts(names: Sequence[str], strip: str) -> set[str]:
    """First parts of the names below `strip`: a folder, or a file, also with a suffix that the name lacks."""
    parts = [name.removeprefix(strip).split("/") for name in names if name.startswith(strip)]
    lone = {first for first, *rest in parts if not rest}
    return {first for first, *_ in parts} | {first + end for first in lone for end in ADDED_SUFFIXES}


def _folders(folders: ImageFolders, top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every folder that may hold images and what is in it, `top` first, at most `MOST_FOLDERS`.

    Beside the data folder, folders with tables are skipped: the images there belong to other data.
    """
    seen, level = 0, [top]
    for depth in range(MOST_DEPTH + 1 if folders.named is None else 1):
        if depth == 1 and top == folders.top.parent:
            level = [folder for folder in level if folder != folders.top and not _has_tables(folder)]
        below: list[Path] = []
        for folder in level:
            if seen >= MOST_FOLDERS:
                return
            seen += 1
            entries, inner = _listed(folder)
            yield folder, entries
            below += inner
        level = below


def _has_tables(folder: Path) -> bool:
    names, inner = _listed(folder)
    below = (name for one in inner[:50] for name in _listed(one)[0])
    return any(PurePosixPath(name).suffix.lower() in SUFFIXES for name in itertools.chain(names, below))


def _listed(folder: Path) -> tuple[set[str], list[Path]]:
    """The names in a folder, and the folders in it."""
    try:
        with os.scandir(folder) as found:
            names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in found}
    except OSError:  # no permission
        return set(), []
    inner = sorted(name for name, is_folder in names.items() if is_folder)
    return set(names), [folder / name for name in inner if not name.startswith(".") and name not in SKIPPED]


def _by_number(folders: ImageFolders, numbers: Sequence[int], split: str, beside: bool) -> tuple[ImageFolders, str]:
    """Images by the number at the end of their names, as COCO's: 9 is COCO_train2014_000000000009.jpg."""
    wanted = set(numbers)
    for place, least in _stages(folders, len(wanted), beside):
        indices = ((folder, _numbered(entries)) for folder, entries in _folders(folders, place))
        fits = [(folder, index) for folder, index in indices if len(wanted & index.keys()) >= least]
        fits = [fit for fit in fits if splits_in(fit[0].name, SPLIT_NAMES) == {split}] or fits
        if len(fits) > 1 and place != folders.top.parent:
            raise ConfigError(_twice([folder for folder, _ in fits]))
        if len(fits) == 1:
            ((folder, index),) = fits
            note = f"images are taken from {folder}, which has files that end in their numbers (data.options.images)"
            return replace(folders, found=(folder,), numbers=index), note
    return folders, ""


def _numbered(names: Iterable[str]) -> dict[int, str]:
    """The images of a folder by the number at the end of their names, without numbers that two of them have."""
    index: dict[int, str] = {}
    twice = set()
    for name in sorted(names):
        stem, _, suffix = name.rpartition(".")
        match = LAST_NUMBER.search(stem)
        if match and f".{suffix.lower()}" in IMAGE_SUFFIXES:
            twice |= {int(match[1])} & index.keys()
            index[int(match[1])] = name
    return {number: name for number, name in index.items() if number not in twice}
