"""The leak canary: gold answers replaced by a sentinel must not change any prediction or prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmft.evaluation.predict import Answerer
from vlmft.evaluation.rows import EvaluationRows
from vlmft.models.loaded import LoadedModel
from vlmft.sample import BadRowError, EncodedRow, Question, Sample

SENTINEL = "quetzalcoatl"
"""A word that is not an answer in any dataset here."""

Ask = Callable[[Sequence[Sample]], Mapping[str, str]]
"""Samples -> answer text by id, by the same path as in evaluation."""
Show = Callable[[Sequence[Sample]], Mapping[str, str]]
"""Samples -> the whole prompt as the model reads it, decoded from its ids, by id."""


@dataclass(frozen=True)
class CanaryResult:
    n: int
    in_source: int
    """Rows whose source record held the gold answer, so that it was replaced before the prompt was made."""
    moved: tuple[str, ...]
    """Ids whose prediction changed with the gold answer."""
    exposed: tuple[str, ...]
    """Ids whose prompt, as the dataset made it or as the model reads it, changed with the gold answer."""
    asked: bool = True
    """Whether predictions were compared, or prompts alone, as for a server that wants to be paid."""

    @property
    def ok(self) -> bool:
        return not self.moved and not self.exposed

    @property
    def sentence(self) -> str:
        replaced = f"on {self.n} rows the gold answer was replaced ({self.in_source} of them in the source record)"
        if self.ok:
            return f"passed for our code: {replaced}; no {'prediction and no ' * self.asked}prompt changed"
        odd = (*self.exposed, *self.moved)
        return (
            f"LEAK: {replaced}; {len(self.moved)} predictions and {len(self.exposed)} prompts changed with it "
            f"(first: {odd[0]}); scores of this evaluation mean nothing"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def leak_canary(
    samples: Sequence[Sample], censored: Sequence[Sample], ask: Ask, show: Show, in_source: int
) -> CanaryResult:
    """Asks the rows with their gold answers and with `SENTINEL` in their place.

    Args:
        samples: rows as they are.
        censored: the same rows, in order, with `SENTINEL` for answer and references.
        in_source: how many of `censored` were made from a source record that also says `SENTINEL`.
    """
    answers, censored_answers = ask(samples), ask(censored)
    prompts, censored_prompts = show(samples), show(censored)
    pairs = list(zip(samples, censored, strict=True))
    rewritten = {one.id for one, other in pairs if one.prompt.sha256 != other.prompt.sha256}
    rewritten |= {row_id for row_id in prompts if prompts[row_id] != censored_prompts.get(row_id)}
    return CanaryResult(
        n=len(samples),
        in_source=in_source,
        moved=tuple(sample.id for sample in samples if answers.get(sample.id) != censored_answers.get(sample.id)),
        exposed=tuple(sample.id for sample in samples if sample.id in rewritten),
    )


def canary_on(model: LoadedModel, answerer: Answerer, rows: EvaluationRows, n_rows: int) -> CanaryResult | None:
    """The leak canary on the first rows, by the path that evaluation takes; None where that is switched off."""
    first, family = set(rows.ids[:n_rows]), model.family
    encoded: dict[str, EncodedRow] = {}
    for sample in (sample for sample in rows.samples if sample.id in first):
        with contextlib.suppress(BadRowError):  # it enters the ledger when the row is answered
            encoded[sample.id] = family.encode_prompt(sample.id, sample.prompt)
    samples = [sample for sample in rows.samples if sample.id in encoded]
    if not samples:
        return None

    def ask(asked: Sequence[Sample]) -> Mapping[str, str]:
        batches = answerer.batches([Question(row.id, row.prompt) for row in asked], skip=lambda ids: False)
        return {row_id: answer.text for batch in batches for row_id, answer in batch.items()}

    def show(shown: Sequence[Sample]) -> Mapping[str, str]:
        read = encoded if shown is samples else {row.id: family.encode_prompt(row.id, row.prompt) for row in shown}
        return {row_id: family.show(row.input_ids.tolist()) for row_id, row in read.items()}

    pairs = [rows.with_answer(sample.id, SENTINEL) for sample in samples]
    in_source = sum(replaced for _, replaced in pairs)
    return leak_canary(samples, [censored for censored, _ in pairs], ask, show, in_source)


@dataclass(frozen=True)
class Invariance:
    """Whether an answer depends on the other rows of its batch."""

    n: int
    rows_per_batch: int
    changed: tuple[str, ...]
    """Ids whose answer is different when they are asked alone."""

    @property
    def sentence(self) -> str:
        if not self.changed:
            return f"{self.n} rows asked alone and {self.rows_per_batch} at once: the same answers"
        return (
            f"{len(self.changed)} of {self.n} rows are answered differently alone than {self.rows_per_batch} at once "
            f"(first: {self.changed[0]}): rounding decides them, so compare only runs of one evaluation.rows_per_batch"
        )
