"""Where in a model's text its answer stands."""

from __future__ import annotations

import re

SLOT = re.compile(r"<answer>(.*?)(?:</answer>|\Z)|\\boxed\{([^{}]*)\}", re.IGNORECASE | re.DOTALL)
"""A slot made for the answer alone. It may be left open: `</answer>` is a common stop string."""
PHRASE = re.compile(r"\b(?:answer|ответ)[\s*]*(?:\bis\b[\s*]*:?|[:=])[\s*]*(\S.*)", re.IGNORECASE)
"""The rest of the line after "Final answer: ", "The answer is ", "Ответ: "."""


def answer_slot(text: str) -> str | None:
    """What stands in the last `<answer>` or `\\boxed{}`; None where there is none."""
    slots = SLOT.findall(text)
    return "".join(slots[-1]).strip() if slots else None


def announced_answer(text: str) -> str:
    """The text after the last "The answer is" or the like, without it the whole text; reasoning is dropped before.

    A number in a chain of thought is no answer: a `<think>` that never ends leaves the empty string.
    """
    answer = text.rpartition("</think>")[2].partition("<think>")[0]
    phrases = PHRASE.findall(answer)
    return str(phrases[-1] if phrases else answer).strip()


def final_answer(text: str) -> str:
    """What stands in the answer slot, without one what `announced_answer` gives."""
    slot = answer_slot(text)
    return announced_answer(text) if slot is None else slot
