"""What a dataset looks like, before anything is trained on it: counted while its images are hashed."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from dataclasses import dataclass

from vlmft.sample import Sample

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


class Tally:
    """Counts one split's rows as they go by; keeps no image and no text but the answers."""

    def __init__(self) -> None:
        self.shown: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.classes: set[str] = set()
        self.asked: Counter[int] = Counter()
        self.words = array("l")

    def add(self, sample: Sample, contents: set[str], class_name: str) -> None:
        """A row, what it shows (hashes of its images, or of its text), and its class or ""."""
        self.shown.update(contents if sample.prompt.images else ())
        self.answers[sample.answer] += 1
        self.classes |= {class_name} - {""}
        text = "\n".join(message.text for message in sample.prompt.messages)
        self.asked[hash((frozenset(contents), text, sample.answer))] += 1
        self.words.append(len(sample.answer.split()))

    def card(self, n_rows: int) -> SplitCard:
        good = len(self.words)
        top = tuple((answer, count / good) for answer, count in self.answers.most_common(SHOWN_ANSWERS))
        return SplitCard(
            rows=n_rows,
            bad=n_rows - good,
            images=len(self.shown),
            questions_per_image=self.shown.total() / max(1, len(self.shown)),
            answer_words=(round(statistics.median(self.words)), max(self.words)) if good else (0, 0),
            answers=len(self.answers),
            top_answers=top,
            repeated=good - len(self.asked),
            classes=len(self.classes),
        )
