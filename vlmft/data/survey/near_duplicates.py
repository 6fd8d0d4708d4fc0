"""Pictures that look alike though their pixels differ: saved again, scaled, cropped by a hair, brightened.

The hash is a perceptual one of the discrete cosine transform's lowest frequencies (the method of pHash, Zauner 2010,
https://phash.org/docs/pubs/thesis_zauner.pdf), with 256 bits: with the usual 64, charts of one layout collide.
It ignores colour.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import PIL.Image

from vlmft.sample import Split, pixels_sha256

DISTANCE = 32
"""Most bits, of 256, by which two near-duplicates differ.

Measured on 250 charts (31,125 pairs of different ones), 400 photographs, 72 drawn charts and 2,600 generated scenes:
no such pair is that near (the nearest: charts 34, drawn charts 52, scenes 64, photographs 94). Found again were 97 to
100 % after JPEG at quality 50 or 20, at half or quarter size and at brightness * 1.1, 94 to 100 % with 1 % cropped from
each side, 33 to 78 % with 2 %. Hashes of 64 bits find as much at distance 4, and call 41 pairs of different charts
alike. At 40 it is 7 pairs here, too, and seven charts of one layout form one chain, at 48 ten. Of 300 emoji 9
pairs are near: flags, hearts and circles of other colours. Not found are pictures with 5 % cropped from each side, and
turned ones.
"""
COARSE_DISTANCE = 12
"""The same for the first 64 bits, the lowest frequencies, which are compared alone first. No pair within `DISTANCE` of
the above differed in more."""
SIDE, FREQUENCIES = 64, 16
"""Pixels a side of the thumbnail, and frequencies in each direction that count."""
FLAT = 2.0
"""A thumbnail whose grey levels deviate less is of one colour, and like any other of one colour."""
BLOCK = 8, 4096
"""Hashes that are compared at once: what fits into a processor's cache (measured: 1.1 to 2.4 ns a pair)."""
NONE = np.int64(1 << 62)

_ODD = np.tile(np.arange(FREQUENCIES // 2) % 2, (4, FREQUENCIES // 2, 1))
MIRROR = np.frombuffer(np.packbits(_ODD).tobytes(), np.uint64)
"""The bits of frequencies that change their sign when a picture is mirrored, left for right. As the median of all lies
near zero, they are those that change. Measured: 250 charts, 400 photographs and 200 scenes are all found again mirrored
(at most 24 bits from this), also as JPEG at half size; of 300 emoji all but one or two, as JPEG 87 %. No two different
pictures are each other's mirror image (the nearest: charts 72 bits, emoji 82), and none is its own.
"""

_COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(FREQUENCIES), np.arange(SIDE) + 0.5)).astype(np.float32)


def perceptual_hash(picture: PIL.Image.Image) -> bytes:
    """32 bytes, alike for pictures that look alike; empty for a picture of one colour."""
    grey = picture.convert("L").resize((SIDE, SIDE), PIL.Image.Resampling.BOX)
    levels = np.asarray(grey, np.float32)
    if levels.std() < FLAT:
        return b""
    waves = _COSINES @ levels @ _COSINES.T
    bits = waves > np.median(waves)
    half = FREQUENCIES // 2
    quarters = [bits[:half, :half], bits[:half, half:], bits[half:, :half], bits[half:, half:]]
    return np.packbits(np.stack(quarters)).tobytes()


LOOK = np.dtype([("sha256", "V32"), ("width", "<u4"), ("height", "<u4"), ("perceptual", "<u8", 4)])
"""What is kept of a decoded image: enough to tell it from others, and its size. A perceptual hash of zeros means
none: the picture is of one colour."""


def look(picture: PIL.Image.Image) -> bytes:
    """A `LOOK`: 72 bytes that begin with the hash of the pixels."""
    digest = bytes.fromhex(pixels_sha256(np.asarray(picture)))
    return digest + struct.pack("<II", *picture.size) + perceptual_hash(picture).ljust(32, b"\0")


def near(
    first: np.ndarray, second: np.ndarray, distance: int = DISTANCE
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Near-duplicates between two arrays of hashes, (n, 4) uint64: positions in both, some at a time, and bits apart.

    Every hash is compared with every other, so the time does not depend on the pictures: 1 to 2.5 s for 10,000
    against 100,000 on one core, a hundredth of what decoding them takes. Where both are the same array, each pair comes
    once, and none with itself; a hash of zeros has none.
    """
    a, b = first, second
    coarse_a, coarse_b = np.ascontiguousarray(a[:, 0]), np.ascontiguousarray(b[:, 0])
    rows, columns = BLOCK
    for top in range(0, len(a), rows):
        for left in range(top // columns * columns if first is second else 0, len(b), columns):
            differing = np.bitwise_count(coarse_a[top : top + rows, None] ^ coarse_b[left : left + columns])
            i, j = (differing <= COARSE_DISTANCE).nonzero()
            if not len(i):
                continue
            i, j = i + top, j + left
            bits = np.bitwise_count(a[i] ^ b[j]).sum(axis=1)
            kept = (bits <= distance) & a[i].any(axis=1) & b[j].any(axis=1) & ((i < j) | (first is not second))
            if kept.any():
                yield i[kept], j[kept], bits[kept]


@dataclass(frozen=True)
class Shown:
    """One picture of a split, and the first row that shows it."""

    row_id: str
    name: str


@dataclass(frozen=True)
class NearPair:
    """A picture of one split, and the one of another split that is nearest to it."""

    held_out: Shown
    other: Shown
    distance: int
    """Bits that differ."""


def near_across(
    hashes: Mapping[Split, np.ndarray], *, mirrored: bool = False
) -> dict[tuple[Split, Split], list[tuple[int, int, int]]]:
    """(split, held-out split) -> (picture of the latter, the nearest of the former, differing bits), the nearest first.

    `hashes`: (n, 4) uint64 of the different pictures of each split. Train against test comes first: that is where a
    result could be wrong. `mirrored`: the nearest to its mirror image instead.
    """
    found: dict[tuple[Split, Split], list[tuple[int, int, int]]] = {}
    pairs: tuple[tuple[Split, Split], ...] = (("train", "test"), ("val", "test"), ("train", "val"))
    for split, held_out in pairs:
        if split not in hashes or held_out not in hashes:
            continue
        nearest = np.full(len(hashes[held_out]), NONE)
        asked = hashes[held_out]
        asked = np.where(asked.any(axis=1, keepdims=True), asked ^ MIRROR, asked) if mirrored else asked
        for i, j, bits in near(asked, hashes[split]):
            np.minimum.at(nearest, i, (bits.astype(np.int64) << 32) | j)
        twins = np.flatnonzero(nearest < NONE)
        order = twins[np.argsort(nearest[twins], kind="stable")]
        found[split, held_out] = [(int(i), *divmod(int(nearest[i]), 1 << 32)[::-1]) for i in order]
    return found
