"""Counts read out of texts: how many are right, how far off they are, and which way.

The extraction of the number is spelled out: without it an accuracy of counting means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmft.metrics.final_answer import announced_answer, answer_slot
from vlmft.metrics.numerals import numbers_in, whole_number
from vlmft.metrics.score import Score, expect_references
from vlmft.metrics.table import Row, Table, expect_rows


def count_accuracy(prediction: str, references: Sequence[str]) -> Score:
    """1 where the number read out of the prediction equals a reference; a prediction without a number is wrong.

    Raises ValueError without references, or where one is not a whole number (digits or a word).
    """
    expect_references(references)
    counts = [_reference_count(reference) for reference in references]
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


def _reference_count(reference: str) -> int:
    count = whole_number(reference)
    if count is None:
        raise ValueError(f"Expected a whole number as reference, got {reference!r}; score texts with exact_match")
    return count


def counting(rows: Sequence[Row]) -> Table:
    """`within_1` over all rows, `mae` and `bias` (prediction - truth) over those with a number, and a row per count.

    Of several references the nearest counts. Answering the middle of a narrow range does well in `within_1`: hold the
    accuracy beside it. A row without a number is wrong in `within_1` and in its count's accuracy. Raises ValueError
    without rows, or on a reference that is no whole number.
    """
    expect_rows(rows)
    errors: list[tuple[int, int | None]] = []
    for prediction, references in rows:
        golds, count = [_reference_count(reference) for reference in references], extract_count(prediction)
        errors.append((golds[0], None if count is None else min((count - gold for gold in golds), key=abs)))
    read = [error for _, error in errors if error is not None]
    values: dict[str, float | None] = {
        "within_1": sum(abs(error) <= 1 for error in read) / len(rows),
        "mae": sum(map(abs, read)) / len(read) if read else None,
        "bias": sum(read) / len(read) if read else None,
    }
    notes = [f"mae and bias: over the {len(read)} of {len(rows)} rows in which a number was found"]
    return Table(values, notes, {"per_true_count": [_of_count(gold, errors) for gold in sorted(dict(errors))]})


def _of_count(gold: int, errors: Sequence[tuple[int, int | None]]) -> dict[str, float | int | None]:
    own = [error for truth, error in errors if truth == gold]
    read = [error for error in own if error is not None]
    return {
        "count": gold,
        "n": len(own),
        "accuracy": sum(error == 0 for error in own) / len(own),
        "bias": sum(read) / len(read) if read else None,
    }
