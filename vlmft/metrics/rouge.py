"""ROUGE of texts in any script, with recall, precision and F each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def overlap(shared: int, n_predicted: int, n_reference: int) -> Overlap:
    """From counts; 0 throughout where nothing is shared."""
    if not shared:
        return Overlap(0.0, 0.0, 0.0)
    return Overlap(shared / n_reference, shared / n_predicted, 2 * shared / (n_predicted + n_reference))


def rouge_n(prediction: Sequence[str], reference: Sequence[str], n: int) -> Overlap:
    """Shared runs of n words, each counted as often as both have it (Lin 2004, "ROUGE", section 2)."""
    predicted, expected = (
        Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (prediction, reference)
    )
    return overlap((predicted & expected).total(), predicted.total(), expected.total())


def rouge_lcs(prediction: Sequence[str], reference: Sequence[str]) -> Overlap:
    """ROUGE-L of the whole text as one sentence (Lin 2004, section 3.1, with F instead of its beta)."""
    return overlap(lcs_length(prediction, reference), len(prediction), len(reference))


def rouge_of(prediction: str, references: Sequence[str]) -> dict[str, Overlap]:
    """ROUGE-1, -2 and -L, for each the reference with the best F. Raises ValueError without references.

    On ASCII the numbers of https://github.com/google-research/google-research/tree/master/rouge without stemming; that
    drops every letter beyond a-z, so that a Russian sentence scores 0 against itself.
    """
    expect_references(references)
    return rouge_of_words(words(prediction), [words(reference) for reference in references])


def rouge_of_words(answer: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, Overlap]:
    """The same of texts that are cut into words already."""
    found = {f"rouge{n}": [rouge_n(answer, gold, n) for gold in golds] for n in (1, 2)}
    found["rougeL"] = [rouge_lcs(answer, gold) for gold in golds]
    return {name: max(overlaps, key=lambda one: one.f) for name, overlaps in found.items()}


def rouge1(prediction: str, references: Sequence[str]) -> Score:
    """F of ROUGE-1 as `rouge_of` has it. There is no such score of ROUGE-2: a right answer of one word would have 0."""
    return Score(rouge_of(prediction, references)["rouge1"].f, " ".join(words(prediction)) or None)


def rouge_l(prediction: str, references: Sequence[str]) -> Score:
    """F of ROUGE-L as `rouge_of` has it."""
    return Score(rouge_of(prediction, references)["rougeL"].f, " ".join(words(prediction)) or None)


def rouge(rows: Sequence[Row]) -> Table:
    """Means over the rows of r, p and f, as `rouge1_r` ...; ROUGE-2 is withheld where the answers are short."""
    return rouge_table(rows, rouge_of)


def rouge_table(rows: Sequence[Row], overlaps_of: Callable[[str, Sequence[str]], dict[str, Overlap]]) -> Table:
    """The table of one way to count the overlaps of a row."""
    expect_rows(rows)
    table = mean_overlaps([overlaps_of(prediction, references) for prediction, references in rows])
    reason = short_answers(rows, words)
    if reason is not None:
        table.values.update({name: None for name in table.values if name.startswith("rouge2")})
        table.notes.append(f"rouge2: {reason}")
    return table


def mean_overlaps(rows: Sequence[dict[str, Overlap]]) -> Table:
    values: dict[str, float | None] = {}
    for name in rows[0]:
        for short, attribute in (("r", "recall"), ("p", "precision"), ("f", "f")):
            values[f"{name}_{short}"] = sum(getattr(row[name], attribute) for row in rows) / len(rows)
    return Table(values)
