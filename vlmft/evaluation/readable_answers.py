"""Does the data itself give away the answers? Rows whose gold answer occurs in their own prompt, against chance.

The leak canary proves that this program puts no answer into a prompt. It cannot detect a question such as "How many?
Answer is 3.", because the record holds that text as it is. So the texts themselves are read.

The rule: an answer occurs in a prompt where its words follow each other in one of its messages, whole words, letter
case and punctuation apart; numbers are one word, without separators of thousands. It does not count where it is one of
several that the prompt offers: behind one of the marks A., B., ..., beside "or", "and", "vs", "/" or "|", in a list of
three and more between commas, or as one of three and more short lines. So neither the options of a multiple-choice
question nor "Answer with one of: cat, dog" give away which of them is right.

By chance short answers occur in many questions: "1", "yes", a year. Chance is what the same rule finds when each
prompt is given the answer of another row, over seeded shuffles of the split's answers; a list of all classes that the
rule did not recognise occurs as often in either. A split is flagged where its rate lies above that of the shuffles
by more than `NATURAL`: people ask about what they name (of 648 questions about charts one contained its answer).

Limits. An answer in other words, another inflection or another spelling ("three" for 3) is not found, nor one that is
spelled backwards, encoded, or drawn into the picture. File and folder names count where a dataset puts them into a
text, because nothing else of them reaches a model. An answer that is repeated beside commas, "or" or "and" is taken
for an option and missed. A conversation that names a thing twice is counted as giving it away in its earlier turns.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from vlmft.evaluation.intervals import wilson_interval
from vlmft.evaluation.numbers import SHARE, percent
from vlmft.metrics.words import composed
from vlmft.sample import Prompt, Sample

NATURAL = 0.02
"""How far a split's rate may lie above chance before it is flagged."""
SHUFFLES = 200
MOST_ROWS = 2_000
"""Of a seeded shuffle of the rows: more rows would not change the result."""
COMMA, LINE, OPTION, END = ",", "\n", "\t", "."
OR = frozenset({"/", "or", "and", "vs", "versus", "или", "и", "oder", "und", "ou", "et"})
LIST_ITEMS, LINE_WORDS = 3, 6
"""What makes a list of things between commas or on lines of their own."""
_TOKEN = re.compile(
    r"(?P<number>\d+(?:[.,]\d+)*)|(?P<word>[^\W\d_]+)|(?P<end>[.?!:](?=\s|$))|(?P<comma>[,;])|(?P<or>[/|])|(?P<line>\n)"
)
_MARK = re.compile(r"(?<!\S)\(?([a-h])[.):](?=\s)")
_PATH = re.compile(r"\S+/\S*\.[a-z]\w{1,3}\b")
"""A file's: its slashes do not separate options."""
SIGNS = {"end": END, "comma": COMMA, "or": "/", "line": LINE}
Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Token:
    """A word in composed text, or one of the signs above."""

    word: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """The words and signs of a text that went through `composed`, with their places in it."""
    marks = _marks(text)
    text = _PATH.sub(lambda path: path[0].replace("/", " "), text)
    found, at = [], 0
    while (match := _TOKEN.search(text, at)) is not None:
        at = marks.get(match.start(), match.end())
        if match.start() in marks:
            found += [Token(match[0], *match.span()), Token(OPTION, match.end(), at)]
        else:
            word = SIGNS.get(str(match.lastgroup), re.sub(r",(?=\d{3}(?!\d))", "", match[0]))
            found.append(Token(word, *match.span()))
    return found


def _marks(text: str) -> dict[int, int]:
    """Place of the letter in each mark of a list of options, "A." or "(b)", -> the end of the mark.

    A list begins with a and has at least two: else "The answer is B." would be one.
    """
    found: dict[int, int] = {}
    begun: list[tuple[int, int]] = []
    for match in _MARK.finditer(text):
        if match[1] == "a":
            begun = []
        if match[1] == chr(ord("a") + len(begun)):
            begun.append((match.start(1), match.end()))
            found |= dict(begun) if len(begun) > 1 else {}
    return found


def words_of(text: str) -> tuple[str, ...]:
    """The words of an answer."""
    return tuple(token.word for token in tokens(composed(text)) if token.word not in (COMMA, LINE, OPTION, END, "/"))


class Text:
    """The words of one message, to be searched many times."""

    def __init__(self, text: str) -> None:
        self.words = [END, *(token.word for token in tokens(composed(text.strip()))), END]
        self.places: dict[str, list[int]] = {}
        for place, word in enumerate(self.words):
            self.places.setdefault(word, []).append(place)

    def tells(self, answer: tuple[str, ...]) -> bool:
        """Whether the answer occurs here, other than among several options."""
        for start in self.places.get(answer[0], ()) if answer else ():
            end = start + len(answer)
            if tuple(self.words[start:end]) == answer and not self._offered(start, end):
                return True
        return False

    def _offered(self, start: int, end: int) -> bool:
        before, after = self.words[start - 1], self.words[end]
        if OR & {before, after} or after == OPTION or self._sign_before(start) == OPTION:
            return True
        if COMMA in (before, after):
            return self._items(start, COMMA) >= LIST_ITEMS
        is_line = before in (LINE, END) and after in (LINE, END) and LINE in (before, after)
        return is_line and self._items(start, LINE) >= LIST_ITEMS

    def _sign_before(self, place: int) -> str:
        return next(word for word in reversed(self.words[:place]) if word in (COMMA, LINE, OPTION, END))

    def _items(self, place: int, sign: str) -> int:
        """How many items the list around a place has, separated by this sign alone; long lines do not count."""
        others = {COMMA, LINE, OPTION, END} - {sign}
        first = next(i for i in range(place - 1, -1, -1) if self.words[i] in others) + 1
        last = next(i for i in range(place, len(self.words)) if self.words[i] in others)
        signs = [first - 1, *(i for i in range(first, last) if self.words[i] == sign), last]
        most = LINE_WORDS if sign == LINE else last
        return sum(1 <= after - before - 1 <= most for before, after in itertools.pairwise(signs))


@dataclass(frozen=True)
class Readable:
    """How many rows of a split contain their own answer in the prompt."""

    n: int
    """Rows that were looked at."""
    rows: int
    """Those whose answer occurs in their prompt."""
    interval: tuple[float, float]
    """95 % Wilson interval of their share; takes rows for independent."""
    chance: float
    """Mean share over the shuffles."""
    chance_interval: tuple[float, float]
    """Of 95 % of the shuffles."""
    places: dict[str, int]
    """ "system text", "earlier turns", "question" -> rows, each in the first of them."""
    first: str | None
    """Id of the first such row."""

    @property
    def share(self) -> float:
        return self.rows / self.n if self.n else 0.0

    @property
    def flagged(self) -> bool:
        """Whether the share is above chance, and above what people's way of asking explains."""
        return self.interval[0] > self.chance_interval[1] and self.share > self.chance + NATURAL

    @property
    def sentence(self) -> str:
        """Such as "3 of 500 rows (0.6 %), by chance 0.2 % (0.0 to 0.6)", and where, if it is flagged."""
        sentence = f"{self.rows:,} of {self.n:,} rows ({percent(self.share)})"
        sentence += f", by chance {percent(self.chance)} ({SHARE.bounds(self.chance_interval)})"
        if not self.flagged:
            return sentence
        return f"{sentence}, in the {' and the '.join(self.places)} (first: {self.first})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        content = {**asdict(self), "interval": list(self.interval), "chance_interval": list(self.chance_interval)}
        return {**content, "flagged": self.flagged, "sentence": self.sentence}


def places_of(prompt: Prompt) -> Iterator[tuple[str, str]]:
    """Each message's text, and what it is."""
    for message in prompt.messages[:-1]:
        yield ("system text" if message.role == "system" else "earlier turns"), message.text
    yield "question", prompt.messages[-1].text


def readable(samples: Sequence[Sample], seed: int = 0) -> Readable:
    """Counts rows whose answer, or another reference, occurs in their prompt, and compares that with shuffles."""
    samples = random.Random(seed).sample(samples, MOST_ROWS) if len(samples) > MOST_ROWS else samples
    texts, asked = different([tuple(places_of(sample.prompt)) for sample in samples])
    golds, answered = different([tuple(dict.fromkeys(map(words_of, (s.answer, *s.references)))) for s in samples])
    text_of = functools.cache(Text)
    words = [[(place, text_of(text)) for place, text in some] for some in texts]

    def place_of(asked: int, answered: int) -> str | None:
        for place, text in words[asked]:  # generators would take three times as long, hundreds of times a row
            for answer in golds[answered]:
                if text.tells(answer):
                    return place
        return None

    n = len(samples)
    shuffled = np.array([answered[random.Random(seed + k).sample(range(n), n)] for k in range(SHUFFLES)])
    pairs, where = np.unique(asked * len(golds) + shuffled, return_inverse=True)
    told = np.array([place_of(*divmod(pair, len(golds))) is not None for pair in pairs.tolist()])
    own = [place_of(*pair) for pair in zip(asked.tolist(), answered.tolist(), strict=True)]
    rows = sum(place is not None for place in own)
    shares = sorted(told[where].reshape(shuffled.shape).mean(axis=1).tolist()) if n > 1 else [0.0]
    return Readable(
        n,
        rows,
        wilson_interval(rows, n) if n else (0.0, 1.0),
        sum(shares) / len(shares),
        (shares[int(0.025 * len(shares))], shares[-1 - int(0.025 * len(shares))]),
        {place: own.count(place) for place in dict.fromkeys(own) if place is not None},
        next((sample.id for sample, place in zip(samples, own, strict=True) if place is not None), None),
    )


def different(values: Sequence[Value]) -> tuple[list[Value], np.ndarray]:
    """The different ones, and of each value its number among them, int64."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return list(numbers), np.array([numbers[value] for value in values], np.int64)
