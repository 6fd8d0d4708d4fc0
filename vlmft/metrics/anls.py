"""ANLS, the score of document questions: edit distance with a floor."""

from __future__ import annotations

from collections.abc import Sequence

from vlmft.metrics.score import Score, expect_references
from vlmft.metrics.sequences import edit_distance
from vlmft.metrics.words import composed


def anls(prediction: str, references: Sequence[str]) -> Score:
    """1 - edit distance / longer length, 0 where that distance is 0.5 or more; the best over the references.

    Biten et al. 2019, "Scene Text Visual Question Answering", section 4.1. Case and runs of spaces do not count, and
    lengths are those of the cleaned texts: a port that divides by the raw ones scores "a  b" above "a b". An empty
    answer is wrong. Raises ValueError without references.
    """
    expect_references(references)
    answer = " ".join(composed(prediction).split())
    value = max(_similarity(answer, " ".join(composed(reference).split())) for reference in references)
    return Score(value if answer else 0.0, answer or None)


def _similarity(answer: str, gold: str) -> float:
    longer = max(len(answer), len(gold))
    if 2 * abs(len(answer) - len(gold)) >= longer:  # enough to know that it is 0; also where both are empty
        return 0.0
    distance = edit_distance(answer, gold)
    return 1 - distance / longer if 2 * distance < longer else 0.0
