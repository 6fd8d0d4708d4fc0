"""ROUGE over Porter's stems, as published figures of captions and open answers often are ("runs" meets "running")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from vlmft.metrics.rouge import Overlap, rouge_of_words, rouge_table
from vlmft.metrics.score import Score, expect_references
from vlmft.metrics.table import Row, Table
from vlmft.metrics.words import words


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


def rouge_of_stems(prediction: str, references: Sequence[str]) -> dict[str, Overlap]:
    """`rouge_of` over stems: on ASCII the numbers of rouge-score with `use_stemmer=True`.

    Raises ValueError without references or without nltk.
    """
    expect_references(references)
    return rouge_of_words(stems(prediction), [stems(reference) for reference in references])


def rouge1_stemmed(prediction: str, references: Sequence[str]) -> Score:
    """F of ROUGE-1 as `rouge_of_stems` has it."""
    return Score(rouge_of_stems(prediction, references)["rouge1"].f, " ".join(words(prediction)) or None)


def rouge_l_stemmed(prediction: str, references: Sequence[str]) -> Score:
    """F of ROUGE-L as `rouge_of_stems` has it."""
    return Score(rouge_of_stems(prediction, references)["rougeL"].f, " ".join(words(prediction)) or None)


def rouge_stemmed(rows: Sequence[Row]) -> Table:
    """`rouge` over stems. Stemming is English: words in other scripts stay as they are."""
    table = rouge_table(rows, rouge_of_stems)
    table.notes.append("English stems (Porter), as rouge-score with use_stemmer=True; not comparable with rouge")
    return table
