"""Which rows a run had stands in its folder; with other rows it is neither resumed nor evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmft.config.check import ConfigError
from vlmft.run.rows import MANIFEST_FILE, keep_manifest, manifest, require_same_rows


class Rows:
    """What a manifest reads of rows and of their survey."""

    def __init__(self, divided: tuple[str, ...] = ("test",), train: str = "ab") -> None:
        self.ids = {"train": list(train), "val": [], "test": ["c"]}
        self.divided = divided
        self.rows = self

    def contents(self, split: str) -> list[str] | None:
        return [f"{split:>016}"] if split == "train" else None


def test_ids_are_stored_where_the_splits_were_made_here() -> None:
    made: Any = Rows()
    assert manifest(made)["train"]["ids"] == ["a", "b"] and manifest(made)["train"]["n"] == 2
    declared: Any = Rows(divided=())
    assert {*manifest(declared)["train"]} == {"n", "sha256"}
    assert manifest(declared)["train"]["sha256"] == manifest(made)["train"]["sha256"]


def test_other_rows_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST_FILE
    same: Any = Rows()
    other: Any = Rows(train="ba")
    require_same_rows(path, other)  # a run from before has none
    keep_manifest(path, same, require_same_rows(path, same))
    keep_manifest(path, same, require_same_rows(path, same))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="Expected the 2 train rows that"):
        require_same_rows(path, other)
    assert path.read_bytes() == before and json.loads(before)["test"]["ids"] == ["c"]
    assert (
        json.loads(before)["train"]["contents"] == ["00000000000train"] and "contents" not in json.loads(before)["test"]
    )
