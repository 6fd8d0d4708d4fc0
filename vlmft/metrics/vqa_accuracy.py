"""Accuracy of visual question answering: English short answers after VQA's clean-up."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from vlmft.metrics.score import Score, expect_references

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_NUMBERS = {"none": "0"} | {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_NOT = (
    "ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn oughtn shan shouldn wasn weren won "
    "wouldn"
)
_ENDINGS = {
    "ve": "could might must should they we who would you i",
    "re": "they you what",
    "ll": "they you it what who",
}
_OTHER = "i'm he's she's that's there's what's where's who's how's y'all o'clock ma'am"
_CONTRACTIONS = {
    written.replace("'", ""): written
    for written in [
        *(f"{stem}'t" for stem in _NOT.split()),
        *(f"{stem}'{ending}" for ending, stems in _ENDINGS.items() for stem in stems.split()),
        *_OTHER.split(),
    ]
}


def vqa_normalised(text: str) -> str:
    """Lower case, punctuation, full stops, articles, number words to ten and lost apostrophes put right.

    As https://github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, with the marks that its
    later ports agree on (they add "-", "!" and braces, and keep ":" and apostrophes), and always applied, as they do;
    there it is not where all ten answers are equal. Every full stop that no digit follows goes: "3." is 3.
    """
    text = unicodedata.normalize("NFC", text).replace("\n", " ").replace("\t", " ").strip()
    has_thousands = _DIGIT_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        at_an_edge = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if at_an_edge or has_thousands else " ")
    found = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", cleaned).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in found if word not in ("a", "an", "the"))


def vqa_match(prediction: str, references: Sequence[str]) -> Score:
    """1 where the prediction equals a reference after `vqa_normalised`; raises ValueError without references."""
    expect_references(references)
    answer = vqa_normalised(prediction)
    right = bool(answer) and any(answer == vqa_normalised(reference) for reference in references)
    return Score(float(right), answer or None)


def vqa_accuracy(prediction: str, references: Sequence[str]) -> Score:
    """Mean over the human answers of min(1, equal ones among the others / 3), after `vqa_normalised`.

    Antol et al. 2015, "VQA", section 3.2: with ten answers three equal ones give 0.9. Below four answers nothing could
    reach 1; then a match scores 1, as `vqa_match` does. Raises ValueError without references.
    """
    expect_references(references)
    if len(references) < 4:
        return vqa_match(prediction, references)
    answer = vqa_normalised(prediction)
    equal = [bool(answer) and answer == vqa_normalised(reference) for reference in references]
    return Score(sum(min(1.0, (sum(equal) - one) / 3) for one in equal) / len(equal), answer or None)
