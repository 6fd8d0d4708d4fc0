"""What stands in one field of a source's row, as text, answers or images. Anything else makes a bad row."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

from vlmft.data.images import image_from_bytes, image_inside, open_image
from vlmft.sample import BadRowError, Image

PRINTED_LIST = re.compile(r"""\[\s*['"].*['"]\s*\]""", re.DOTALL)
"""What `str` makes of a list of texts: "['91.1']". ChartQA's own "[2003, 2009]" has no quotes and is a gold text."""


def text_of(field: str, value: object) -> str:
    """A text or number as stripped text.

    Raises:
        BadRowError: empty, another type, or a list that was printed into a text.
    """
    number = isinstance(value, (int, float)) and math.isfinite(value)
    if not number and (not isinstance(value, str) or not value.strip()):
        raise BadRowError(f"Expected a text as {field}, got {value!r}; drop the row or fill it in")
    text = str(value).strip()
    if PRINTED_LIST.fullmatch(text):
        raise BadRowError(f"Expected the text of {field} itself, got a printed list {text!r}; store the list's text")
    return text


def texts_of(field: str, value: object) -> tuple[str, ...]:
    """A text, or a list of them without repetitions; raises BadRowError as `text_of` and for an empty list."""
    texts = tuple(dict.fromkeys(text_of(field, part) for part in (value if isinstance(value, list) else [value])))
    if not texts:
        raise BadRowError(f"Expected a text as {field}, got an empty list; drop the row or fill it in")
    return texts


def images_of(value: object, root: Path | None, name: str) -> tuple[Image, ...]:
    """One image or a list of them: paths below `root`, bytes, or the {"bytes", "path"} of `datasets`; none for null.

    Raises:
        BadRowError: an address, a path outside `root`, no such file, or something that is no image.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(_image_of(part, root, f"{name} image {number}") for number, part in enumerate(value, start=1))
    return (_image_of(value, root, name),)


def _image_of(value: object, root: Path | None, name: str) -> Image:
    if isinstance(value, Mapping):
        stored = value.get("bytes")
        value = stored if isinstance(stored, bytes) else value.get("path")
    if isinstance(value, bytes):
        return image_from_bytes(value, name)
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"Expected an image's path or bytes, got {type(value).__name__}; fill it in or drop the row")
    if "://" in value or value.startswith("data:"):
        raise BadRowError(f"Expected an image file, got the address {value[:60]!r}; download it, rows ask no network")
    if root is None:  # a path alone could name any file of this computer
        raise BadRowError("Expected an image stored in its row, got a path; write the parquet file with its images")
    return Image(partial(open_image, _located(root, value)), value)


@lru_cache(maxsize=1 << 16)
def _located(root: Path, value: str) -> Path:
    """The file, looked for once: many rows may name it. One that is not there is looked for each time.

    Its path is the one that the row names, links and all: where a link leads elsewhere tomorrow, size and time tell.
    """
    whole, path = root.absolute(), Path(value)
    inside = path.is_absolute() and path.is_relative_to(whole)
    image_inside(root, path.relative_to(whole).as_posix() if inside else value)
    return whole / value
