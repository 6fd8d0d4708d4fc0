"""The value of one field of a source's row, as text or images. Any other value makes a bad row."""

from __future__ import annotations

import ast
import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from vlmft.data.images import image_at, image_from_bytes
from vlmft.data.sources.json_forms import is_image_name
from vlmft.data.sources.locate import ImageFolders
from vlmft.sample import BadRowError, Image

MARK = "<image>"
"""Marks the place of the row's next image in a text."""
MARK_LIKE = re.compile(
    r"<\s*/?\s*(?:image|img|im)[ _-]?(?:\d+|placeholder|start|end|here|token)?\s*/?\s*>"
    r"|<\|(?:image|vision|img)[^<>|]*\|>|<(?:video|audio)>",
    re.IGNORECASE,
)
"""Marks of other formats for the place of an image, a video or audio in a question."""
UNSOUND = re.compile("[\0\ud800-\udfff]")
"""A zero byte and lone surrogates, which valid UTF-8 text does not have: left by a broken conversion."""
PRINTED_LIST = re.compile(r"""\[\s*['"].*['"]\s*\]""", re.DOTALL)
"""The `str` of a list of texts: "['91.1']". ChartQA's own "[2003, 2009]" has no quotes and is a gold text."""
PRINTED_DICT = re.compile(r"\{\s*'.*:.*\}", re.DOTALL)
BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{64,}={0,2}\s*")
"""The minimum length is longer than any path without a dot."""
LONGEST_NAME = 1000
SEPARATORS = (";", "|", ",", "\n")
"""Between several images in one cell of a table."""


def text_of(field: str, value: object) -> str:
    """A text, number or truth value as stripped text, the last as JSON writes it.

    Raises:
        BadRowError: empty, another type, or a list or dict that Python printed into a text.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    number = isinstance(value, (int, float)) and math.isfinite(value)
    if not number and (not isinstance(value, str) or not value.strip()):
        raise BadRowError(f"Expected a text as {field}, got {value!r}; drop the row or fill it in")
    text = str(value).strip()
    if UNSOUND.search(text):
        raise BadRowError(f"Expected a text as {field}, got {text[:80]!r} with a zero byte or a lone surrogate; fix it")
    if (PRINTED_LIST.fullmatch(text) or PRINTED_DICT.fullmatch(text)) and not _is_json(text):
        kind = "list" if text.startswith("[") else "dict"
        raise BadRowError(f"Expected the text of {field} itself, got a printed {kind} {text!r}; store it as JSON")
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def listed_text(text: object) -> object:
    """The list that a table's cell holds as text, in JSON or as Python prints it; any other value as it is."""
    if not isinstance(text, str) or not (text := text.strip()).startswith("[") or not text.endswith("]"):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return text


def texts_of(field: str, value: object) -> tuple[str, ...]:
    """A text, or the texts of a list, repetitions kept: how often an answer was given counts for some metrics.

    Also VQA's objects with an `answer`. Raises BadRowError as `text_of`, and for an empty list.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    parts = [part["answer"] if isinstance(part, Mapping) and "answer" in part else part for part in parts]
    if not parts:
        raise BadRowError(f"Expected a text as {field}, got an empty list; drop the row or fill it in")
    return tuple(text_of(field, part) for part in parts)


def images_of(value: object, folders: ImageFolders | None, name: str) -> tuple[Image, ...]:
    """One image or a list of them: paths, data URIs, base64, bytes, or the {"bytes", "path"} of `datasets`.

    None for null. Several in one text, as tables hold them, are a list in JSON or Python, or paths by ";", "|" or ",".

    Raises:
        BadRowError: an address, a path outside the data folder, no such file, or something that is not an image.
    """
    several = listed_images(value)
    if len(several) == 1 and not isinstance(value, (list, tuple)):
        return (_image_of(several[0], folders, name),)
    return tuple(_image_of(part, folders, f"{name} image {number}") for number, part in enumerate(several, start=1))


def listed_images(value: object) -> Sequence[Any]:
    """The images of a field, each still as it is stored."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ()
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, str):
        return _listed(value.strip())
    return (value,)


def _listed(text: str) -> Sequence[Any]:
    found = listed_text(text)
    if isinstance(found, list):
        return found
    if not text.startswith("data:"):
        for separator in SEPARATORS:
            parts = [part.strip() for part in text.split(separator)]
            if len(parts) > 1 and all(map(is_image_name, parts)):
                return parts
    return (text,)


def _image_of(value: object, folders: ImageFolders | None, name: str) -> Image:
    stored = _stored(value) if isinstance(value, Mapping) else value
    if isinstance(stored, (bytes, bytearray)):
        return image_from_bytes(bytes(stored), name)
    if isinstance(stored, int) and not isinstance(stored, bool) and folders is not None:
        return _file(folders, stored)
    if not isinstance(stored, str) or not stored.strip():
        found = f"an object of {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        raise BadRowError(f"Expected an image's path or bytes, got {found}; fill it in or drop the row")
    value = stored
    data = encoded_image(value)
    if data is not None:
        return image_from_bytes(data, name)
    if value.startswith(("b'", "{'bytes'")) or _is_picture(value):
        raise BadRowError(f"Expected an image's path or base64, got {value[:24]!r}…, which is neither; store it again")
    if "://" in value and not value.lower().startswith("file:"):
        raise BadRowError(f"Expected an image file, got the address {value[:60]!r}; download it: rows are read offline")
    if folders is None:  # a path could name any file of this computer
        raise BadRowError("Expected an image stored in its row, got a path; write the parquet file with its images")
    return _file(folders, value)


def _file(folders: ImageFolders, value: str | int) -> Image:
    return image_at(folders.file(value), str(value))


STORED_KEYS = "bytes data base64 path file_name filename file image_path image url image_url uri src".split()


def _stored(value: Mapping[Any, Any]) -> object:
    """Bytes before a path; an address under `url`, perhaps in a nested object."""
    for key in STORED_KEYS:
        inner = value.get(key)
        if inner:
            return _stored(inner) if isinstance(inner, Mapping) else inner
    return None


def encoded_image(text: str) -> bytes | None:
    """The bytes of a data URI or of bare base64; None for any other text.

    Raises:
        BadRowError: a data URI that holds no base64.
    """
    head, comma, data = text.partition(",")
    inline = head[:5].lower() == "data:" and comma != ""
    if not inline and not BASE64.fullmatch(text[:4096]):
        return None
    data = unquote(data) if "%" in data else data
    packed = "".join((data if inline else text).split()).translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        if not inline:
            return None
        raise BadRowError(f"Expected base64 in {text[:40]!r}, got {error}; fix the row") from error


def names_among(values: Sequence[Any]) -> list[Any]:
    """Of images as they are stored, those that are paths or numbers of files: no addresses, no data."""
    short = [v for v in values if isinstance(v, (str, int)) and len(str(v)) < LONGEST_NAME]
    return [v for v in short if "://" not in str(v)[:12] and not str(v).startswith("data:")]


def looks_like_images(value: object) -> bool:
    """Whether a field seems to hold images, by its text alone: nothing is opened."""
    for one in listed_images(value)[:2]:
        if isinstance(one, Mapping):
            one = _stored(one)
        if isinstance(one, (bytes, bytearray)):
            return True
        if not isinstance(one, str) or not (is_image_name(one) or one.startswith("data:image") or _is_picture(one)):
            return False
    return bool(listed_images(value))


def _is_picture(text: str) -> bool:
    """Base64 that begins as JPEG, PNG, GIF, WebP or BMP files do."""
    return len(text) > 64 and text.startswith(("/9j/", "iVBOR", "R0lGOD", "UklGR", "Qk"))


def placed(text: str, images: Sequence[Image]) -> tuple[str | Image, ...]:
    """The text with images in place of its marks, or before it where there are none.

    Raises:
        BadRowError: another number of marks than of images.
    """
    require_own_marks(text)
    n_marks = text.count(MARK)
    if not n_marks:
        return (*images, text)
    if n_marks != len(images):
        raise BadRowError(mark_problem(len(images), n_marks))
    following = iter(images)
    return tuple(next(following) if piece is None else piece for piece in cut_at_marks(text))


def cut_at_marks(text: str) -> list[str | None]:
    """The pieces of a text and, for each mark of an image, None; without blank pieces."""
    found: list[str | None] = []
    for number, piece in enumerate(text.split(MARK)):
        found += ([None] if number else []) + ([piece.strip()] if piece.strip() else [])
    return found


def require_own_marks(text: str) -> None:
    """Raises BadRowError where a question has a mark of another format, which would be learned as text."""
    other = next((found[0] for found in MARK_LIKE.finditer(text) if found[0] != MARK), None) if "<" in text else None
    if other is not None:
        if other.strip("<>").lower() in ("video", "audio"):
            raise BadRowError(f"Expected text and images, got {other!r} in a question; drop the row")
        raise BadRowError(
            f"Expected {MARK} as the mark of an image, got {other!r} in a question; write {MARK} where an image belongs"
        )


def mark_problem(n_images: int, n_marks: int) -> str:
    return f"Expected as many images as {MARK} marks, got {n_images} and {n_marks}; add the image or remove the mark"
