"""The image policy on every kind of file that is found in place of an image."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest

from vlmft.data.images import (
    MAX_PIXELS,
    decode_image,
    image_from_bytes,
    image_from_file,
    image_inside,
    open_image,
    size_in_bytes,
)
from vlmft.sample import BadRowError

HEIGHT, WIDTH = 24, 40
COLOURS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0]
PICTURE = PIL.Image.fromarray(COLOURS)
WORDS = np.random.default_rng(1).integers(0, 1 << 16, (HEIGHT, WIDTH), dtype=np.uint16)


def saved(image: PIL.Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour_type: int, pixels: bytes = b"", *chunks: bytes) -> bytes:
    """A PNG of any header, also of kinds that Pillow does not write. `pixels`: rows, each led by a filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    parts = (header, *chunks, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def lines(pixels: np.ndarray) -> bytes:
    """Rows of a PNG, each led by the filter byte for none."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def tiled_tiff(side: int = 16) -> bytes:
    """RGB in tiles of `side` pixels, those at the edges filled up, as slides and maps are stored (TIFF 6.0, 15)."""
    down, right = -(-HEIGHT // side), -(-WIDTH // side)
    filled = np.zeros((down * side, right * side, 3), np.uint8)
    filled[:HEIGHT, :WIDTH] = COLOURS
    cut = filled.reshape(down, side, right, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    n, size = len(cut), side * side * 3
    short, long = 3, 4
    entries = [(256, short, 1, WIDTH), (257, short, 1, HEIGHT), (258, short, 3, 200), (259, short, 1, 1)]
    entries += [(262, short, 1, 2), (277, short, 1, 3), (322, short, 1, side), (323, short, 1, side)]
    entries += [(324, long, n, 300), (325, long, n, 400)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    data = bytearray((b"II*\0" + struct.pack("<I", 8) + table).ljust(500, b"\0"))
    data[200:206] = struct.pack("<3H", 8, 8, 8)
    data[300 : 300 + 4 * n] = struct.pack(f"<{n}I", *(500 + size * i for i in range(n)))
    data[400 : 400 + 4 * n] = struct.pack(f"<{n}I", *[size] * n)
    return bytes(data) + cut.tobytes()


def big_endian_tiff() -> bytes:
    """16-bit grey, the high byte first, as microscopes write it (Pillow's mode I;16B)."""
    entries = [(256, WIDTH), (257, HEIGHT), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1), (278, HEIGHT)]
    table = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in [*entries, (279, WIDTH * HEIGHT * 2)])
    head = b"MM\0*" + struct.pack(">IH", 8, len(entries) + 1) + table
    return head.ljust(200, b"\0") + WORDS.astype(">u2").tobytes()


def bmff(brand: bytes) -> bytes:
    """How HEIC, AVIF and MP4 files begin."""
    return struct.pack(">I", 24) + b"ftyp" + brand + b"\0\0\0\0mif1" + brand + b"\0" * 40


def exif(orientation: int) -> PIL.Image.Exif:
    found = PIL.Image.Exif()
    found[0x0112] = orientation
    return found


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share))


def as_rgb(greys: np.ndarray) -> np.ndarray:
    return np.repeat(greys[..., None], 3, axis=2)


def palette() -> PIL.Image.Image:
    return PICTURE.quantize(16)


def deep_rgb() -> bytes:
    words = np.dstack([WORDS, WORDS + 1, WORDS + 2]).astype(">u2")
    return png(WIDTH, HEIGHT, 16, 2, lines(words))


def accepted() -> dict[str, tuple[bytes, np.ndarray]]:
    """Kind -> file, picture that it must become."""
    alpha = COLOURS[..., 1]
    layered = PIL.Image.fromarray(np.dstack([COLOURS, alpha]))
    grey_layered = PIL.Image.fromarray(np.dstack([GREYS, alpha]))
    words = PIL.Image.fromarray(WORDS)
    holed = np.asarray(palette().convert("RGB")).copy()
    holed[np.asarray(palette()) == 3] = 255
    rgb_jpeg = saved(PICTURE, "JPEG", quality=95)
    cmyk = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    cmyk[..., 0] = 255  # cyan ink alone
    turned = PIL.Image.fromarray(np.rot90(COLOURS))
    bits = PIL.Image.fromarray(GREYS > 127)
    fades = bytes(range(0, 256, 16))
    clear = COLOURS[0, 0]
    grey_jpeg = saved(PIL.Image.fromarray(GREYS), "JPEG", quality=95)
    profile = b"profile\0\0" + zlib.compress(np.random.default_rng(2).bytes(3000))
    return {
        "RGB PNG": (saved(PICTURE, "PNG"), COLOURS),
        "RGB JPEG": (rgb_jpeg, np.asarray(PIL.Image.open(io.BytesIO(rgb_jpeg)))),
        "lossless WebP": (saved(PICTURE, "WEBP", lossless=True), COLOURS),
        "BMP": (saved(PICTURE, "BMP"), COLOURS),
        "PPM": (saved(PICTURE, "PPM"), COLOURS),
        "TIFF": (saved(PICTURE, "TIFF", compression="tiff_lzw"), COLOURS),
        "TIFF of two pages": (saved(PICTURE, "TIFF", save_all=True, append_images=[turned]), COLOURS),
        "animated GIF": (
            saved(palette(), "GIF", save_all=True, append_images=[PIL.Image.new("P", PICTURE.size)]),
            np.asarray(palette().convert("RGB")),
        ),
        "animated WebP": (
            saved(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[PIL.Image.new("RGB", PICTURE.size)]),
            COLOURS,
        ),
        "palette PNG": (saved(palette(), "PNG"), np.asarray(palette().convert("RGB"))),
        "palette PNG with a transparent colour": (saved(palette(), "PNG", transparency=3), holed),
        "RGBA PNG": (saved(layered, "PNG"), on_white(COLOURS, alpha)),
        "grey and alpha PNG": (saved(grey_layered, "PNG"), on_white(as_rgb(GREYS), alpha)),
        "grey PNG": (saved(PIL.Image.fromarray(GREYS), "PNG"), as_rgb(GREYS)),
        "grey PNG with a transparent grey": (
            saved(PIL.Image.fromarray(GREYS), "PNG", transparency=int(GREYS[0, 0])),
            as_rgb(np.where(GREYS[0, 0] == GREYS, 255, GREYS)),
        ),
        "1-bit PNG": (saved(bits, "PNG"), as_rgb(np.where(GREYS > 127, 255, 0))),
        "16-bit grey PNG": (saved(words, "PNG"), as_rgb(WORDS >> 8)),
        "16-bit grey PNG with a transparent grey": (
            saved(words, "PNG", transparency=int(WORDS[0, 0])),
            as_rgb(np.where(WORDS[0, 0] == WORDS, 255, WORDS >> 8)),
        ),
        "16-bit PGM": (saved(words, "PPM"), as_rgb(WORDS >> 8)),
        "16-bit TIFF": (saved(words, "TIFF"), as_rgb(WORDS >> 8)),
        "16-bit RGB PNG": (deep_rgb(), np.dstack([(WORDS + i).astype(np.uint16) >> 8 for i in range(3)])),
        "CMYK JPEG": (
            saved(PIL.Image.fromarray(cmyk, mode="CMYK"), "JPEG", quality=100),
            np.broadcast_to(np.array([0, 255, 255]), COLOURS.shape),
        ),
        "rotated PNG": (saved(turned, "PNG", exif=exif(6)), COLOURS),
        "rotated TIFF": (saved(turned, "TIFF", exif=exif(6)), COLOURS),
        "rotated palette PNG": (
            saved(palette().transpose(PIL.Image.Transpose.ROTATE_90), "PNG", exif=exif(6), transparency=3),
            holed,
        ),
        "PNG with a broken EXIF block": (saved(PICTURE, "PNG", exif=b"Exif\0\0no such thing"), COLOURS),
        "animated PNG": (
            saved(PICTURE, "PNG", save_all=True, append_images=[PIL.Image.new("RGB", PICTURE.size)]),
            COLOURS,
        ),
        "MPO, a phone's JPEG of two pictures": (
            saved(PICTURE, "MPO", save_all=True, append_images=[turned], quality=95),
            np.asarray(PIL.Image.open(io.BytesIO(rgb_jpeg))),
        ),
        "grey JPEG": (grey_jpeg, as_rgb(np.asarray(PIL.Image.open(io.BytesIO(grey_jpeg))))),
        "JPEG with bytes behind its end": (rgb_jpeg + b"\0" * 999, np.asarray(PIL.Image.open(io.BytesIO(rgb_jpeg)))),
        "palette PNG whose colours fade (alpha of each)": (
            saved(palette(), "PNG", transparency=fades),
            on_white(np.asarray(palette().convert("RGB")), np.frombuffer(fades, np.uint8)[np.asarray(palette())]),
        ),
        "RGB PNG with a transparent colour": (
            png(WIDTH, HEIGHT, 8, 2, lines(COLOURS), chunk(b"tRNS", struct.pack(">3H", *clear.tolist()))),
            np.where((clear == COLOURS).all(axis=2, keepdims=True), 255, COLOURS),
        ),
        "4-bit grey PNG": (
            png(WIDTH, HEIGHT, 4, 0, lines((GREYS[:, ::2] & 0xF0) | (GREYS[:, 1::2] >> 4))),
            as_rgb((GREYS >> 4) * 17),
        ),
        "wide-gamut PNG with a colour profile": (
            png(WIDTH, HEIGHT, 8, 2, lines(COLOURS), chunk(b"iCCP", profile)),
            COLOURS,
        ),
        "PNG of half the rows that its header claims": (
            png(WIDTH, HEIGHT, 8, 2, lines(COLOURS[: HEIGHT // 2])),
            np.where(np.arange(HEIGHT)[:, None, None] < HEIGHT // 2, COLOURS, 0),
        ),
        "TIFF in tiles": (tiled_tiff(), COLOURS),
        "16-bit TIFF with the high byte first": (big_endian_tiff(), as_rgb(WORDS >> 8)),
    }


def refused() -> dict[str, tuple[bytes, str]]:
    """Kind -> file, words of the refusal."""
    whole_png, whole_jpeg = saved(PICTURE, "PNG"), saved(PICTURE, "JPEG")
    bomb = b"iCC\0\0" + zlib.compress(bytes(3 << 20))
    return {
        "empty file": (b"", "an empty file"),
        "PNG cut short": (whole_png[: len(whole_png) // 2], "a damaged one"),
        "JPEG cut short": (whole_jpeg[: len(whole_jpeg) // 2], "a damaged one"),
        "PNG header alone": (whole_png[:30], "a damaged or unknown file that begins b'\\x89PNG"),
        "HTML page": (b"\xef\xbb\xbf\n<!DOCTYPE HTML><p>404 Not Found</p>", "an HTML page"),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        "SVG with an XML line": (b'<?xml version="1.0"?><svg/>', "an XML file or SVG drawing"),
        "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "a PostScript file"),
        "PDF": (b"%PDF-1.7\n", "a PDF"),
        "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        "text": (b"just words", "unknown file that begins b'just words'"),
        "64 million pixels": (png(8000, 8000, 8, 2), "8000x8000 pixels"),
        "144 million pixels": (png(12000, 12000, 8, 2), "12000x12000 pixels"),
        "2.5 thousand million pixels": (png(50000, 50000, 8, 2), "2500000000 pixels"),
        "floating-point TIFF": (saved(PIL.Image.fromarray(GREYS.astype(np.float32)), "TIFF"), "floating-point"),
        "32-bit TIFF": (
            saved(PIL.Image.fromarray(WORDS.astype(np.int32) * 2), "TIFF"),
            "Expected pixels of 0 to 65535",
        ),
        "HEIC of a phone": (bmff(b"heic"), "a HEIC, AVIF or video file"),
        "AVIF": (bmff(b"avif"), "a HEIC, AVIF or video file"),
        "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 40, "a damaged or unknown file that begins"),
        "icon": (saved(PICTURE, "ICO"), "a damaged or unknown file that begins"),
        "PNG of no width": (png(0, HEIGHT, 8, 2), "a damaged"),
        "PNG with a wrong checksum": (whole_png.replace(whole_png[29:33], b"\0\0\0\0", 1), "a damaged"),
        "PNG with a text of 3 MiB in a kilobyte": (
            png(WIDTH, HEIGHT, 8, 2, lines(COLOURS), chunk(b"zTXt", bomb)),
            "Decompressed data too large",
        ),
        "JPEG of another's pixels' half, then HTML": (whole_jpeg[:300] + b"<html>502</html>", "a damaged one"),
    }


KINDS = [*accepted(), *refused()]


def test_all_kinds_are_there() -> None:
    assert len(accepted()) == 37 and len(refused()) == 24 and len(set(KINDS)) == 61


@pytest.mark.parametrize("kind", accepted())
def test_accepted(kind: str, tmp_path: Path) -> None:
    data, expected = accepted()[kind]
    picture = decode_image(data, kind)
    assert picture.mode == "RGB" and picture.size == (WIDTH, HEIGHT)
    assert np.abs(np.asarray(picture).astype(int) - expected).max() <= ("alpha" in kind or "RGBA" in kind)
    (tmp_path / "misnamed.txt").write_bytes(data)
    assert open_image(tmp_path / "misnamed.txt").tobytes() == picture.tobytes()
    assert size_in_bytes(data, kind) == image_from_file(tmp_path, "misnamed.txt").size == picture.size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", refused())
def test_refused(kind: str, tmp_path: Path) -> None:
    data, words = refused()[kind]
    (tmp_path / "chart.png").write_bytes(data)
    with pytest.raises(BadRowError) as error:
        open_image(tmp_path / "chart.png")
    with pytest.raises(BadRowError) as again:
        decode_image(data, str(tmp_path / "chart.png"))
    text = str(error.value)
    assert words in text and "chart.png" in text and text.startswith("Expected") and "\n" not in text
    assert str(again.value) == text, "the same file, the same words: the ledger of a repeated run is the same"


def test_the_usual_one_line_loader_differs_where_the_policy_matters() -> None:
    """`open(...).convert("RGB")`, which most fine-tuning scripts use: the tests above can fail."""
    differing = {
        kind
        for kind, (data, expected) in accepted().items()
        if not np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")), expected)
    }
    assert differing >= {"RGBA PNG", "grey and alpha PNG", "16-bit grey PNG", "16-bit PGM", "rotated PNG"}
    assert "RGB PNG" not in differing


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_comes_upright(form: str, orientation: int) -> None:
    # What a camera stores so that a viewer that applies `orientation` shows COLOURS: EXIF 2.32, table 6.
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS),
        7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(COLOURS, -1),
    }[orientation]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(PIL.Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif(orientation), **options)
    assert np.array_equal(np.asarray(decode_image(data, "turned")), COLOURS)
    assert size_in_bytes(data, "turned") == (WIDTH, HEIGHT)


def test_at_most_so_many_pixels_and_no_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PIXELS == 50_000_000
    monkeypatch.setattr("vlmft.data.images.MAX_PIXELS", WIDTH * HEIGHT)
    assert decode_image(saved(PICTURE, "PNG"), "large").size == (WIDTH, HEIGHT)
    with pytest.raises(BadRowError, match="41x24 pixels"):  # no pixel is there: the header alone was read
        decode_image(png(WIDTH + 1, HEIGHT, 8, 2), "larger")


def test_globals_stay_as_they_are() -> None:
    before = (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    decode_image(saved(PICTURE, "PNG"), "good")
    with pytest.raises(BadRowError):
        decode_image(b"", "bad")
    assert before == (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))


def test_warnings_shown_once_stay_shown_once() -> None:
    """`warnings.catch_warnings` in the decoder would show a library's warning again after every image."""
    data = saved(PICTURE, "PNG")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            decode_image(data, "good")
            warnings.warn("a library's own", UserWarning, stacklevel=1)
    assert len(shown) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["144 million pixels", "PNG with a broken EXIF block"])
def test_warnings_as_errors_end_no_run(kind: str) -> None:
    if kind in refused():
        with pytest.raises(BadRowError, match=r"at most 50 million pixels, got Image size \(144000000 pixels\) in"):
            decode_image(refused()[kind][0], kind)
    else:
        assert np.array_equal(np.asarray(decode_image(accepted()[kind][0], kind)), COLOURS)


def test_damaged_bytes_never_raise_another_error() -> None:
    """Bytes changed and files cut at random: a picture or a `BadRowError`."""
    chance, outcomes = random.Random(0), {"picture": 0, "bad row": 0}
    files = [data for data, _ in accepted().values()]
    for data in files * 21:
        damaged = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        for _ in range(chance.choice([1, 2, 5, 20]) if damaged else 0):
            damaged[chance.randrange(min(len(damaged), chance.choice([120, len(damaged)])))] = chance.randrange(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert decode_image(bytes(damaged), "damaged").mode == "RGB"
            outcomes["picture"] += 1
        except BadRowError:
            outcomes["bad row"] += 1
    assert outcomes["picture"] > 100 and outcomes["bad row"] > 300
    assert sum(outcomes.values()) == len(files) * 21 == 777


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "png").mkdir(parents=True)
    (folder / "png" / "chart.png").write_bytes(saved(PICTURE, "PNG"))
    (tmp_path / "outside.png").write_bytes(saved(PICTURE, "PNG"))
    (folder / "png" / "inner.png").symlink_to(folder / "png" / "chart.png")
    (folder / "png" / "outer.png").symlink_to(tmp_path / "outside.png")
    (folder / "png" / "circle.png").symlink_to(folder / "png" / "circle.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.png")  # opening one waits for ever
    return folder


BAD_PATHS = {
    "/etc/hostname": "below the data folder",
    "../outside.png": "below the data folder",
    "png/../../outside.png": "below the data folder",
    "png/../png/chart.png": "below the data folder",
    "..\\outside.png": "below the data folder",
    "C:\\chart.png": "below the data folder",
    "\\\\host\\share\\chart.png": "below the data folder",
    "png/outer.png": "a link out of it",
    "up/outside.png": "a link out of it",
    "png/circle.png": "circle.png",
    "png/missing.png": "got none",
    "https://example.org/chart.png": "got none",
    "png": "got none",
    "folder.jpg": "got none",
    "pipe.png": "got none",
    "": "got none",
    "a\0b.png": "null byte",
    "x" * 5000: "File name too long",
}


@pytest.mark.parametrize("relative", BAD_PATHS)
def test_no_path_leaves_the_folder(root: Path, relative: str) -> None:
    with pytest.raises(BadRowError, match=BAD_PATHS[relative]):
        image_inside(root, relative)
    with pytest.raises(BadRowError):
        image_from_file(root, relative)
    assert len(BAD_PATHS) == 18


def test_paths_inside(root: Path, tmp_path: Path) -> None:
    chart = root.resolve() / "png" / "chart.png"
    assert image_inside(root, "png/chart.png") == image_inside(root, "./png//inner.png") == chart
    (tmp_path / "linked").symlink_to(root)
    assert image_inside(tmp_path / "linked", "png/chart.png") == chart


def test_images_travel_and_are_the_same_by_their_pixels(root: Path) -> None:
    file = image_from_file(root, "png/chart.png")
    data = image_from_bytes(saved(PICTURE, "BMP"), "chart of a table")
    assert (file.name, data.name) == ("png/chart.png", "chart of a table")
    assert isinstance(file.load, partial) and isinstance(data.load, partial)
    assert file.sha256 == data.sha256 and np.array_equal(file.pixels, COLOURS)
    for image in (file, data):
        copy = pickle.loads(pickle.dumps(image))
        assert "pixels" not in vars(copy) and copy.name == image.name and copy.sha256 == image.sha256


def test_a_vanished_file_is_a_bad_row(root: Path) -> None:
    image = image_from_file(root, "png/chart.png")
    (root / "png" / "chart.png").unlink()
    with pytest.raises(BadRowError, match="No such file"):
        image.load()
