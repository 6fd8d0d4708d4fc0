"""What stands in two splits is found, by content and over chains, and at the cost of one decoding a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.data.images import image_from_file
from vlmft.data.splits import assert_disjoint, connected, groups_of, overlap
from vlmft.sample import BadRowError, Image, Message, Prompt, Sample


def draw(shade: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (4, 3), (shade, shade, shade))


def sample(row_id: str, *shades: int, question: str = "What is this?") -> Sample:
    images = tuple(Image(partial(draw, shade), f"shade {shade}") for shade in shades)
    return Sample(row_id, Prompt((Message("user", (*images, question)),)), "grey", ("grey",))


def test_rows_of_one_image_are_one_group() -> None:
    groups = groups_of({"train": [sample("a", 1), sample("b", 1, question="Why?")], "test": [sample("c", 2)]})
    assert groups["a"] == groups["b"] == sample("x", 1).group
    assert groups["c"] == sample("x", 2).group


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([sample("a", 1)], [sample("b", 1)]),
        ([sample("a", 1)], [sample("b", 2), sample("c", 2, 1)]),  # as sets of images {1} and {2, 1} differ
        ([sample("a")], [sample("b")]),
    ],
)
def test_an_image_in_two_splits_is_an_error(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    with pytest.raises(ConfigError, match=rf"{len(test)} of {len(test)} test rows .* 'b' and 'a'"):
        groups_of({"train": train, "test": test})


def test_an_id_in_two_splits_is_an_error_before_any_image_is_decoded() -> None:
    with pytest.raises(ConfigError, match="1 of 2 test rows show what val rows show, such as 'b' and 'b'"):
        assert_disjoint({"train": ["a"], "val": ["b"], "test": ["b", "c"]})
    assert_disjoint({"train": ["a"], "val": ["b"], "test": ["c"]})
    with pytest.raises(ConfigError, match="such as 'a' and 'a'"):
        groups_of({"train": [sample("a", 1)], "test": [sample("a", 2)]})


def test_overlap_names_each_row_and_its_twin() -> None:
    ids = {"train": ["a", "b"], "val": ["c"], "test": ["d", "e", "f"]}
    groups = {"a": "1", "b": "2", "c": "3", "d": "2", "e": "3", "f": "4"}
    assert overlap(ids, groups) == {("train", "test"): {"d": "b"}, ("val", "test"): {"e": "c"}}  # type: ignore[arg-type]


def test_chains_connect_in_any_order() -> None:
    assert connected({"a": {"x", "y"}, "b": {"z"}, "c": {"w", "z"}, "d": {"y", "w"}, "e": {"v"}}) == {
        "a": "w",
        "b": "w",
        "c": "w",
        "d": "w",
        "e": "v",
    }


def broken() -> PIL.Image.Image:
    raise BadRowError("Expected an image, got none; replace the file")


def test_unreadable_rows_have_no_group() -> None:
    bad = Sample("bad", Prompt((Message("user", (Image(broken, "broken"), "?")),)), "a", ("a",))
    assert set(groups_of({"train": [sample("a", 1), bad], "test": [sample("b", 2)]})) == {"a", "b"}


def test_each_file_is_decoded_once_and_no_pixels_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def pixels(image: Image) -> np.ndarray:
        decoded.append(image.name)
        return np.asarray(image.load())

    monkeypatch.setattr(Image, "pixels", property(pixels))
    for shade in (1, 2):
        draw(shade).save(tmp_path / f"{shade}.png")
    draw(1).save(tmp_path / "copy.bmp")
    images = [image_from_file(tmp_path, name) for name in ("1.png", "1.png", "copy.bmp", "2.png", "2.png")]
    rows = [Sample(str(i), Prompt((Message("user", (image, "?")),)), "a", ("a",)) for i, image in enumerate(images)]
    groups = groups_of({"train": rows[:3], "test": rows[3:]})
    assert decoded == ["1.png", "copy.bmp", "2.png"]
    assert len(set(groups.values())) == 2 and groups["0"] == groups["2"]
    assert all(set(vars(image)) == {"load", "name"} for image in images)
