"""The leak canary: gold answers replaced by a sentinel must move no prediction and stand in no prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmft.sample import Sample

SENTINEL = "quetzalcoatl"
"""A word that is no answer of any dataset here."""

Ask = Callable[[Sequence[Sample]], Mapping[str, str]]
"""Samples -> answer text by id, by the very path that evaluation takes."""
Show = Callable[[Sequence[Sample]], Mapping[str, str]]
"""Samples -> the whole prompt as the model reads it, decoded from its ids, by id."""


@dataclass(frozen=True)
class CanaryResult:
    n: int
    moved: tuple[str, ...]
    """Ids whose prediction changed with the gold answer."""
    exposed: tuple[str, ...]
    """Ids whose prompt shows the sentinel."""

    @property
    def ok(self) -> bool:
        return not self.moved and not self.exposed

    @property
    def sentence(self) -> str:
        if self.ok:
            return f"passed: on {self.n} rows the gold answer was replaced; no prediction moved, no prompt showed it"
        odd = (*self.exposed, *self.moved)
        return (
            f"LEAK: on {self.n} rows the gold answer was replaced; {len(self.moved)} predictions moved and "
            f"{len(self.exposed)} prompts showed it (first: {odd[0]}); scores of this evaluation mean nothing"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def leak_canary(samples: Sequence[Sample], censored: Sequence[Sample], ask: Ask, show: Show) -> CanaryResult:
    """Asks the rows with their gold answers and with `SENTINEL` in their place.

    Args:
        samples: rows as they are.
        censored: the same rows, in order, with `SENTINEL` for answer and references.
    """
    before, after = ask(samples), ask(censored)
    prompts = show(censored)
    return CanaryResult(
        n=len(samples),
        moved=tuple(row_id for row_id in before if before[row_id] != after.get(row_id)),
        exposed=tuple(row_id for row_id, text in prompts.items() if SENTINEL in text),
    )
