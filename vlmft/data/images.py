"""The image policy: how a file becomes the RGB picture that every model gets. There is no other way.

* BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read, recognised by content, not by name. Other formats are not:
  opening an EPS runs a program, an SVG can fetch others, HEIC needs a decoder that Pillow does not have.
* The size in the header is looked at before a pixel is decoded: above `MAX_PIXELS` the image is refused.
* Of an animation or a file of several pages the first one is taken.
* The EXIF orientation is applied. Where the EXIF block itself is broken there is none.
* Grey of 16 bits keeps its high byte, which is what Pillow does to colours of 16 bits. Floating-point pixels, and whole
  numbers outside 0..65535, are refused: which value is white is unknown.
* Transparent pixels are composited on white.
* Palette, grey, 1-bit and CMYK become RGB. Colour profiles are not applied.
* A file that is empty, cut short, damaged or not an image is refused and never repaired. Pillow misses one case: in a
  PNG that ends correctly but has fewer rows than its header says, the missing rows are black.

A refusal is a `BadRowError` that names what was found. No global setting of Pillow or of `warnings` is changed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.ExifTags import Base
from PIL.Image import Transpose

from vlmft.data.survey.cache import stamp
from vlmft.sample import BadRowError, Image

MAX_PIXELS = 50_000_000
"""Width times height. Below Pillow's own limit of 89 million, from which on it warns."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
    MemoryError,
    Warning,
)
"""What Pillow's readers raise on damaged files; warnings only where the user turns them into errors."""
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that turns the picture upright."""
NOT_IMAGES = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file or SVG drawing",
    b"%pdf": "a PDF",
    b"%!ps": "a PostScript file",
    b"version https://git-lfs": "a Git LFS pointer",
}
"""First bytes, in lower case, of files that are often found in place of an image."""


def image_from_file(root: Path, relative: str) -> Image:
    """The image `relative` below the folder `root`, checked to be there and not decoded.

    Raises:
        BadRowError: as `image_inside`.
    """
    return image_at(image_inside(root, relative), relative)


def image_at(path: Path, name: str) -> Image:
    """The image in a file, not decoded. One that changed just now has no identity: its next change could have the
    same time."""
    mark = stamp(path)
    identity = "" if mark is None else f"{path} {mark} {image_policy()}"
    return Image(partial(open_image, path), name, identity, partial(size_in_file, path))


def image_from_bytes(data: bytes, name: str) -> Image:
    """The image that the encoded `data` hold, not decoded."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    measure = partial(size_in_bytes, data, name)
    return Image(partial(decode_image, data, name), name, f"{digest} {image_policy()}", measure)


@functools.cache
def image_policy() -> str:
    """Hash of the code that decodes: this file and Pillow's version."""
    code = Path(__file__).read_bytes() + PIL.__version__.encode()
    return hashlib.sha256(code).hexdigest()[:16]


def file_of(image: Image) -> Path | None:
    """The file that the image is decoded from; None where it is stored in its row or drawn."""
    load = image.load
    return load.args[0] if isinstance(load, partial) and load.func is open_image else None


def stored_bytes(image: Image) -> int:
    """Bytes of the encoded file that an image holds; 0 where it is read from a file or drawn."""
    load = image.load
    return len(load.args[0]) if isinstance(load, partial) and load.func is decode_image else 0


def image_inside(root: Path, relative: str) -> Path:
    """The file `relative` below `root`, without symbolic links.

    Raises:
        BadRowError: an absolute path, one with "..", a link that leaves `root`, or no such file.
    """
    windows = PureWindowsPath(relative)  # reads "/" and "\" alike, so that paths of both systems are checked
    if windows.anchor or ".." in windows.parts:
        raise BadRowError(f"Expected an image path below the data folder, got {relative!r}; write it without / or ..")
    try:
        folder = root.resolve()
        path = (folder / relative).resolve()
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        raise BadRowError(f"Expected an image path, got {relative!r} ({error}); fix it") from error
    if not path.is_relative_to(folder):
        raise BadRowError(f"Expected an image inside {root}, got a link out of it at {relative!r}; copy the file")
    if not is_file:
        raise BadRowError(f"Expected an image file {relative!r} in {root}, got none; check the path")
    return path


def open_image(path: Path) -> PIL.Image.Image:
    """The picture in a file, mode RGB.

    Raises:
        BadRowError: the file cannot be read, or the policy refuses it.
    """
    with _opened(path) as stream, _header(stream, str(path)) as image:
        return _decoded(image, str(path))


def size_in_file(path: Path) -> tuple[int, int]:
    """(width, height) of the picture that `open_image` gives, from the file's header; raises as that."""
    with _opened(path) as stream, _header(stream, str(path)) as image:
        return _upright_size(image)


def size_in_bytes(data: bytes, name: str) -> tuple[int, int]:
    """The same of `decode_image`."""
    with _header(BytesIO(data), name) as image:
        return _upright_size(image)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadRowError(f"Expected an image file, got {error}; check the path") from error


def decode_image(data: bytes, name: str) -> PIL.Image.Image:
    """The picture in an encoded file's bytes, mode RGB; `name` is for messages.

    Raises:
        BadRowError: the policy refuses it.
    """
    with _header(BytesIO(data), name) as image:
        return _decoded(image, name)


def _decoded(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    image.load()
    return _as_rgb(_upright(image), name)


@contextlib.contextmanager
def _header(stream: BinaryIO, name: str) -> Iterator[PIL.Image.Image]:
    """The image in a stream, not decoded yet; what is wrong with it, then or while it is decoded, is a BadRowError."""
    try:
        with PIL.Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadRowError(_too_large(f"{image.width}x{image.height} pixels", name))
            yield image
    except BadRowError:
        raise
    # The warning is an error only where the user configured that. It is not silenced with warnings.catch_warnings,
    # which resets the registry of warnings already shown: a library's warning would then be printed once per image.
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise BadRowError(_too_large(str(error).partition(" exceeds")[0], name)) from error
    except PIL.UnidentifiedImageError as error:  # its own message holds a memory address, another in every run
        formats = ", ".join(sorted(FORMATS))
        raise BadRowError(f"Expected an image ({formats}), got {_found(stream)} in {name}; replace the file") from error
    except DAMAGE as error:
        found = f"a damaged one in {name} ({type(error).__name__}: {error})"
        raise BadRowError(f"Expected a whole image, got {found}; replace the file") from error


def _too_large(found: str, name: str) -> str:
    return f"Expected at most {MAX_PIXELS // 1_000_000} million pixels, got {found} in {name}; scale it down"


def _found(stream: BinaryIO) -> str:
    stream.seek(0)
    head = stream.read(256)
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    named = (what for mark, what in NOT_IMAGES.items() if start.startswith(mark))
    return next(named, f"a damaged or unknown file that begins {head[:12]!r}")


def _turn(image: PIL.Image.Image) -> Transpose | None:
    try:
        return TURNS.get(image.getexif().get(Base.Orientation, 1))
    except DAMAGE:
        return None


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    across = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)
    turned = image.format != "TIFF" and _turn(image) in across  # trap: of a TIFF, Pillow says the upright size itself
    return (image.height, image.width) if turned else image.size


def _as_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    if image.mode == "F":
        raise BadRowError(f"Expected whole-number pixels, got floating-point ones in {name}; save it with 8 bits")
    if image.mode.startswith("I"):
        return _from_16_bits(image, name).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = PIL.Image.new("RGB", image.size, "white")
    white.paste(layer, mask=layer)
    return white


def _from_16_bits(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        found = f"{values.min()} to {values.max()}"
        raise BadRowError(f"Expected pixels of 0 to 65535, got {found} in {name}; save it with 8 bits")
    grey = (values >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return PIL.Image.fromarray(grey)
