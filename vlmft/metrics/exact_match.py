"""Exact match of short texts, after the smallest clean-up that no reader would call a change of answer."""

from __future__ import annotations

from collections.abc import Sequence

from vlmft.metrics.score import Score, expect_references
from vlmft.metrics.words import composed


def exact_match(prediction: str, references: Sequence[str]) -> Score:
    """1 where the prediction equals a reference after NFC, casefold, single spaces and no trailing full stop.

    The score of SQuAD (Rajpurkar et al. 2016, section 6.1) without its English-only dropping of articles and ASCII
    punctuation. "4" and "four" differ here, and so do "1,200" and "1200": that gap to the looser metrics is the
    format debt of a model. Raises ValueError without references.
    """
    expect_references(references)
    answer = normalised(prediction)
    right = bool(answer) and any(answer == normalised(reference) for reference in references)
    return Score(float(right), answer or None)


def normalised(text: str) -> str:
    """NFC (a decomposed "й" equals the composed one), casefold, single spaces, no trailing full stop."""
    return " ".join(composed(text).split()).removesuffix(".").rstrip()
