"""What stands in which split, and that nothing stands in two.

Rows are told apart by what they show and not by their names: one chart under two file names is one chart.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence

from vlmft.config.check import ConfigError
from vlmft.data.dataset import GROUP
from vlmft.sample import SPLITS, BadRow, BadRowError, Image, Sample, Split

Seen = Callable[[Split, Sample, set[str]], None]
"""Told of each row: its split, the row, and what it shows (hashes of its images, or of its text)."""


def groups_of(
    samples: Mapping[Split, Iterable[Sample]],
    hashes: dict[bytes, str] | None = None,
    seen: Seen = lambda split, sample, contents: None,
    refuse: Callable[[BadRow], None] = lambda row: None,
) -> dict[str, str]:
    """Row id -> group, after making sure that no id and no group stands in two splits.

    A group is a connected component: rows that share an image (exactly the same decoded pixels), a conversation or a
    tag `GROUP`, over any chain of rows; rows without an image share their text. Rows whose images cannot be read have
    no group; `refuse` hears of them. Every different file is decoded once, which is what this costs, and not again
    where `hashes` come from an earlier call; no pixels are kept.

    Raises:
        ConfigError: as `assert_disjoint`.
    """
    ids: dict[Split, list[str]] = {split: [] for split in samples}
    contents: dict[str, set[str]] = {}
    known: dict[bytes, str] = {} if hashes is None else hashes
    for split, rows in samples.items():
        for sample in rows:
            ids[split].append(sample.id)
            try:
                shown = {_pixel_hash(image, known) for image in sample.prompt.images} or {sample.prompt.sha256}
            except BadRowError as error:
                refuse(BadRow(sample.id, str(error)))
                continue
            seen(split, sample, shown)
            contents[sample.id] = shown | {f"{kind} {name}" for kind, name in _ties(sample) if name}
    groups = connected(contents)
    assert_disjoint(ids, groups)
    return groups


def _ties(sample: Sample) -> tuple[tuple[str, str], ...]:
    return ("conversation", sample.conversation), (GROUP, sample.tags.get(GROUP, ""))


def assign(
    groups: Mapping[str, str], classes: Mapping[str, str], wanted: Mapping[Split, float], seed: int
) -> dict[Split, list[str]]:
    """Divides the rows into the `wanted` splits (each a count of rows, or a share below 1) and train, by whole groups.

    The order in which groups are taken is that of a hash with the seed: a row that is added later moves few others.
    Of each class (row id -> class, of a group that of its first row) the same share is taken, as far as groups allow.
    """
    members: dict[str, list[str]] = {}
    for row_id, group in groups.items():
        members.setdefault(group, []).append(row_id)
    chance = {group: hashlib.sha256(f"{seed} {group}".encode()).hexdigest() for group in members}
    strata: dict[str, list[str]] = {}
    for group in sorted(members, key=chance.__getitem__):
        strata.setdefault(classes.get(members[group][0], ""), []).append(group)
    place = {g: (i + 0.5) / len(stratum) for stratum in strata.values() for i, g in enumerate(stratum)}
    queue = sorted(members, key=lambda group: (place[group], chance[group]))
    found: dict[Split, list[str]] = {}
    for split, share in wanted.items():
        target = share if share >= 1 else round(share * len(groups))
        rows = found[split] = []
        for group in list(queue):
            if len(rows) + len(members[group]) / 2 <= target and len(queue) > 1:
                rows += members[group]
                queue.remove(group)
            if len(rows) >= target:
                break
    return {"train": [row_id for group in queue for row_id in members[group]], **found}


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
