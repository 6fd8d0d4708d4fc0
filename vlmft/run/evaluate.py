"""Arms on the same held-out rows: predictions on disk, scores, paired comparisons, the leak canary."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import EvaluationConfig
from vlmft.evaluation.canaries import SENTINEL, CanaryResult, leak_canary
from vlmft.evaluation.compare import Comparison, compare
from vlmft.evaluation.predict import Answerer, PredictionFile, Predictions, predict
from vlmft.evaluation.score import ArmSummary, ScoredRow, score_answers, summarise, warnings
from vlmft.metrics import metric_named
from vlmft.models.lora import trainable
from vlmft.run.blank import blanked
from vlmft.run.build import Built, fingerprint_sha256
from vlmft.sample import Question, Sample, Split

NO_ADAPTER = "none"


@dataclass
class Evaluation:
    """What an evaluation found."""

    split: Split
    samples: list[Sample]
    arms: dict[str, ArmSummary] = field(default_factory=dict)
    rows: dict[str, dict[str, ScoredRow]] = field(default_factory=dict)
    """Arm -> row id -> scored answer."""
    comparisons: list[Comparison] = field(default_factory=list)
    canary: CanaryResult | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Arm -> seconds spent generating."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know beside the numbers."""


def adapter_sha256(built: Built) -> str:
    """Hash over names and values of all trained parameters; "none" where there are none."""
    parameters = trainable_or_adapter(built)
    if not parameters:
        return NO_ADAPTER
    digest = hashlib.sha256()
    for name in sorted(parameters):
        digest.update(name.encode())
        digest.update(parameters[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def trainable_or_adapter(built: Built) -> Mapping[str, Any]:
    """The trained parameters, or the adapter's where a loaded one is frozen."""
    return trainable(built.model) or {n: p for n, p in built.model.named_parameters() if ".lora_" in n}


@contextlib.contextmanager
def arm_state(built: Built, arm: str) -> Iterator[None]:
    """The model as this arm means it: adapters off for `untuned`, on for every other."""
    if arm == "untuned" and isinstance(built.model, PeftModel):
        with built.model.disable_adapter():
            yield
    else:
        yield


def arm_question(arm: str, sample: Sample) -> Question:
    """What this arm asks of a row."""
    return Question(sample.id, blanked(sample.prompt) if arm == "blank" else sample.prompt)


def evaluate_arms(
    built: Built, settings: EvaluationConfig, arms: Sequence[str], split: Split, folder: Path, *, fresh: bool = False
) -> Evaluation:
    """All arms on all rows of a split, with one loaded model; stored answers of the same key are used again.

    Raises:
        ConfigError: the split is empty, or stored answers have another key.
    """
    samples = built.data.samples(built.data.ids[split])
    if not samples:
        raise ConfigError(f"split: {split} has no rows; choose another split or mend the data")
    result = Evaluation(split, samples)
    answerer = built.answerer(settings)
    for arm in arms:
        predictions = _answers(built, answerer, arm, result, folder, fresh=fresh)
        result.seconds[arm] = predictions.seconds
        if predictions.generated < len(predictions.answers):
            stored = len(predictions.answers) - predictions.generated
            result.notes.append(f"{arm}: {stored} of {len(predictions.answers)} answers were stored already")
    _score(built, result)
    with arm_state(built, arms[-1]):
        result.canary = canary_on(built, settings, split)
    if result.canary is not None and not result.canary.ok:
        result.notes.append(result.canary.sentence)
    return result


def _answers(
    built: Built, answerer: Answerer, arm: str, result: Evaluation, folder: Path, *, fresh: bool
) -> Predictions:
    path = folder / "predictions" / f"{arm}.jsonl"
    if fresh:
        path.unlink(missing_ok=True)
    key = {
        "arm": arm,
        "split": result.split,
        "adapter_sha256": NO_ADAPTER if arm == "untuned" else adapter_sha256(built),
        "fingerprint_sha256": fingerprint_sha256(built.fingerprint),
        "generation": answerer.settings,
    }
    questions = [arm_question(arm, sample) for sample in result.samples]
    with arm_state(built, arm):
        predictions = predict(questions, answerer, PredictionFile(path, key))
    missing = [sample.id for sample in result.samples if sample.id not in predictions.answers]
    result.samples = [sample for sample in result.samples if sample.id not in missing]
    result.rows[arm] = score_answers(
        predictions.answers,
        {sample.id: sample.references for sample in result.samples},
        metric_named(built.data.metric_name),
    )
    return dataclasses.replace(predictions, answers={s.id: predictions.answers[s.id] for s in result.samples})


def _score(built: Built, result: Evaluation) -> None:
    references = {sample.id: sample.references for sample in result.samples}
    groups = {sample.id: sample.group for sample in result.samples}
    for arm, rows in result.rows.items():
        kept = {row_id: rows[row_id] for row_id in references}
        seconds = result.seconds[arm] or None
        result.arms[arm] = summarise(arm, kept, references, built.data.metric_name, seconds)
        result.notes += warnings(result.arms[arm])
    arms = list(result.rows)
    for arm in arms[1:]:
        first = arms[0] if arm != "blank" or "tuned" not in arms else "tuned"
        scores = [{row_id: result.rows[a][row_id].score.value for row_id in references} for a in (first, arm)]
        result.comparisons.append(compare(first, scores[0], arm, scores[1], groups))


def canary_on(built: Built, settings: EvaluationConfig, split: Split) -> CanaryResult | None:
    """The leak canary on the first rows of a split, by the path that evaluation takes; None where switched off."""
    samples = built.data.samples(built.data.ids[split][: settings.canary_rows])
    if not samples:
        return None
    answerer = built.answerer(settings)

    def ask(rows: Sequence[Sample]) -> Mapping[str, str]:
        batches = answerer.batches([Question(row.id, row.prompt) for row in rows], skip=lambda ids: False)
        return {row_id: answer.text for batch in batches for row_id, answer in batch.items()}

    def show(rows: Sequence[Sample]) -> Mapping[str, str]:
        family = built.family
        return {row.id: family.show(family.encode_prompt(row.id, row.prompt).input_ids.tolist()) for row in rows}

    censored = [built.data.with_answer(sample.id, SENTINEL) for sample in samples]
    return leak_canary(samples, censored, ask, show)
