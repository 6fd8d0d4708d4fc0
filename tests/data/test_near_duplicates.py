"""What was saved again, scaled, cropped or brightened is found; what is another picture is not."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from vlmft.data.datasets.shapes import Shapes
from vlmft.data.survey.near_duplicates import COARSE_DISTANCE, DISTANCE, near, near_across, perceptual_hash

Picture = PIL.Image.Image
Hash = Callable[[Picture], bytes]


def stacked(hashes: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashed.ljust(32, b"\0") for hashed in hashes), np.uint64).reshape(-1, 4)


def jpeg(picture: Picture) -> Picture:
    file = BytesIO()
    picture.save(file, "JPEG", quality=50)
    return PIL.Image.open(file).convert("RGB")


def cropped(picture: Picture) -> Picture:
    width, height = picture.size
    return picture.crop((round(0.01 * width), round(0.01 * height), round(0.99 * width), round(0.99 * height)))


CHANGES: Mapping[str, Callable[[Picture], Picture]] = {
    "jpeg": jpeg,
    "larger": lambda picture: picture.resize((224, 224)),
    "smaller": lambda picture: picture.resize((picture.width * 2 // 3, picture.height * 2 // 3)),
    "crop": cropped,
    "brighter": lambda picture: picture.point(lambda level: min(255, int(1.1 * level))),
}


@pytest.fixture(scope="module")
def scenes() -> list[Picture]:
    """Alike in light, ground and palette, as pictures of one source are."""
    shapes = Shapes(image_size=128, train_rows=40)
    ids = shapes.index()["train"]
    return [shapes.to_sample(shapes.read(row_id)).prompt.images[0].load() for row_id in ids]


def problems(hashed: Hash, pictures: Sequence[Picture]) -> list[str]:
    """What a hash gets wrong: changes that it does not see through, and different pictures that it calls alike."""
    own = stacked([hashed(picture) for picture in pictures])
    found = []
    for name, change in CHANGES.items():
        twins = {i for a, b, _ in near(own, stacked([hashed(change(p)) for p in pictures])) for i in a[a == b].tolist()}
        missed = set(range(len(pictures))) - twins
        found += [f"{len(missed)} not found after {name}"] if len(missed) > len(pictures) // 20 else []
    alike = sum(len(i) for i, _, _ in near(own, own))
    return [*found, f"{alike} pairs of different pictures"] if alike else found


def test_changes_are_seen_through_and_different_scenes_are_not_alike(scenes: list[Picture]) -> None:
    assert len(scenes) == 40 and problems(perceptual_hash, scenes) == []


def test_a_hash_that_ignores_its_picture_is_caught(scenes: list[Picture]) -> None:
    assert problems(lambda picture: b"\1" * 32, scenes) == ["780 pairs of different pictures"]
    exact = problems(lambda picture: hashlib.sha256(picture.tobytes()).digest(), scenes)
    assert exact == [f"40 not found after {change}" for change in CHANGES]


def bits_between(one: bytes, other: bytes, n_bytes: int = 32) -> int:
    a, b = (int.from_bytes(hashed[:n_bytes], "big") for hashed in (one, other))
    return (a ^ b).bit_count()


def test_all_pairs_are_found_and_no_others() -> None:
    """Against two loops over whole numbers; more hashes than one block holds."""
    random = np.random.default_rng(0)
    hashes = [random.bytes(32) for _ in range(21)]
    for twin, n_flipped in ((0, 0), (3, 12), (9, 32), (20, 33), (20, 60)):
        bits = np.unpackbits(np.frombuffer(hashes[twin], np.uint8))
        bits[random.permutation(256)[:n_flipped]] ^= 1
        hashes.append(np.packbits(bits).tobytes())

    def alike(i: int, j: int) -> bool:
        coarse = bits_between(hashes[i], hashes[j], 8)
        return bits_between(hashes[i], hashes[j]) <= DISTANCE and coarse <= COARSE_DISTANCE

    expected = {(i, j) for i, j in itertools.combinations(range(len(hashes)), 2) if alike(i, j)}
    assert len(expected) == 3
    every = stacked(hashes)
    within = [(int(i), int(j), int(d)) for a, b, c in near(every, every) for i, j, d in zip(a, b, c, strict=True)]
    assert sorted((i, j) for i, j, _ in within) == sorted(expected)
    assert all(distance == bits_between(hashes[i], hashes[j]) for i, j, distance in within)
    across = {
        (int(i), int(j)) for a, b, _ in near(every[:10], stacked(hashes[10:] * 500)) for i, j in zip(a, b, strict=True)
    }
    assert {(i, 10 + j % 16) for i, j in across} == {(i, j) for i, j in expected if i < 10 <= j}
    assert list(near(every[:0], every)) == list(near(every, every[:0])) == []


def test_pictures_of_one_colour_are_like_nothing() -> None:
    assert {perceptual_hash(PIL.Image.new("RGB", (9, 5), shade)) for shade in ("white", "red", "black")} == {b""}
    blank = stacked([b""])
    assert near_across({"train": blank, "test": blank}) == {("train", "test"): []}


def test_each_picture_is_named_once_with_its_nearest(scenes: list[Picture]) -> None:
    one, other = perceptual_hash(scenes[0]), perceptual_hash(scenes[1])
    off = bytes([one[0] ^ 1]) + one[1:]
    train = stacked([off, one, other])
    test = stacked([off[:-1] + bytes([off[-1] ^ 7]), one, b""])
    found = near_across({"train": train, "test": test, "val": train[:0]})
    assert list(found) == [("train", "test"), ("val", "test"), ("train", "val")]
    assert found["train", "test"] == [(1, 1, 0), (0, 0, 3)] and not found["val", "test"]
