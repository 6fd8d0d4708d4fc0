"""Baselines without images: answers from the training rows and from the texts alone, by simple rules.

* `majority`: the most frequent training answer.
* `majority by question`: that of the same kind of question. A kind is the bare question without its numbers; where
  fewer than `LEAST` training rows ask it, the tag `source`; where fewer have that, all rows are of one kind.
* `copy`: the text at the place where training prompts have their answer: after the two words, or else the one, that
  answers follow most reliably: one word, or all up to the next sign. Where no words lead to an answer it gives none.

All are fitted on train and scored by the dataset's own metric. A tuned model that does not beat them has not been shown
to look at anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlmft.evaluation.readable_answers import END, Token, places_of, tokens, words_of
from vlmft.metrics.score import Metric
from vlmft.metrics.words import composed, words
from vlmft.sample import Sample

LEAST = 5
"""Training rows of a kind of question, below which its most frequent answer is an accident."""
SOURCE = "source"
SIGNS = frozenset({",", "\n", "\t", ".", "/"})
Lead = tuple[tuple[str, ...], bool]
"""Words before an answer, and whether it goes on to the next sign."""


@dataclass(frozen=True)
class Baseline:
    """The score of one rule."""

    name: str
    value: float
    """Mean score, 0..1, over all rows; a row without an answer counts as wrong."""
    answered: int
    """Rows to which it had an answer."""
    kinds: int
    """Kinds of question, or words that lead to answers, counted in train."""


def baselines(train: Sequence[Sample], test: Sequence[Sample], metric: Metric) -> list[Baseline]:
    """Fitted on `train`, scored on `test`; none where either has no rows."""
    if not train or not test:
        return []
    everywhere = Counter(sample.answer for sample in train)
    by_kind = Majority(train)
    leads = leading_words(train)
    copied = [copy(sample, leads) for sample in test]
    return [
        _scored("majority", [_most(everywhere)] * len(test), test, metric, 1),
        _scored("majority by question", [by_kind.answer(sample) for sample in test], test, metric, by_kind.n_kinds),
        _scored("copy", copied, test, metric, len(leads)),
    ]


def _scored(name: str, texts: Sequence[str | None], test: Sequence[Sample], metric: Metric, kinds: int) -> Baseline:
    values = [
        0.0 if text is None else metric(text, sample.references).value for text, sample in zip(texts, test, strict=True)
    ]
    return Baseline(name, sum(values) / len(values), sum(text is not None for text in texts), kinds)


def _most(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


class Majority:
    """The most frequent answer of each kind of question."""

    def __init__(self, train: Sequence[Sample]) -> None:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in train:
            for kind in kinds_of(sample):
                counts[kind][sample.answer] += 1
        self.most = {kind: _most(answers) for kind, answers in counts.items() if answers.total() >= LEAST or not kind}
        self.n_kinds = sum(kind.startswith("asks ") for kind in self.most) or 1

    def answer(self, sample: Sample) -> str:
        return next(self.most[kind] for kind in kinds_of(sample) if kind in self.most)


def kinds_of(sample: Sample) -> Iterator[str]:
    """The kinds of question that a row is of, the narrowest first; "" is that of all rows."""
    yield "asks " + " ".join(word for word in words(sample.bare_question) if not any(map(str.isdigit, word)))
    if SOURCE in sample.tags:
        yield f"source {sample.tags[SOURCE]}"
    yield ""


def _texts(sample: Sample) -> Iterator[tuple[str, list[Token]]]:
    for _, text in places_of(sample.prompt):
        whole = composed(text)
        yield whole, [Token(END, 0, 0), *tokens(whole)]


def _leads(text_tokens: Sequence[Token]) -> Iterator[tuple[Lead, int, int]]:
    """(lead, first, end) of each span of words that follows a lead; signs count as words in a lead."""
    end = len(text_tokens)
    for place in range(len(text_tokens) - 1, 0, -1):
        if text_tokens[place].word in SIGNS:
            end = place
            continue
        for n in (2, 1):
            before = tuple(token.word for token in text_tokens[max(0, place - n) : place])
            yield (before, True), place, end
            yield (before, False), place, place + 1


def leading_words(train: Sequence[Sample]) -> Mapping[Lead, float]:
    """Leads -> the share of their occurrences that the row's answer follows, where that is most of them."""
    answers: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for sample in train:  # many rows ask the same
        for _, text in places_of(sample.prompt):
            answers[composed(text)][words_of(sample.answer)] += 1
    seen: Counter[Lead] = Counter()
    right: Counter[Lead] = Counter()
    for whole, given in answers.items():
        text_tokens = [Token(END, 0, 0), *tokens(whole)]
        for lead, first, end in _leads(text_tokens):
            seen[lead] += given.total()
            right[lead] += given[tuple(token.word for token in text_tokens[first:end])]
    return {lead: n / seen[lead] for lead, n in right.items() if n >= LEAST and 2 * n > seen[lead]}


def copy(sample: Sample, leads: Mapping[Lead, float]) -> str | None:
    """The words behind the most reliable lead of a prompt, as they are written there; None without one."""
    best, text = 0.0, None
    for whole, text_tokens in _texts(sample):
        for lead, first, end in _leads(text_tokens):
            if leads.get(lead, 0.0) > best:
                best, text = leads[lead], whole[text_tokens[first].start : text_tokens[end - 1].end]
    return text
