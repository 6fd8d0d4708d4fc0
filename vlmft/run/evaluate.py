"""Arms on the same held-out rows: predictions on disk, scores, paired comparisons, the leak canary."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from vlmft.sample import BadRowError, Question, Sample, Split

NO_ADAPTER = "none"
BASELINES: Mapping[str, tuple[str, ...]] = {"tuned": ("untuned",), "blank": ("tuned", "untuned")}
"""What an arm is compared with: the first of these that is evaluated, too."""


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
    """Arm -> seconds spent generating all of its answers; 0 where some were stored already."""
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
    built: Built,
    settings: EvaluationConfig,
    arms: Sequence[str],
    split: Split,
    folder: Path,
    *,
    fresh: bool = False,
    poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """All arms on all rows of a split, with one loaded model; stored answers of the same key are used again.

    Raises:
        ConfigError: the split is empty, or stored answers have another key.
    """
    samples = built.data.samples(built.data.ids[split])
    if not samples:
        raise ConfigError(f"split: {split} has no rows; choose another split or mend the data")
    result = Evaluation(split, samples)
    answerer = built.answerer(settings, poll)
    for arm in arms:
        predictions = _answers(built, answerer, arm, result, folder, fresh=fresh)
        stored = len(predictions.answers) - predictions.generated
        result.seconds[arm] = predictions.seconds if stored <= 0 else 0.0
        if stored > 0:
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
        "numerics": built.numerics,
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
    for first, arm in pairs_of(list(result.rows)):
        scores = [{row_id: result.rows[a][row_id].score.value for row_id in references} for a in (first, arm)]
        result.comparisons.append(compare(first, scores[0], arm, scores[1], groups))


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str]]:
    """(first, second) of each comparison, whatever the order of the arms: untuned with tuned, tuned with blank."""
    found = ((next((b for b in BASELINES.get(arm, ()) if b in arms), None), arm) for arm in arms)
    return [(first, second) for first, second in found if first is not None]


def canary_on(built: Built, settings: EvaluationConfig, split: Split) -> CanaryResult | None:
    """The leak canary on the first rows of a split, by the path that evaluation takes; None where switched off."""
    samples = [s for s in built.data.samples(built.data.ids[split][: settings.canary_rows]) if _encodes(built, s)]
    if not samples:
        return None
    answerer = built.answerer(settings)

    def ask(rows: Sequence[Sample]) -> Mapping[str, str]:
        batches = answerer.batches([Question(row.id, row.prompt) for row in rows], skip=lambda ids: False)
        return {row_id: answer.text for batch in batches for row_id, answer in batch.items()}

    def show(rows: Sequence[Sample]) -> Mapping[str, str]:
        family = built.family
        return {row.id: family.show(family.encode_prompt(row.id, row.prompt).input_ids.tolist()) for row in rows}

    pairs = [built.data.with_answer(sample.id, SENTINEL) for sample in samples]
    in_source = sum(replaced for _, replaced in pairs)
    return leak_canary(samples, [censored for censored, _ in pairs], ask, show, in_source)


def _encodes(built: Built, sample: Sample) -> bool:
    try:
        built.family.encode_prompt(sample.id, sample.prompt)
    except BadRowError:  # the ledger hears of it when the row is answered
        return False
    return True
