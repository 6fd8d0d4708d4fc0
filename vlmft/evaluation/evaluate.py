"""Arms on the same held-out rows: predictions on disk, scores, paired comparisons, the leak canary."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from peft import PeftModel
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.evaluation.arms import SIXTEEN_BIT, Arm, arms_of
from vlmft.evaluation.canaries import CanaryResult, Invariance, canary_on
from vlmft.evaluation.compare import Adjusted
from vlmft.evaluation.conclusions import conclude
from vlmft.evaluation.few_shot import Draw, FewShot, few_shot_draws, shared_prefix
from vlmft.evaluation.gains import BestOfSeveral, FormatAndSkill
from vlmft.evaluation.predict import Answerer, PredictionFile, Predictions, padding_note, predict
from vlmft.evaluation.prompts import blanked, shuffled, styled, textless
from vlmft.evaluation.rows import EvaluationRows
from vlmft.evaluation.score import ArmSummary, ScoredRow, mean_of_draws, score_answers
from vlmft.evaluation.without_looking import WithoutLooking
from vlmft.metrics import metric_named
from vlmft.models.batches import Padding
from vlmft.models.loaded import NO_ADAPTER, TUNED, LoadedModel
from vlmft.models.prefix import Prefix
from vlmft.models.ranks import leave_ranks, rank
from vlmft.sample import Question, Sample, Split

if TYPE_CHECKING:
    from vlmft.evaluation.fields import ByField
    from vlmft.evaluation.server_arms import Served

NOT_SHARED = "few-shot: the shared examples changed an answer when computed once; each row had its own"


class Reusable(Protocol):
    """Answers of other runs to the same questions."""

    def fill(self) -> None:
        """Adds to the arm's file what there is."""

    def forget(self) -> None:
        """Deletes what there is."""

    def keep(self) -> None:
        """Stores the arm's answers for runs to come, where all of them were generated here."""


Reuse = Callable[[LoadedModel, Sequence[Question], PredictionFile], Reusable]


@dataclass
class Evaluation:
    """The results of an evaluation."""

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
    """Where the table has several tuned arms."""
    draws: dict[str, list[dict[str, ScoredRow]]] = field(default_factory=dict)
    """Few-shot arm -> the scored answers of each draw; `rows` has their mean."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Arm -> seconds spent generating all of its answers; 0 where some were stored already."""
    cautions: list[str] = field(default_factory=list)
    """What a reader must know before the numbers."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know beside them."""
    alarms: list[str] = field(default_factory=list)
    """What makes the numbers meaningless; printed above them."""
    blind: WithoutLooking | None = None
    coordinates: str | None = None
    """How the model writes boxes and points, in words; None where none were asked for."""
    servers: dict[str, Served] = field(default_factory=dict)
    """Arms behind a server -> where their answers come from."""
    fields: ByField | None = None
    """Of answers that are JSON."""


@contextlib.contextmanager
def arm_state(model: PreTrainedModel | PeftModel, arm: Arm) -> Iterator[None]:
    """The model as this arm means it: its adapter on, or none."""
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
    """What PEFT calls an arm's adapter: never a module's name, because it becomes a part of parameters' names."""
    return TUNED if adapter == "tuned" else f"arm-{adapter}"


def evaluate_arms(
    model: LoadedModel,
    answerer: Answerer,
    rows: EvaluationRows,
    settings: EvaluationConfig,
    names: Sequence[str],
    folder: Path,
    *,
    adapters: Sequence[str] = ("tuned",),
    models: Mapping[str, Callable[[], LoadedModel]] | None = None,
    before: Evaluation | None = None,
    fresh: bool = False,
    reuse: Reuse | None = None,
) -> Evaluation:
    """All arms on all rows, with one loaded model; stored answers of the same key are used again, with `reuse` also
    those of the untuned model in other runs.

    Every rank answers its share of the batches; the scores are on rank 0 alone. An arm that cannot be had of this model
    is named in the notes and not run. `adapters` are the names of those on the model, `models` makers of whole other
    ones, which take its place at the end; `before` has arms that were answered while this model was still untuned.

    Raises:
        ConfigError: there are no rows, or stored answers have another key.
    """
    if not rows.samples:
        raise ConfigError(f"split: {rows.split} has no rows; choose another split or correct the data")
    result = Evaluation(rows.split, rows.samples)
    runner = _Runner(model, answerer, rows, settings, result, folder, fresh, reuse)
    if model.family.coordinates is not None and any(sample.prompt.marks for sample in rows.samples):
        result.coordinates = model.family.coordinates.words
    models = {SIXTEEN_BIT: model.unquantized, **(models or {})}
    named = arms_of(names, settings.prompts, adapters, list(models), settings.servers)
    arms = [arm for arm in named if runner.can(arm)]
    if not arms:
        raise ConfigError(f"evaluation.arms: none of {', '.join(names)} can be had ({'; '.join(result.notes)})")
    known = _taken_over(before, result) if before is not None else set[str]()
    for name in (None, *models):
        if mine := [arm for arm in arms if arm.model == name and arm.server is None and arm.name not in known]:
            runner.take(models[name]() if name is not None else model)
            for arm in mine:
                runner.run(arm)
        runner.take(model)  # before the next one is loaded, so that there are never two beside it
    own = [arm for arm in arms if arm.model is None and arm.name in result.rows and arm.name not in known]
    last = next((arm for arm in reversed(own) if arm.adapter is not None), own[0] if own else Arm("untuned", None))
    with arm_state(model.model, last):
        result.canary = canary_on(model, answerer, rows, settings.canary_rows)
        result.invariance = runner.invariance(last) if own else None
    if rank():
        return result
    served = [arm for arm in arms if arm.server is not None]
    if served:
        leave_ranks()  # this one alone asks them, and the others have ended
    for arm in served:  # last of all, so that nothing here is lost with a server
        runner.ask(arm, str(arm.server))
    arms = [arm for arm in arms if arm.name in result.rows]
    if not arms:
        raise ConfigError(f"evaluation.arms: none of {', '.join(names)} was answered ({'; '.join(result.cautions)})")
    conclude(result, arms, rows)
    return result


def _coordinates(model: LoadedModel, questions: Sequence[Question]) -> dict[str, str]:
    """How boxes and points were written, where any were asked for."""
    named = model.family.coordinates
    return {"coordinates": named.name} if named is not None and any(q.prompt.marks for q in questions) else {}


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
        model: LoadedModel,
        answerer: Answerer,
        rows: EvaluationRows,
        settings: EvaluationConfig,
        result: Evaluation,
        folder: Path,
        fresh: bool,
        reuse: Reuse | None,
    ) -> None:
        self.model, self.answerer, self.rows, self.settings = model, answerer, rows, settings
        self.result, self.folder, self.fresh, self.reuse = result, folder, fresh, reuse
        self.metric = metric_named(rows.metric_name)
        self.asked: dict[str, list[Question]] = {}
        """Arm -> what it was asked: blacking out an image means decoding it."""

    def can(self, arm: Arm) -> bool:
        """Whether this model and this data have such an arm; the reason goes to the notes where they have not."""
        reason = self._reason(arm)
        if reason is not None:
            self.result.notes.append(f"{arm.name}: not run: {reason}")
        return reason is None

    def _reason(self, arm: Arm) -> str | None:
        family, samples = self.model.family, self.result.samples
        if arm.control is not None and not all(sample.prompt.images for sample in samples):
            return "there are rows without an image, which it would ask as they are"
        if arm.control == "textonly" and "text_only" not in family.capabilities:
            return "this model answers to images alone"
        if arm.control == "shuffled" and len(shuffled(samples, 0)) < len(samples):
            return "not every row has another one whose images it could be shown"
        if arm.asked == "vendor" and self.model.model_config.vendor_prompt is None:
            return "model.vendor_prompt is not set"
        own = {sample.id: sample.prompt for sample in samples}
        if arm.asked != "train" and all(own[question.id] == question.prompt for question in self.questions(arm)):
            return "the dataset's own prompt is the same"
        if arm.model == SIXTEEN_BIT and self.model.numerics["quantization"] == "none":
            return "the untuned model is not quantised"
        if arm.few_shot and "multi_turn" not in family.capabilities:
            return "this model takes no earlier turns"
        if arm.few_shot and family.max_images is not None and any(s.prompt.images for s in samples):
            return f"this model takes {family.max_images} image in a prompt"
        return None

    def questions(self, arm: Arm, samples: Sequence[Sample] | None = None) -> list[Question]:
        """What this arm asks of each row."""
        samples = self.result.samples if samples is None else samples
        if arm.control == "shuffled":
            prompts = shuffled(samples, 0)
        elif arm.control is not None:
            change = blanked if arm.control == "blank" else textless
            prompts = {sample.id: change(sample.prompt) for sample in samples}
        elif arm.asked != "train":
            template = "{question}" if arm.asked == "bare" else str(self.model.model_config.vendor_prompt)
            prompts = {sample.id: styled(sample, template) for sample in samples}
        else:
            prompts = {sample.id: sample.prompt for sample in samples}
        return [Question(row_id, prompt) for row_id, prompt in prompts.items()]

    def take(self, model: LoadedModel) -> None:
        """From now on this model answers."""
        self.model = model
        self.answerer = dataclasses.replace(self.answerer, model=model.base)

    def run(self, arm: Arm) -> None:
        with arm_state(self.model.model, arm):
            if not arm.few_shot:
                self.asked[arm.name] = self.questions(arm)
                self.result.rows[arm.name] = self._answered(arm.name, arm, self.asked[arm.name], {})
                return
            shots = few_shot_draws(self.model, self.settings.few_shot, self.result.samples, self.rows)
            self.result.notes += shots.notes
            if shots.draws:
                self._draws(arm, shots)

    def ask(self, arm: Arm, server: str) -> None:
        """An arm behind a server; one that does not answer is left out, with a caution."""
        from vlmft.evaluation.server_arms import ask_server, canary_on_requests  # few runs have one
        from vlmft.servers.chat_client import connected

        result, config = self.result, self.settings.servers[server]
        questions = self.questions(arm)
        try:
            chat = connected(server, config, self.answerer.max_new_tokens)
            where = (result.split, self.folder, self.answerer.poll, self.fresh)
            found = ask_server(arm.name, chat, config, questions, *where)
        except ConfigError as error:
            result.cautions.append(f"{arm.name}: not in this table: {error}")
            return
        first = (self.rows, result.samples, self.settings.canary_rows)
        found.canary = canary_on_requests(*first, lambda samples: self.questions(arm, samples), config)
        result.servers[arm.name], result.seconds[arm.name] = found, found.seconds
        result.cautions += found.cautions
        result.notes.append(found.note)
        references = {sample.id: sample.references for sample in result.samples}
        result.rows[arm.name] = score_answers(found.answers, references, self.metric)

    def _draws(self, arm: Arm, shots: FewShot) -> None:
        draws = []
        for number, draw in enumerate(shots.draws, start=1):
            key = {"few_shot": {**shots.key, "draw": number, "shots": draw.ids}}
            draws.append(self._answered(f"{arm.name}-{number}", arm, draw.questions, key, draw))
        seconds = [self.result.seconds[f"{arm.name}-{n + 1}"] for n in range(len(draws))]
        self.result.seconds[arm.name] = sum(seconds) if all(seconds) else 0.0
        self.result.draws[arm.name] = draws
        self.result.rows[arm.name] = mean_of_draws(draws)

    def _answered(
        self,
        name: str,
        arm: Arm,
        questions: Sequence[Question],
        more: Mapping[str, Any],
        draw: Draw | None = None,
    ) -> dict[str, ScoredRow]:
        result, model = self.result, self.model
        path = self.folder / "predictions" / f"{name}.jsonl"
        key = {
            "arm": name,
            "split": result.split,
            "adapter_sha256": NO_ADAPTER if arm.adapter is None else model.adapter_sha256(peft_name(arm.adapter)),
            "fingerprint_sha256": model.fingerprint_sha256,
            "generation": self.answerer.settings,
            "numerics": model.numerics,
            **_coordinates(model, questions),
            **more,
        }
        file = PredictionFile(path, key, fresh=self.fresh)
        untuned = self.reuse(model, questions, file) if self.reuse is not None and arm.adapter is None else None
        if untuned is not None:
            untuned.forget() if self.fresh else untuned.fill()
        prefix = None
        if draw is not None and any(question.id not in file.rows for question in questions):
            prefix = self._prefix(draw)
        answerer = dataclasses.replace(self.answerer, what=f"answers of {name}", padding=Padding(), prefix=prefix)
        predictions = predict(questions, answerer, file)
        if untuned is not None and predictions.generated:
            untuned.keep()
        self._tell(name, predictions)
        if rank() == 0 and (note := padding_note(name, answerer)):
            print(note, file=sys.stderr)  # of speed alone: no note on the results
        result.samples = [sample for sample in result.samples if sample.id in predictions.answers]
        answers = {sample.id: predictions.answers[sample.id] for sample in result.samples}
        return score_answers(answers, {sample.id: sample.references for sample in result.samples}, self.metric)

    def _prefix(self, draw: Draw) -> Prefix | None:
        prefix, is_exact = shared_prefix(self.model, self.answerer, draw)
        if not is_exact and NOT_SHARED not in self.result.notes:
            self.result.notes.append(NOT_SHARED)
        return prefix

    def _tell(self, name: str, predictions: Predictions) -> None:
        stored = len(predictions.answers) - predictions.generated
        self.result.seconds[name] = predictions.seconds if stored <= 0 else 0.0
        if stored > 0:
            self.result.notes.append(f"{name}: {stored} of {len(predictions.answers)} answers were stored already")
        if dropped := [answer.shots_dropped for answer in predictions.answers.values() if answer.shots_dropped]:
            self.result.notes.append(
                f"{name}: {len(dropped)} of {len(predictions.answers)} rows were asked with up to {max(dropped)} "
                "examples fewer, because they did not fit"
            )

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
