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
from vlmft.data.splits import assert_disjoint, assign, connected, groups_of, overlap
from vlmft.sample import BadRow, BadRowError, Image, Message, Prompt, Sample


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


# --- assign: splits that the source does not declare


def rows_of(groups: int, rows_each: int = 1) -> dict[str, str]:
    return {f"{group:03d}/{row}": f"g{group:03d}" for group in range(groups) for row in range(rows_each)}


@pytest.mark.parametrize(("share", "n_rows"), [(0.2, 40), (0.1, 20), (7, 7), (50, 50), (0.001, 0)])
def test_assign_takes_a_share_or_a_count(share: float, n_rows: int) -> None:
    found = assign(rows_of(200), {}, {"test": share}, seed=0)
    assert len(found["test"]) == n_rows and len(found["train"]) == 200 - n_rows
    assert not {*found["train"]} & {*found["test"]}


def test_assign_keeps_groups_whole() -> None:
    groups = {**rows_of(20, 5), **{f"big/{row}": "big" for row in range(60)}}
    found = assign(groups, {}, {"test": 0.2, "val": 0.1}, seed=3)
    where = {row_id: split for split, rows in found.items() for row_id in rows}
    assert where.keys() == groups.keys() and sum(map(len, found.values())) == len(groups)
    assert len({(group, where[row_id]) for row_id, group in groups.items()}) == 21
    assert len(found["test"]) == 30 and len(found["val"]) == 15, "a group of 60 is too large for either"


def test_assign_is_a_function_of_the_seed_and_moves_little_when_rows_are_added() -> None:
    groups = rows_of(100)
    found = assign(groups, {}, {"test": 0.2}, seed=1)
    assert found == assign(dict(reversed(groups.items())), {}, {"test": 0.2}, seed=1)
    assert set(found["test"]) != set(assign(groups, {}, {"test": 0.2}, seed=2)["test"])
    more = assign({**groups, "new": "new"}, {}, {"test": 0.2}, seed=1)
    assert len({*more["test"]} ^ {*found["test"]}) <= 2


def test_assign_gives_each_class_its_share() -> None:
    groups = rows_of(90)
    classes = {row_id: "rare" if int(row_id[:3]) < 10 else "common" for row_id in groups}
    for seed in range(5):
        found = assign(groups, classes, {"test": 0.2, "val": 0.1}, seed)
        rare = {split: sum(classes[row_id] == "rare" for row_id in rows) for split, rows in found.items()}
        assert rare == {"train": 7, "test": 2, "val": 1}


def test_assign_leaves_something_to_train_on() -> None:
    assert assign({"a": "g", "b": "g"}, {}, {"test": 0.9}, seed=0) == {"train": ["a", "b"], "test": []}


def test_conversations_and_named_groups_tie_rows_together() -> None:
    def tied(row_id: str, shade: int, conversation: str = "", group: str = "") -> Sample:
        plain = sample(row_id, shade)
        tags = {"group": group} if group else {}
        return Sample(row_id, plain.prompt, "grey", ("grey",), conversation, tags)

    rows = [tied("a", 1, "x"), tied("b", 2, "x"), tied("c", 3, "", "x"), tied("d", 2, "", "x"), tied("e", 4)]
    groups = groups_of({"train": rows})
    assert len({groups[row_id] for row_id in "abcd"}) == 1 and groups["e"] != groups["a"]


def test_a_second_look_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(1).save(tmp_path / "1.png")
    hashes: dict[bytes, str] = {}

    def row() -> Sample:
        prompt = Prompt((Message("user", (image_from_file(tmp_path, "1.png"), "?")),))
        return Sample("a", prompt, "a", ("a",))

    first = groups_of({"train": [row()]}, hashes)
    monkeypatch.setattr(Image, "pixels", property(lambda image: 1 / 0))
    assert groups_of({"train": [row()]}, hashes) == first


def test_refused_rows_are_told_with_their_reason() -> None:
    bad = Sample("bad", Prompt((Message("user", (Image(broken, "broken"), "?")),)), "a", ("a",))
    told: list[BadRow] = []
    groups_of({"train": [sample("a", 1), bad]}, refuse=told.append)
    assert told == [BadRow("bad", "Expected an image, got none; replace the file")]
