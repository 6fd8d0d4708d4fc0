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
from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.evaluation.arms import SIXTEEN_BIT, Arm, arms_of, pairs_of
from vlmft.evaluation.canaries import SENTINEL, CanaryResult, Invariance, leak_canary
from vlmft.evaluation.compare import Adjusted, adjusted, compare
from vlmft.evaluation.gains import (
    BestOfSeveral,
    FormatAndSkill,
    best_tuned,
    format_and_skill,
    prompt_matrix,
    skill_pair,
)
from vlmft.evaluation.predict import Answerer, PredictionFile, Predictions, predict
from vlmft.evaluation.prompts import blanked, shuffled, styled, textless
from vlmft.evaluation.score import (
    ArmSummary,
    ScoredRow,
    mean_of_draws,
    score_answers,
    summarise,
    summarise_draws,
    too_few,
    unequal_treatment,
    warnings,
)
from vlmft.metrics import metric_named
from vlmft.models.lora import trainable
from vlmft.run.build import Built, fingerprint_sha256
from vlmft.run.few_shot import FewShot, few_shot_draws
from vlmft.run.units import labels_of, repeated_rows, units_of
from vlmft.run.without_looking import WithoutLooking, alarm, without_looking
from vlmft.sample import BadRowError, Question, Sample, Split

NO_ADAPTER = "none"
TUNED = "default"
"""PEFT's name of the adapter that the arm `tuned` means."""


@dataclass
class Evaluation:
    """What an evaluation found."""

    split: Split
    samples: list[Sample]
    arms: dict[str, ArmSummary] = field(default_factory=dict)
    rows: dict[str, dict[str, ScoredRow]] = field(default_factory=dict)
    """Arm -> row id -> scored answer."""
    groups: dict[str, str] = field(default_factory=dict)
    """Row id -> its independent unit."""
    comparisons: list[Adjusted] = field(default_factory=list)
    canary: CanaryResult | None = None
    invariance: Invariance | None = None
    gains: FormatAndSkill | None = None
    matrix: dict[str, dict[str, float]] = field(default_factory=dict)
    """Prompt -> arm -> mean score, where arms were asked in several ways."""
    best: BestOfSeveral | None = None
    """Where several tuned arms stand in the table."""
    draws: dict[str, list[dict[str, ScoredRow]]] = field(default_factory=dict)
    """Few-shot arm -> the scored answers of each draw; `rows` has their mean."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Arm -> seconds spent generating all of its answers; 0 where some were stored already."""
    cautions: list[str] = field(default_factory=list)
    """What a reader must know before the numbers."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know beside them."""
    alarms: list[str] = field(default_factory=list)
    """What takes their meaning from the numbers; stands above them."""
    blind: WithoutLooking | None = None


def adapter_sha256(built: Built, adapter: str = TUNED) -> str:
    """Hash over names and values of all trained parameters; "none" where there are none."""
    parameters = _trained(built, adapter)
    if not parameters:
        return NO_ADAPTER
    digest = hashlib.sha256()
    for name in sorted(parameters):
        digest.update(name.encode())
        digest.update(parameters[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _trained(built: Built, adapter: str) -> Mapping[str, Any]:
    """The trained parameters, or a loaded adapter's, under the names that they were trained with."""
    if adapter == TUNED and (found := trainable(built.model)):
        return found
    mark = f".{adapter}."
    named = built.model.named_parameters()
    return {n.replace(mark, f".{TUNED}."): p for n, p in named if ".lora_" in n and mark in n}


@contextlib.contextmanager
def arm_state(built: Built, arm: Arm) -> Iterator[None]:
    """The model as this arm means it: its adapter on, or none."""
    model = built.model
    if not isinstance(model, PeftModel):
        yield
    elif arm.adapter is None:
        with model.disable_adapter():
            yield
    else:
        before, name = model.active_adapter, peft_name(arm.adapter)
        if before != name:  # training's own adapter stays as it is: set_adapter would touch its gradients
            model.set_adapter(name, inference_mode=True)
        try:
            yield
        finally:
            if model.active_adapter != before:
                model.set_adapter(before, inference_mode=True)


def peft_name(adapter: str) -> str:
    """What PEFT calls an arm's adapter: never a name that a module has, for it becomes a part of parameters' names."""
    return TUNED if adapter == "tuned" else f"arm-{adapter}"


def evaluate_arms(
    built: Built,
    settings: EvaluationConfig,
    names: Sequence[str],
    split: Split,
    folder: Path,
    *,
    adapters: Sequence[str] = ("tuned",),
    models: Mapping[str, Callable[[], Built]] | None = None,
    before: Evaluation | None = None,
    fresh: bool = False,
    poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """All arms on all rows of a split, with one loaded model; stored answers of the same key are used again.

    An arm that cannot be had of this model is named in the notes and not run. `adapters` are the names of those on the
    model, `models` makers of whole other ones, which take its place at the end; `before` has arms that were answered
    while this model was still untuned.

    Raises:
        ConfigError: the split is empty, or stored answers have another key.
    """
    samples = built.data.samples(built.data.ids[split])
    if not samples:
        raise ConfigError(f"split: {split} has no rows; choose another split or mend the data")
    result = Evaluation(split, samples)
    runner = _Runner(built, settings, result, folder, fresh, poll)
    models = {SIXTEEN_BIT: built.unquantized, **(models or {})}
    arms = [arm for arm in arms_of(names, settings.prompts, adapters, list(models)) if runner.can(arm)]
    if not arms:
        raise ConfigError(f"evaluation.arms: none of {', '.join(names)} can be had ({'; '.join(result.notes)})")
    known = _taken_over(before, result) if before is not None else set[str]()
    for model in (None, *models):
        if mine := [arm for arm in arms if arm.model == model and arm.name not in known]:
            runner.take(models[model]() if model is not None else built)
            for arm in mine:
                runner.run(arm)
        runner.take(built)  # before the next one is loaded, so that there are never two beside it
    arms = [arm for arm in arms if arm.name in result.rows]
    result.rows = {arm.name: result.rows[arm.name] for arm in arms}
    runner.score(arms)
    own = [arm for arm in arms if arm.model is None and arm.name not in known]
    last = next((arm for arm in reversed(own) if arm.adapter is not None), own[0] if own else arms[0])
    with arm_state(built, last):
        result.canary = canary_on(built, settings, split)
        result.invariance = runner.invariance(last) if own else None
    result.blind = without_looking(built.data, split, result.samples, result.comparisons)
    told = alarm(split, result.blind.readable.to_dict())
    result.alarms += [told] if told is not None else []
    if result.canary is not None and not result.canary.ok:
        result.notes.append(result.canary.sentence)
    if result.invariance is not None and result.invariance.changed:
        result.notes.append(result.invariance.sentence)
    return result


def _taken_over(before: Evaluation, result: Evaluation) -> set[str]:
    """Puts the arms of an earlier evaluation of the same rows into this one; returns their names."""
    result.samples = before.samples
    result.rows, result.draws, result.seconds = dict(before.rows), dict(before.draws), dict(before.seconds)
    result.notes += [note for note in before.notes if note.startswith("few-shot: ")]
    return set(before.rows)


class _Runner:
    """One evaluation under way."""

    def __init__(
        self,
        built: Built,
        settings: EvaluationConfig,
        result: Evaluation,
        folder: Path,
        fresh: bool,
        poll: Callable[[], None],
    ) -> None:
        self.built, self.settings, self.result, self.folder, self.fresh = built, settings, result, folder, fresh
        self.answerer = built.answerer(settings, poll)
        self.metric = metric_named(built.data.metric_name)
        self.asked: dict[str, list[Question]] = {}
        """Arm -> what it was asked: to black out an image is to decode it."""

    def can(self, arm: Arm) -> bool:
        """Whether this model and this data have such an arm; what they have not is told."""
        reason = self._reason(arm)
        if reason is not None:
            self.result.notes.append(f"{arm.name}: not run: {reason}")
        return reason is None

    def _reason(self, arm: Arm) -> str | None:
        family, samples = self.built.family, self.result.samples
        if arm.control is not None and not all(sample.prompt.images for sample in samples):
            return "there are rows without an image, which it would ask as they are"
        if arm.control == "textonly" and "text_only" not in family.capabilities:
            return "this model answers to images alone"
        if arm.control == "shuffled" and len(shuffled(samples, 0)) < len(samples):
            return "not every row has another one whose images it could be shown"
        if arm.asked == "vendor" and self.built.model_config.vendor_prompt is None:
            return "model.vendor_prompt is not set"
        own = {sample.id: sample.prompt for sample in samples}
        if arm.asked != "train" and all(own[question.id] == question.prompt for question in self.questions(arm)):
            return "the dataset's own prompt is the same"
        if arm.model == SIXTEEN_BIT and self.built.numerics["quantization"] == "none":
            return "the untuned model is not quantised"
        if arm.few_shot and "multi_turn" not in family.capabilities:
            return "this model takes no earlier turns"
        if arm.few_shot and family.max_images is not None and any(s.prompt.images for s in samples):
            return f"this model takes {family.max_images} image in a prompt"
        return None

    def questions(self, arm: Arm) -> list[Question]:
        """What this arm asks of each row."""
        samples = self.result.samples
        if arm.control == "shuffled":
            prompts = shuffled(samples, 0)
        elif arm.control is not None:
            change = blanked if arm.control == "blank" else textless
            prompts = {sample.id: change(sample.prompt) for sample in samples}
        elif arm.asked != "train":
            template = "{question}" if arm.asked == "bare" else str(self.built.model_config.vendor_prompt)
            prompts = {sample.id: styled(sample, template) for sample in samples}
        else:
            prompts = {sample.id: sample.prompt for sample in samples}
        return [Question(row_id, prompt) for row_id, prompt in prompts.items()]

    def take(self, built: Built) -> None:
        """From now on this model answers."""
        self.built = built
        self.answerer = dataclasses.replace(self.answerer, model=built.base)

    def run(self, arm: Arm) -> None:
        with arm_state(self.built, arm):
            if not arm.few_shot:
                self.asked[arm.name] = self.questions(arm)
                self.result.rows[arm.name] = self._answered(arm.name, arm, self.asked[arm.name], self.answerer, {})
                return
            shots = few_shot_draws(self.built, self.settings, self.answerer, self.result.samples)
            self.result.notes += shots.notes
            if shots.draws:
                self._draws(arm, shots)

    def _draws(self, arm: Arm, shots: FewShot) -> None:
        found = []
        for number, draw in enumerate(shots.draws, start=1):
            key = {"few_shot": {**shots.key, "draw": number, "shots": draw.ids}}
            answerer = dataclasses.replace(self.answerer, prefix=draw.prefix)
            found.append(self._answered(f"{arm.name}-{number}", arm, draw.questions, answerer, key))
        seconds = [self.result.seconds[f"{arm.name}-{n + 1}"] for n in range(len(found))]
        self.result.seconds[arm.name] = sum(seconds) if all(seconds) else 0.0
        self.result.draws[arm.name] = found
        self.result.rows[arm.name] = mean_of_draws(found)

    def _answered(
        self, name: str, arm: Arm, questions: Sequence[Question], answerer: Answerer, more: Mapping[str, Any]
    ) -> dict[str, ScoredRow]:
        result, built = self.result, self.built
        path = self.folder / "predictions" / f"{name}.jsonl"
        if self.fresh:
            path.unlink(missing_ok=True)
        key = {
            "arm": name,
            "split": result.split,
            "adapter_sha256": NO_ADAPTER if arm.adapter is None else adapter_sha256(built, peft_name(arm.adapter)),
            "fingerprint_sha256": fingerprint_sha256(built.fingerprint),
            "generation": answerer.settings,
            "numerics": built.numerics,
            **more,
        }
        predictions = predict(questions, answerer, PredictionFile(path, key))
        self._tell(name, predictions)
        result.samples = [sample for sample in result.samples if sample.id in predictions.answers]
        answers = {sample.id: predictions.answers[sample.id] for sample in result.samples}
        return score_answers(answers, {sample.id: sample.references for sample in result.samples}, self.metric)

    def _tell(self, name: str, predictions: Predictions) -> None:
        stored = len(predictions.answers) - predictions.generated
        self.result.seconds[name] = predictions.seconds if stored <= 0 else 0.0
        if stored > 0:
            self.result.notes.append(f"{name}: {stored} of {len(predictions.answers)} answers were stored already")
        dropped = [answer.shots_dropped for answer in predictions.answers.values() if answer.shots_dropped]
        if dropped:
            self.result.notes.append(
                f"{name}: {len(dropped)} of {len(predictions.answers)} rows were asked with up to {max(dropped)} "
                "examples fewer, because they did not fit"
            )

    def score(self, arms: Sequence[Arm]) -> None:
        """Summaries of the rows that every arm has answered, and the comparisons of arms."""
        result = self.result
        references = {sample.id: sample.references for sample in result.samples}
        result.groups, kind = units_of(result.samples)
        groups = result.groups
        result.cautions += repeated_rows(result.samples)
        name, labels = self.built.data.metric_name, labels_of(result.samples)
        for arm in arms:
            rows = {row_id: result.rows[arm.name][row_id] for row_id in references}
            seconds, is_drawn = result.seconds[arm.name] or None, arm.name in result.draws or None
            found = summarise(arm.name, rows, references, name, seconds, labels, groups, kind, is_share=is_drawn)
            if arm.name in result.draws:
                found = summarise_draws(found, result.draws[arm.name], references, labels)
            result.arms[arm.name] = found
            result.notes += warnings(found)
        result.notes += too_few(next(iter(result.arms.values())))
        scores = {arm.name: {i: result.rows[arm.name][i].score.value for i in references} for arm in arms}
        values = {arm: found.value for arm, found in result.arms.items()}
        pairs, skill = pairs_of(list(scores)), skill_pair(values)
        pairs += [skill] if skill is not None and skill not in pairs else []
        result.comparisons = adjusted(
            [compare(one, scores[one], other, scores[other], groups, kind) for one, other in pairs]
        )
        result.gains, result.matrix = format_and_skill(values, result.comparisons), prompt_matrix(values)
        for one, other in pairs:
            result.cautions += unequal_treatment(one, result.rows[one], other, result.rows[other], groups)
        result.best = best_tuned(scores, groups)
        result.cautions += [result.best.sentence] if result.best is not None else []

    def invariance(self, arm: Arm) -> Invariance | None:
        """The first rows of an arm asked once more, each alone; None where that is switched off."""
        questions = self.asked.get(arm.name, [])[: self.settings.canary_rows]  # few-shot arms have several sets of them
        questions = [question for question in questions if question.id in self.result.rows[arm.name]]
        if not questions:
            return None
        alone = dataclasses.replace(self.answerer, rows_per_batch=1)
        answers = {i: answer.text for batch in alone.batches(questions, lambda _: False) for i, answer in batch.items()}
        stored = self.result.rows[arm.name]
        changed = tuple(row_id for row_id, text in answers.items() if stored[row_id].text != text)
        return Invariance(len(answers), self.settings.rows_per_batch, changed)


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
