"""What a dataset looks like, before anything is trained on it: counted while its images are hashed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlmft.data.facts import Facts

SHOWN_ANSWERS = 3


@dataclass(frozen=True)
class SplitCard:
    """One split in numbers."""

    rows: int
    """As used, those that cannot be read included."""
    bad: int
    """Rows that cannot be read."""
    images: int
    """Different ones, by their decoded pixels."""
    questions_per_image: float
    """Mean over the images."""
    answer_words: tuple[int, int]
    """Median and longest answer, in words."""
    answers: int
    """Different ones."""
    top_answers: tuple[tuple[str, float], ...]
    """The most frequent answers, each with its share of the rows."""
    repeated: int
    """Rows that show, ask and answer what an earlier one does."""
    classes: int
    """Different values of the tag `class`; 0 where rows have none."""


def card(facts: Facts, answer_of: Callable[[int], str]) -> SplitCard:
    """One split's card; `answer_of` is asked for the answers of the few rows that it shows."""
    good = ~np.isin(np.arange(len(facts)), list(facts.bad))
    n_good = int(good.sum())
    words, answers = facts.words[good], facts.answers[good]
    _, first, counts = np.unique(answers, return_index=True, return_counts=True)
    top = sorted(range(len(first)), key=lambda i: (-counts[i], first[i]))[:SHOWN_ANSWERS]
    shown = facts.shows[facts.pictured[facts.shows[:, 0]] > 0]
    images = len(np.unique(shown[:, 1]))
    rows = np.flatnonzero(good)
    return SplitCard(
        rows=len(facts),
        bad=len(facts) - n_good,
        images=images,
        questions_per_image=len(shown) / max(1, images),
        answer_words=(round(float(np.median(words))), int(words.max())) if n_good else (0, 0),
        answers=len(first),
        top_answers=tuple((answer_of(int(rows[first[i]])), int(counts[i]) / n_good) for i in top),
        repeated=n_good - len(np.unique(_all_of(facts)[good])),
        classes=len({facts.class_names[number] for number in np.unique(facts.classes[good])} - {""}),
    )


def _all_of(facts: Facts) -> np.ndarray:
    """(n,) uint64: a hash of what each row shows, in any order, what it asks and what it answers."""
    found = facts.asks.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ facts.answers.view(np.uint64)
    heads = np.frombuffer(facts.contents.tobytes(), np.uint64)[::4]
    np.add.at(found, facts.shows[:, 0], heads[facts.shows[:, 1]])
    return found
