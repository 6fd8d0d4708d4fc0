"""What the module does with generated answers: validation, test and prediction, and which Trainer it goes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import lightning as L

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.metrics import metric_named
from vlmft.metrics.mean_score import MeanScore
from vlmft.sample import Answer, EncodedRow, Question, Sample
from vlmft.training.ranks import WindowRanks


class Data(Protocol):
    """What the module asks of its DataModule."""

    n_windows: int
    metric_name: str
    config: DataConfig

    def samples(self, row_ids: Sequence[str]) -> list[Sample]: ...


class Answerer(Protocol):
    """Generation, as in evaluation/predict.py."""

    def batches(
        self, questions: Sequence[Question], skip: Callable[[list[str]], bool]
    ) -> Iterator[dict[str, Answer]]: ...

    def answer_rows(self, rows: Sequence[EncodedRow]) -> dict[str, Answer]: ...


class PromptRow(Protocol):
    """A row to be answered."""

    id: str
    prompt: EncodedRow
    references: tuple[str, ...]


class AnsweringModule(L.LightningModule):
    """A module whose answers are scored. `answerer` generates them; without one, validation is the loss alone."""

    def __init__(self, answerer: Answerer | None) -> None:
        super().__init__()
        self.answerer = answerer
        self.answered: list[tuple[str, str, str, str]] = []
        """Of the last validation: id, question, references and answer of each row."""

    @property
    def data(self) -> Data:
        """The DataModule that the Trainer was given."""
        return cast(Data, self.trainer.datamodule)  # type: ignore[attr-defined]  # set by Lightning elsewhere

    def configure_callbacks(self) -> list[L.Callback]:
        """None. This is Lightning's first call of a module, before its own checks, which do not know our settings.

        Raises:
            ConfigError: the Trainer would do what a window does by itself, or has not been given the DataModule.
        """
        trainer = self.trainer
        if getattr(trainer, "datamodule", None) is None:
            raise ConfigError("Trainer: Expected datamodule=, the DataModule that came with this module, got none")
        if trainer.state.fn == "fit":
            if trainer.accumulate_grad_batches != 1:
                raise ConfigError(
                    f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}): a window accumulates by "
                    "itself; set train.rows_per_step, and train.rows_per_batch for what goes through the model at once"
                )
            if trainer.gradient_clip_val:
                raise ConfigError(
                    f"Trainer(gradient_clip_val={trainer.gradient_clip_val}): a window is clipped once, by "
                    "train.max_gradient_norm; set that"
                )
            if trainer.world_size > 1 and not isinstance(trainer.strategy, WindowRanks):
                raise ConfigError(
                    f"Trainer(strategy={type(trainer.strategy).__name__}): Expected WindowRanks() of "
                    f"vlmft.training.ranks for {trainer.world_size} devices; this one averages gradients once more"
                )
        return []

    def generated_scores(self, row_ids: Sequence[str]) -> Mapping[str, float]:
        """Logged name -> value: the dataset's metric on answers to these rows, which every rank has."""
        if self.answerer is None:
            return {}
        samples = {sample.id: sample for sample in self.data.samples(row_ids)}
        score, self.answered = self._mean_score(sums_over_ranks=False), []
        questions = [Question(sample.id, sample.prompt) for sample in samples.values()]
        for answers in self.answerer.batches(questions, skip=lambda ids: False):
            score.update([a.text for a in answers.values()], [samples[row_id].references for row_id in answers])
            for row_id, answer in answers.items():
                question, references = samples[row_id].prompt.messages[-1].text, samples[row_id].references
                self.answered.append((row_id, question, " | ".join(references), answer.text))
        return self._named("val", score)

    def _mean_score(self, *, sums_over_ranks: bool = True) -> MeanScore:
        return MeanScore(metric_named(self.data.metric_name), sums_over_ranks=sums_over_ranks).to(self.device)

    def _named(self, stage: str, score: MeanScore) -> dict[str, float]:
        result, prefix = score.compute(), f"{stage}/{self.data.config.name}"
        return {
            f"{prefix}/{self.data.metric_name}": result["value"],
            f"{prefix}/n": float(result["num"]),
            f"{prefix}/unparsed": float(result["unparsed"]),
        }

    def predict_step(self, rows: list[PromptRow], index: int) -> list[dict[str, Any]]:
        """The answers of a batch: id, text, finish ("stop", or "length" where it was cut) and n_new_tokens of each."""
        answers = self._answers(rows)
        return [
            {"id": row_id, "text": answer.text, "finish": answer.finish, "n_new_tokens": answer.n_new_tokens}
            for row_id, answer in answers.items()
        ]

    def on_test_epoch_start(self) -> None:
        self.test_score = self._mean_score()

    def test_step(self, rows: list[PromptRow], index: int) -> None:
        answers = self._answers(rows)
        self.test_score.update([answers[row.id].text for row in rows], [row.references for row in rows])

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._named("test", self.test_score))

    def _answers(self, rows: Sequence[PromptRow]) -> dict[str, Answer]:
        assert self.answerer is not None, "made without an answerer"
        return self.answerer.answer_rows([row.prompt for row in rows]) if rows else {}
