"""The contents of the splits as used: counted once, and checked to share no row and no image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Ids
from vlmft.data.order import epoch_order
from vlmft.data.rows import Rows
from vlmft.data.splits import assert_disjoint
from vlmft.data.survey.card import SplitCard, card
from vlmft.data.survey.facts import Facts, group_sizes
from vlmft.data.survey.near_duplicates import NearPair, Shown, near_across
from vlmft.sample import SPLITS, Sample, Split

SAMPLED_ROWS = 300
"""Rows of a split that its card is counted from where no image can be in two splits."""

Pairs = Mapping[tuple[Split, Split], list[NearPair]]


@dataclass(frozen=True)
class Survey:
    """What is known of the rows of each split that has some."""

    rows: Rows
    looked_at: Mapping[Split, tuple[Ids, Facts]]
    """The rows that were examined, all or a sample, and their facts."""
    cards: Mapping[Split, SplitCard]
    groups: Mapping[Split, tuple[int, int]]
    """Groups of rows that share an image, a conversation or a group, and the rows of the largest."""
    near_duplicates: Pairs
    mirrored: Pairs
    """Mirrored ones, without pairs of `near_duplicates`."""

    def contents(self, split: Split) -> list[str] | None:
        """The first 16 hex digits of the hash of each image of a split, or of the text of a row without images.

        Sorted. None where not all rows were examined, because no image can be in two splits.
        """
        if self.rows.dataset.disjoint_by_construction or split not in self.looked_at:
            return None
        _, facts = self.looked_at[split]
        return [facts.contents[place].ljust(32, b"\0").hex()[:16] for place in np.unique(facts.shows[:, 1])]

    def some(self, split: Split, most: int) -> list[tuple[Sample, list[tuple[int, int]]]]:
        """At most `most` good rows of a seeded shuffle, with the (width, height) in pixels of their different images,
        which are not decoded for it."""
        ids, facts = self.looked_at[split]
        places = np.sort(epoch_order(len(ids), self.rows.seed, epoch=0)[:most])
        facts = facts.take(places)
        found = zip(places, facts.sizes(), range(len(facts)), strict=True)
        return [(self.rows.sample(ids[place]), sizes) for place, sizes, row in found if row not in facts.bad]


def survey_splits(rows: Rows, poll: Callable[[], None] = lambda: None) -> Survey:
    """Checks that no row and no image is in two of the splits as used; decodes every image once.

    Also counts for the data card, and refuses rows that cannot be read. `poll` is called before each row and now and
    then between images; it raises where the run was asked to stop.

    Raises:
        ConfigError: with the count and one pair of rows by name; or there is nothing to train on.
        BadRowError: as the ledger raises it.
    """
    if not rows.ids["train"]:
        raise ConfigError("data: the training split has no rows; choose other splits or fix the data")
    if len(rows.splits.declared) > 1:  # the ids of one declared split differ
        assert_disjoint(rows.ids)
    ids, facts = facts_of_splits(rows, poll)
    ends = np.cumsum([len(some) for some in ids.values()])
    groups = dict(zip(SPLITS, np.split(facts.groups(), ends[:-1]), strict=True))
    assert_disjoint(ids, groups)
    places = zip(SPLITS, np.split(np.arange(len(facts)), ends[:-1]), strict=True)
    looked_at = {split: (ids[split], facts.take(some)) for split, some in places if len(some)}
    near = near_pairs(rows, looked_at, mirrored=False)
    known = {splits: {pair.held_out for pair in pairs} for splits, pairs in near.items()}
    mirrored = near_pairs(rows, looked_at, mirrored=True)
    return Survey(
        rows,
        looked_at,
        {split: _card(rows, split, *found) for split, found in looked_at.items()},
        {split: group_sizes(groups[split]) for split in looked_at},
        near,
        {splits: [pair for pair in pairs if pair.held_out not in known[splits]] for splits, pairs in mirrored.items()},
    )


def facts_of_splits(rows: Rows, poll: Callable[[], None] = lambda: None) -> tuple[dict[Split, Ids], Facts]:
    """The rows of each split that are examined, and the facts of all of them, one split after another.

    Raises:
        BadRowError: as the ledger raises it.
    """
    most = SAMPLED_ROWS if rows.dataset.disjoint_by_construction else None
    ids = {split: rows.some(split, most, rows.seed) for split in SPLITS}
    return ids, rows.facts.of(np.concatenate([some.numbers for some in ids.values()]), poll)


def _card(rows: Rows, split: Split, ids: Ids, facts: Facts) -> SplitCard:
    return card(facts, lambda place: rows.sample(ids[place]).answer, len(rows.ids[split]))


def near_pairs(rows: Rows, looked_at: Mapping[Split, tuple[Ids, Facts]], *, mirrored: bool) -> Pairs:
    """Near-duplicates between splits, by the rows that show them first."""
    pictures = {split: facts.pictures() for split, (_, facts) in looked_at.items()}

    def shown(split: Split, picture: int) -> Shown:
        looks, first_rows = pictures[split]
        row_id = looked_at[split][0][first_rows[picture]]
        images = rows.sample(row_id).prompt.images
        digest = looks["sha256"][picture].tobytes().hex()  # looked up only where there are several
        return Shown(row_id, next(i.name for i in images if len(images) == 1 or i.sha256 == digest))

    hashes = {split: np.ascontiguousarray(looks["perceptual"]) for split, (looks, _) in pictures.items()}
    return {
        (one, other): [NearPair(shown(other, i), shown(one, j), bits) for i, j, bits in pairs]
        for (one, other), pairs in near_across(hashes, mirrored=mirrored).items()
    }
