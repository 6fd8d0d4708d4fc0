"""Token F1 of short free answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vlmft.metrics.score import Score, expect_references
from vlmft.metrics.words import without_marks


def token_f1(prediction: str, references: Sequence[str]) -> Score:
    """Harmonic mean of precision and recall over bags of words, the best over the references.

    Rajpurkar et al. 2016, "SQuAD", section 6.1; on ASCII it is that script's number. There «Чебурашка» and Чебурашка
    share nothing, because its punctuation is ASCII; here they are equal. Raises ValueError without references.
    """
    expect_references(references)
    answer = without_marks(prediction)
    return Score(max(_f1(answer, without_marks(reference)) for reference in references), " ".join(answer) or None)


def _f1(answer: Sequence[str], gold: Sequence[str]) -> float:
    shared = (Counter(answer) & Counter(gold)).total()
    return 2 * shared / (len(answer) + len(gold)) if shared else 0.0
