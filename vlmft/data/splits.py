"""What stands in which split, and that nothing stands in two.

Rows are told apart by what they show and not by their names: one chart under two file names is one chart.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import pickle
from collections.abc import Iterable, Mapping, Sequence

from vlmft.config.check import ConfigError
from vlmft.sample import SPLITS, BadRowError, Image, Sample, Split


def groups_of(samples: Mapping[Split, Iterable[Sample]]) -> dict[str, str]:
    """Row id -> group, after making sure that no id and no group stands in two splits.

    A group is a connected component: rows that share an image (exactly the same decoded pixels), over any chain of
    rows; rows without an image share their text. Rows whose images cannot be read have no group; they are refused
    where they are used. Every different file is decoded once, which is what this costs; no pixels are kept.

    Raises:
        ConfigError: as `assert_disjoint`.
    """
    ids: dict[Split, list[str]] = {split: [] for split in samples}
    contents: dict[str, set[str]] = {}
    hashes: dict[bytes, str] = {}
    for split, rows in samples.items():
        for sample in rows:
            ids[split].append(sample.id)
            with contextlib.suppress(BadRowError):
                images = {_pixel_hash(image, hashes) for image in sample.prompt.images}
                contents[sample.id] = images or {sample.prompt.sha256}
    groups = connected(contents)
    assert_disjoint(ids, groups)
    return groups


def _pixel_hash(image: Image, known: dict[bytes, str]) -> str:
    """`image.sha256`, from `known` where an equal loader (the same file, the same bytes) was seen before."""
    loader = hashlib.sha256(pickle.dumps(image.load)).digest()
    if loader not in known:
        known[loader] = copy.copy(image).sha256  # a copy comes without pixels, and takes those it decodes with it
    return known[loader]


def connected(contents: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Row id -> the least of all contents that its row hangs together with. Each row has at least one content."""
    parent: dict[str, str] = {}

    def root(content: str) -> str:
        while parent.setdefault(content, content) != content:
            parent[content] = parent[parent[content]]
            content = parent[content]
        return content

    for pieces in contents.values():
        for one, other in itertools.pairwise(pieces):
            low, high = sorted((root(one), root(other)))
            parent[high] = low
    return {row_id: root(next(iter(pieces))) for row_id, pieces in contents.items()}


def overlap(ids: Mapping[Split, Sequence[str]], groups: Mapping[str, str]) -> dict[tuple[Split, Split], dict[str, str]]:
    """(earlier split, later split) -> row of the later one -> a row of the earlier one with its id or group."""
    found: dict[tuple[Split, Split], dict[str, str]] = {}
    for first, second in itertools.combinations([split for split in SPLITS if split in ids], 2):
        known = {groups.get(row_id, row_id): row_id for row_id in ids[first]}
        shared = {row: known[groups.get(row, row)] for row in ids[second] if groups.get(row, row) in known}
        if shared:
            found[first, second] = shared
    return found


def assert_disjoint(ids: Mapping[Split, Sequence[str]], groups: Mapping[str, str] | None = None) -> None:
    """No row stands in two splits; without `groups` by its id alone, which costs nothing.

    Raises:
        ConfigError: with the count and one pair of rows by name.
    """
    for (first, second), rows in overlap(ids, groups or {}).items():
        row, twin = next(iter(rows.items()))
        raise ConfigError(
            f"data: {len(rows)} of {len(ids[second])} {second} rows show what {first} rows show, such as {row!r} and "
            f"{twin!r}; mend the splits: a model that has seen the {second} images cannot be tested on them"
        )
