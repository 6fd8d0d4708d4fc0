"""Statistics of a dataset before training, counted while its images are hashed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmft.data.sources.split_names import SPLIT_NAMES
from vlmft.data.survey.facts import Facts
from vlmft.data.survey.near_duplicates import LOOK
from vlmft.sample import Split

KEPT_ANSWERS = 100
FEW_ANSWERS, FEW_ROWS = 20, 8
GAPS = ("nan", "NaN", "None", "<NA>", "null")


@dataclass(frozen=True)
class Spread:
    """Whole numbers, and how often each occurs."""

    counts: Mapping[int, int]

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        return sum(value * count for value, count in self.counts.items()) / max(1, self.n)

    def quantile(self, share: float) -> int:
        """The smallest value that `share` of all do not exceed; 0 where there are none."""
        values = sorted(self.counts)
        reached = itertools.accumulate(self.counts[value] for value in values)
        return next((value for value, n in zip(values, reached, strict=True) if n >= share * self.n), 0)

    def to_dict(self) -> dict[str, Any]:
        """{"n", "mean", "min", "median", "p95", "max", "counts": {"value": how often}}, values in order."""
        marks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
        counts = {str(value): self.counts[value] for value in sorted(self.counts)}
        quantiles = {name: self.quantile(share) for name, share in marks.items()}
        return {"n": self.n, "mean": round(self.mean, 3), **quantiles, "counts": counts}


@dataclass(frozen=True)
class SplitCard:
    """One split in numbers."""

    rows: int
    """As used, including those that cannot be read."""
    looked_at: int
    """Rows that all other numbers are of: fewer only where no image can be in two splits and a sample is enough."""
    bad: int
    """Rows that cannot be read."""
    images: int
    """Different ones, by their decoded pixels."""
    questions_per_image: Spread
    answer_words: Spread
    """Lengths of the answers."""
    answers: int
    """Different ones."""
    top_answers: Mapping[str, float]
    """The most frequent answers, at most `KEPT_ANSWERS`, each with its share of the rows; the most frequent first."""
    repeated: int
    """Rows with the images, the question and the answer of an earlier one."""
    classes: int
    """Different values of the tag `class`; 0 where rows have none."""
    sizes: Mapping[tuple[int, int], int]
    """(width, height) in pixels -> different images of that size."""


def card(facts: Facts, answer_of: Callable[[int], str], n_rows: int | None = None) -> SplitCard:
    """The card of a split of `n_rows`, or of as many as there are facts of.

    `answer_of` is asked for the answers of the few rows that it shows.
    """
    good = ~np.isin(np.arange(len(facts)), list(facts.bad))
    n_good = int(good.sum())
    answers = facts.rows["answers"][good]
    _, first, counts = np.unique(answers, return_index=True, return_counts=True)
    top = sorted(range(len(first)), key=lambda i: (-counts[i], first[i]))[:KEPT_ANSWERS]
    shown = facts.shown_images()
    looks, _ = facts.pictures()
    sizes, of_size = np.unique(np.column_stack([looks["width"], looks["height"]]), axis=0, return_counts=True)
    rows = np.flatnonzero(good)
    return SplitCard(
        rows=len(facts) if n_rows is None else n_rows,
        looked_at=len(facts),
        bad=len(facts) - n_good,
        images=len(looks),
        questions_per_image=spread_of(np.unique(shown[:, 1], return_counts=True)[1]),
        answer_words=spread_of(facts.rows["words"][good]),
        answers=len(first),
        top_answers={answer_of(int(rows[first[i]])): int(counts[i]) / n_good for i in top},
        repeated=n_good - len(np.unique(_all_of(facts)[good])),
        classes=len(set(facts.rows["classes"][good].tolist()) - {0}),
        sizes={(int(w), int(h)): int(n) for (w, h), n in zip(sizes, of_size, strict=True)},
    )


def spread_of(values: np.ndarray) -> Spread:
    return Spread({int(value): int(n) for value, n in zip(*np.unique(values, return_counts=True), strict=True)})


def _all_of(facts: Facts) -> np.ndarray:
    """(n,) uint64: a hash of each row's images, in any order, its question and its answer."""
    asks, answers = (facts.rows[name].astype(np.uint64) for name in ("asks", "answers"))
    found: np.ndarray = asks * np.uint64(0x9E3779B97F4A7C15) ^ answers
    heads = np.frombuffer(facts.contents.tobytes(), np.uint64)[:: LOOK.itemsize // 8]
    np.add.at(found, facts.shows[:, 0], heads[facts.shows[:, 1]])
    return found


def suspicions(cards: Mapping[Split, SplitCard]) -> list[str]:
    """Warnings about data that are rarely intended, a sentence each."""
    found = []
    for split, card_of in cards.items():
        answers = list(card_of.top_answers)
        if card_of.answers == 1 and card_of.rows - card_of.bad >= FEW_ROWS:
            found.append(f"every answer of {split} is {answers[0]!r}: nothing to learn, or the wrong field")
        named = [answer for answer in answers if answer.strip().lower() in SPLIT_NAMES]
        if named and card_of.answers <= FEW_ANSWERS:
            found.append(f"answers of {split} are names of splits ({', '.join(named)}): were folders of splits meant?")
        if card_of.repeated * 2 >= card_of.looked_at >= FEW_ROWS:
            found.append(
                f"{card_of.repeated:,} of {card_of.looked_at:,} rows of {split} repeat others: is a file read twice?"
            )
        for gap in [answer for answer in answers if answer in GAPS]:
            share = f"{100 * card_of.top_answers[gap]:.1f} %"
            found.append(f"the answer {gap!r} in {share} of {split} is what pandas writes for a missing value")
    return found
