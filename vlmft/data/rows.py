"""The rows of one dataset: which stand in which split, what is known of them, and each as a sample. Without torch."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset, Ids
from vlmft.data.ledger import Ledger
from vlmft.data.order import Mix, epoch_order
from vlmft.data.sources.table import Chained
from vlmft.data.splits import assert_disjoint, assign
from vlmft.data.survey.card import SplitCard, card
from vlmft.data.survey.facts import Facts, survey
from vlmft.data.survey.near_duplicates import NearPair, Shown, near_across
from vlmft.sample import CLASS, SPLITS, BadRow, BadRowError, Sample, Split

SAMPLED_ROWS = 300
"""Rows of a split that its card is counted from where no image can stand in two splits."""


class Rows:
    """The rows of a dataset by split, and their cards. Knows no tokenizer and no model."""

    def __init__(self, dataset: Dataset, config: DataConfig, ledger: Ledger, seed: int) -> None:
        self.dataset, self.config, self.ledger, self.seed = dataset, config, ledger, seed
        self.divided: tuple[Split, ...] = ()
        """Splits that the source does not declare: their rows were taken from train."""
        self.cards: dict[Split, SplitCard] = {}
        self.near_duplicates: dict[tuple[Split, Split], list[NearPair]] = {}
        self.mirrored: dict[tuple[Split, Split], list[NearPair]] = {}
        """Of those that are not near as they are. All three filled by `check_splits`."""
        self.largest_group = 0
        """Different images in the largest group of near-duplicates, where they are grouped."""
        self.groups: dict[Split, tuple[int, int]] = {}
        """Of each split, also filled by `check_splits`: groups of rows that share an image, a conversation or a group,
        and the rows of the largest."""
        self._shown: dict[Split, tuple[Ids, Facts]] = {}
        """The rows that `cards` tells of, and their facts."""
        index = dataset.index()
        self._n_declared = len(index)
        self._rows = Ids(Chained([*index.values()]).__getitem__, np.arange(sum(map(len, index.values()))))
        """All that the source declares, split after split. `Ids.numbers` of every split are places in it."""
        self._surveyed = np.zeros(0, np.int64)
        """Numbers of rows of which `_facts` tells."""
        self._facts: Facts | None = None
        self.ids: dict[Split, Ids] = self._limited(self._filled(index))

    def _filled(self, index: Mapping[Split, Sequence[str]]) -> dict[Split, Ids]:
        """Where val or test is not declared: taken from train by content, without the rows that cannot be read."""
        ends = np.cumsum([len(rows) for rows in index.values()], dtype=np.int64)
        numbers = {split: np.arange(end - len(index[split]), end) for split, end in zip(index, ends, strict=True)}
        train = numbers.get("train")
        asked = {"test": self.config.test_rows, "val": self.config.val_rows}
        for lacking, places in self.dataset.undeclared(index).items():
            missing = {split: asked[split] for split in lacking if asked[split] > 0}
            if missing and train is not None:
                pool = train[places]
                divided = self._divided(pool, missing)
                numbers["train"] = np.setdiff1d(numbers["train"], pool)
                for split, rows in divided.items():
                    numbers[split] = np.sort(np.concatenate([numbers.get(split, rows[:0]), rows]))
        if self.config.group_near_duplicates and not self.divided:
            raise ConfigError(
                f"data.group_near_duplicates: {self.dataset.name} declares its splits, and no row is moved between "
                "those; leave it out, the card counts near-duplicates all the same"
            )
        return {split: self._rows.take(places) for split, places in numbers.items()}

    def _divided(self, pool: np.ndarray, missing: Mapping[Split, float]) -> dict[Split, np.ndarray]:
        facts = self._survey(pool)
        groups = facts.groups(with_near_duplicates=self.config.group_near_duplicates)
        if self.config.group_near_duplicates:
            _, rows = facts.pictures()
            self.largest_group = max(self.largest_group, *np.unique(groups[rows], return_counts=True)[1].tolist(), 0)
        usable = int((groups >= 0).sum())
        if not usable:
            first = next(iter(self.ledger.bad.items()), ("none", "there are none"))
            raise ConfigError(f"data: none of {len(groups)} rows can be used; row {first[0]}: {first[1]}")
        if sum(share if share >= 1 else share * usable for share in missing.values()) >= usable:
            keys = ", ".join(f"data.{split}_rows={share:g}" for split, share in missing.items())
            raise ConfigError(f"{keys}: Expected fewer than the {usable} usable rows that there are; lower them")
        self.divided = tuple(dict.fromkeys((*self.divided, *missing)))
        n_groups, largest = _counted(groups)
        if n_groups <= len(missing) and largest > 1:
            raise ConfigError(
                f"data: shared images, conversations or groups tie {usable} rows into {n_groups} groups, {largest} in "
                f"the largest, so that no {' and no '.join(missing)} can be taken from them; declare splits, or train "
                f"without ({' '.join(f'data.{split}_rows=0' for split in missing)})"
            )
        found = assign(groups, facts.group_names(groups), facts.classes, missing, self.config.split_seed)
        return {split: pool[places] for split, places in found.items()}

    def _survey(self, numbers: np.ndarray, poll: Callable[[], None] = lambda: None) -> Facts:
        """What is known of these rows; those not looked at before are now, and the bad ones go to the ledger."""
        new = np.setdiff1d(numbers, self._surveyed)
        if len(new):
            found = survey(self.dataset, self._rows.take(new), poll)
            self._facts = found if self._facts is None else self._facts.with_rows(found)
            self._surveyed = np.concatenate([self._surveyed, new])
            self.ledger.survey(len(self._surveyed), len(self._rows))
            self.ledger.refuse_all([BadRow(self._rows[new[row]], why) for row, why in sorted(found.bad.items())])
        assert self._facts is not None
        order = np.argsort(self._surveyed)
        return self._facts.take(order[np.searchsorted(self._surveyed, numbers, sorter=order)])

    def _limited(self, index: Mapping[Split, Ids]) -> dict[Split, Ids]:
        ids: dict[Split, Ids] = {}
        for split in SPLITS:
            rows = index.get(split, self._rows[:0])
            if split == "train" and self.config.train_per_class is not None:
                rows = self._of_each_class(rows, self.config.train_per_class)
            limit = getattr(self.config, f"limit_{split}")
            if limit is not None and limit < 1:
                limit = max(1, round(limit * len(rows)))
            if limit is not None and limit < len(rows):
                # of val and test the same rows for every training seed
                seed = self.seed if split == "train" else self.config.split_seed
                rows = rows.take(np.sort(epoch_order(len(rows), seed, epoch=0)[: int(limit)]))
            ids[split] = rows
        return ids

    def _of_each_class(self, rows: Ids, most: int) -> Ids:
        """Rows of no class are bad ones and stay: they are refused by name where they are used."""
        taken: Counter[str] = Counter()
        chosen = []
        for position in epoch_order(len(rows), self.seed, epoch=0).tolist():
            with contextlib.suppress(BadRowError):
                tags = self.sample(rows[position]).tags
                if CLASS not in tags:
                    raise ConfigError(f"data.train_per_class: {self.dataset.name} knows no classes; leave it out")
                taken[tags[CLASS]] += 1
                if taken[tags[CLASS]] > most:
                    continue
            chosen.append(position)
        return rows.take(np.sort(np.array(chosen, np.int64)))

    @property
    def metric_name(self) -> str:
        return self.config.metric or self.dataset.metric

    @property
    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens or self.dataset.max_new_tokens

    def sample(self, row_id: str) -> Sample:
        """Stages 1 and 2 for one row.

        Raises:
            BadRowError: as the dataset says, without its id.
        """
        return self.dataset.to_sample(self.dataset.read(row_id))

    def samples(self, row_ids: Sequence[str]) -> list[Sample]:
        """The rows as samples, without those that the ledger takes."""
        found = []
        for row_id in row_ids:
            try:
                found.append(self.sample(row_id))
                self.ledger.admit(row_id)
            except BadRowError as error:
                self.ledger.refuse(BadRow(row_id, str(error)))
        return found

    def check_splits(self, poll: Callable[[], None] = lambda: None) -> None:
        """Makes sure that no row and no image stands in two of the splits as used; looks at every image once.

        Counts on the way what `cards` tells of the rows, and refuses those that cannot be read. `poll` is called before
        each row and now and then between images; it raises where the run was asked to stop.

        Raises:
            ConfigError: with the count and one pair of rows by name; or there is nothing to train on.
            BadRowError: as the ledger says.
        """
        if not self.ids["train"]:
            raise ConfigError("data: the training split has no rows; choose other splits or mend the data")
        if self._n_declared > 1:  # the ids of one declared split differ
            assert_disjoint(self.ids)
        most = SAMPLED_ROWS if self.dataset.disjoint_by_construction else None
        rows = [self.ids[split].take(self.some_places(split, most)) for split in SPLITS]
        ends = np.cumsum([len(ids) for ids in rows])[:-1]
        facts = self._survey(np.concatenate([ids.numbers for ids in rows]), poll)
        groups = np.split(facts.groups(), ends)
        self.groups = {split: _counted(some) for split, some in zip(SPLITS, groups, strict=True) if len(some)}
        assert_disjoint(dict(zip(SPLITS, rows, strict=True)), dict(zip(SPLITS, groups, strict=True)))
        places = np.split(np.arange(len(facts)), ends)
        for split, ids, some in zip(SPLITS, rows, places, strict=True):
            if len(some):
                self._shown[split] = ids, facts.take(some)
                self.cards[split] = card(self._shown[split][1], partial(self._answer, ids), len(self.ids[split]))
        self.near_duplicates = self._near_duplicates()
        near = {splits: {pair.held_out for pair in pairs} for splits, pairs in self.near_duplicates.items()}
        self.mirrored = {
            splits: [pair for pair in pairs if pair.held_out not in near[splits]]
            for splits, pairs in self._near_duplicates(mirrored=True).items()
        }

    def _answer(self, ids: Ids, place: int) -> str:
        return self.sample(ids[place]).answer

    def contents(self, split: Split) -> list[str] | None:
        """Of what the rows of a split show, or ask where they have no image, the first 16 hex digits of its hash.

        Sorted. None where not all rows were looked at, because no image can stand in two splits.
        """
        if self.dataset.disjoint_by_construction or split not in self._shown:
            return None
        _, facts = self._shown[split]
        return [facts.contents[place].ljust(32, b"\0").hex()[:16] for place in np.unique(facts.shows[:, 1])]

    def _near_duplicates(self, *, mirrored: bool = False) -> dict[tuple[Split, Split], list[NearPair]]:
        pictures = {split: facts.pictures() for split, (_, facts) in self._shown.items()}

        def shown(split: Split, picture: int) -> Shown:
            looks, rows = pictures[split]
            row_id = self._shown[split][0][rows[picture]]
            images = self.sample(row_id).prompt.images
            digest = looks["sha256"][picture].tobytes().hex()  # looked up only where there are several
            return Shown(row_id, next(i.name for i in images if len(images) == 1 or i.sha256 == digest))

        hashes = {split: np.ascontiguousarray(looks["perceptual"]) for split, (looks, _) in pictures.items()}
        return {
            (one, other): [NearPair(shown(other, i), shown(one, j), bits) for i, j, bits in pairs]
            for (one, other), pairs in near_across(hashes, mirrored=mirrored).items()
        }

    def some_places(self, split: Split, most: int | None) -> np.ndarray:
        """Places of all rows of a split, or of so many of a seeded shuffle; ascending."""
        n_rows = len(self.ids[split])
        order = np.arange(n_rows) if most is None or most >= n_rows else epoch_order(n_rows, self.seed, epoch=0)[:most]
        return np.sort(order)

    def some_rows(self, split: Split, most: int) -> list[tuple[Sample, list[tuple[int, int]]]]:
        """At most so many good rows of a seeded shuffle of those that the card tells of, with the sizes of their
        different images, which are not decoded for it."""
        ids, facts = self._shown[split]
        places = np.sort(epoch_order(len(ids), self.seed, epoch=0)[:most])
        some = facts.take(places)
        sizes = some.sizes()
        return [(self.sample(ids[place]), sizes[row]) for row, place in enumerate(places) if row not in some.bad]

    def some_samples(self, split: Split, most: int) -> list[Sample]:
        """At most so many rows of a seeded shuffle of a split, in its order, without those that cannot be read."""
        ids, found = self.ids[split], []
        for place in np.sort(epoch_order(len(ids), 0, epoch=0)[:most]).tolist():
            with contextlib.suppress(BadRowError):
                found.append(self.sample(ids[place]))
        return found

    def mix(self) -> Mix | None:
        """How often each training row comes in an epoch; None where each comes once."""
        weights = self.dataset.weights()
        if not weights:
            return None
        names = list(weights)
        part = [names.index(row_id.partition("/")[0]) for row_id in self.ids["train"]]
        return Mix(np.array(part, np.int64), list(weights.values()))

    def epoch_sentence(self) -> str:
        """What an epoch of several datasets holds; "" for one."""
        mix = self.mix()
        if mix is None:
            return ""
        told = zip(
            self.dataset.weights().items(),
            mix.rows(),
            np.bincount(mix.part, minlength=len(mix.weights)).tolist(),
            strict=True,
        )
        return "an epoch has " + ", ".join(f"{n:,} rows of {name} ({rows:,} x {w:g})" for (name, w), n, rows in told)

    def facts_of(self, split: Split) -> tuple[Ids, Facts]:
        """The rows of a split that its card tells of, and what is known of them."""
        return self._shown[split]


def _counted(groups: np.ndarray) -> tuple[int, int]:
    """(how many groups, rows of the largest), without rows of none."""
    _, sizes = np.unique(groups[groups >= 0], return_counts=True)
    return len(sizes), int(sizes.max(initial=0))
