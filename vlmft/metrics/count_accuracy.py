"""Accuracy of counting, with the extraction of the number spelled out: without it the figure means nothing."""

from __future__ import annotations

from collections.abc import Sequence

from vlmft.metrics.final_answer import announced_answer, answer_slot
from vlmft.metrics.numerals import numbers_in, whole_number
from vlmft.metrics.score import Score, expect_references


def count_accuracy(prediction: str, references: Sequence[str]) -> Score:
    """1 where the number read out of the prediction equals a reference; a prediction without a number is wrong.

    Raises ValueError without references, or where one is not a whole number (digits or a word).
    """
    expect_references(references)
    counts = [reference_count(reference) for reference in references]
    count = extract_count(prediction)
    return Score(float(count is not None and count in counts), None if count is None else str(count))


def extract_count(text: str) -> int | None:
    """The count that `text` states, by the first rule that applies:

    1. an answer slot (`<answer>`, `\\boxed{}`) holds a number and nothing else, or the text states none: the slot asks
       for a number alone, as R1-V's evaluation does, https://github.com/Deep-Agent/R1-V;
    2. the answer, after "The answer is" if that occurs, is a whole number or a number word;
    3. the last whole number or number word in it. A model that reasons aloud ends with its result.
    """
    slot = answer_slot(text)
    if slot is not None:
        return whole_number(slot)
    answer = announced_answer(text)
    count = whole_number(answer)
    numbers = numbers_in(answer) if count is None else [count]
    return numbers[-1] if numbers else None


def reference_count(reference: str) -> int:
    """The count that a reference is; raises ValueError where it is anything else."""
    count = whole_number(reference)
    if count is None:
        raise ValueError(f"Expected a whole number as reference, got {reference!r}; score texts with exact_match")
    return count
