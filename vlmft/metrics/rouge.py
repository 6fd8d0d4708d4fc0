"""ROUGE of texts in any script, with recall, precision and F each, over words or over Porter's stems.

Published figures of captions and open answers are often of stems ("runs" meets "running").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeAlias

from vlmft.metrics.score import Score, expect_references
from vlmft.metrics.sequences import lcs_length
from vlmft.metrics.table import Row, Table, expect_rows, short_answers
from vlmft.metrics.words import words


@dataclass(frozen=True)
class Overlap:
    """Shares of the reference found, of the prediction right, and their harmonic mean. All 0..1."""

    recall: float
    precision: float
    f: float


Tokenise: TypeAlias = Callable[[str], list[str]]


@lru_cache(maxsize=1)
def _porter() -> Callable[[str], str]:
    """The stemmer that rouge-score takes, nltk's own variant of Porter 1980. Raises ValueError without it."""
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise ValueError("Expected nltk for its Porter stemmer, got none; pip install 'vlmft[rouge]'") from error
    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return _porter()(word) if len(word) > 3 else word


def stems(text: str) -> list[str]:
    """`words`, those of more than three letters cut to their stem; raises ValueError where nltk is not installed."""
    return [_stem(word) for word in words(text)]


def _overlap(shared: int, n_predicted: int, n_reference: int) -> Overlap:
    if not shared:
        return Overlap(0.0, 0.0, 0.0)
    return Overlap(shared / n_reference, shared / n_predicted, 2 * shared / (n_predicted + n_reference))


def _rouge_n(prediction: Sequence[str], reference: Sequence[str], n: int) -> Overlap:
    """Shared runs of n words, each counted as often as both have it (Lin 2004, "ROUGE", section 2)."""
    predicted, expected = (
        Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (prediction, reference)
    )
    return _overlap((predicted & expected).total(), predicted.total(), expected.total())


def rouge_of(prediction: str, references: Sequence[str], tokenise: Tokenise = words) -> dict[str, Overlap]:
    """ROUGE-1, -2 and -L, for each the reference with the best F. Raises ValueError without references.

    On ASCII the numbers of https://github.com/google-research/google-research/tree/master/rouge, over `stems` those of
    its `use_stemmer=True`; that drops every letter beyond a-z, so that a Russian sentence scores 0 against itself.
    ROUGE-L takes the whole text as one sentence (Lin 2004, section 3.1, with F instead of its beta).
    """
    expect_references(references)
    answer, golds = tokenise(prediction), [tokenise(reference) for reference in references]
    found = {f"rouge{n}": [_rouge_n(answer, gold, n) for gold in golds] for n in (1, 2)}
    found["rougeL"] = [_overlap(lcs_length(answer, gold), len(answer), len(gold)) for gold in golds]
    return {name: max(overlaps, key=lambda one: one.f) for name, overlaps in found.items()}


def row_rouge(prediction: str, references: Sequence[str], *, name: str, tokenise: Tokenise) -> Score:
    """F of one of `rouge_of`. There is no such score of ROUGE-2: a right answer of one word would have 0."""
    return Score(rouge_of(prediction, references, tokenise)[name].f, " ".join(words(prediction)) or None)


rouge1 = partial(row_rouge, name="rouge1", tokenise=words)
rouge_l = partial(row_rouge, name="rougeL", tokenise=words)
rouge1_stemmed = partial(row_rouge, name="rouge1", tokenise=stems)
rouge_l_stemmed = partial(row_rouge, name="rougeL", tokenise=stems)


def rouge(rows: Sequence[Row], tokenise: Tokenise = words) -> Table:
    """Means over the rows of r, p and f, as `rouge1_r` ...; ROUGE-2 is withheld where the answers are short."""
    expect_rows(rows)
    table = mean_overlaps([rouge_of(prediction, references, tokenise) for prediction, references in rows])
    reason = short_answers(rows, words)
    if reason is not None:
        table.values.update({name: None for name in table.values if name.startswith("rouge2")})
        table.notes.append(f"rouge2: {reason}")
    return table


def rouge_stemmed(rows: Sequence[Row]) -> Table:
    """`rouge` over stems. Stemming is English: words in other scripts stay as they are."""
    table = rouge(rows, stems)
    table.notes.append("English stems (Porter), as rouge-score with use_stemmer=True; not comparable with rouge")
    return table


def mean_overlaps(rows: Sequence[dict[str, Overlap]]) -> Table:
    """The table of the means over the rows."""
    values: dict[str, float | None] = {}
    for name in rows[0]:
        for short, attribute in (("r", "recall"), ("p", "precision"), ("f", "f")):
            values[f"{name}_{short}"] = sum(getattr(row[name], attribute) for row in rows) / len(rows)
    return Table(values)
