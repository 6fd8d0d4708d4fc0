"""The LightningModule and the DataModule of a config, for train.py and for a notebook's own Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vlmft.config.schema import TrainConfig
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.survey.survey import survey_splits
from vlmft.evaluation.compare import Comparison, compare
from vlmft.evaluation.rows import units_of
from vlmft.metrics import metric_named
from vlmft.run.build import Built, build, peak_lr, with_chosen_tokens
from vlmft.training.module import VLMModule


def make_module(
    built: Built, config: TrainConfig, poll: Callable[[], None] = lambda: None, skipped_file: Path | None = None
) -> VLMModule:
    """`poll` is called before each batch of answers and raises where the run was asked to stop."""
    answerer = built.answerer(config.evaluation, poll)
    return VLMModule(
        built.family, built.model, config.model.train, config.train, peak_lr(config), answerer, skipped_file
    )


def from_config(config: TrainConfig) -> tuple[VLMModule, VLMDataModule]:
    """The loaded model with its adapters, and its data, after a check that no row or image is in two splits.

    Raises ConfigError and BadRowError as vlmft.from_config.
    """
    built = build(config.model, config.data, config.trainer, seed=config.seed, train=config.train, cache=config.cache)
    config = with_chosen_tokens(config, built)
    survey_splits(built.data)
    built.data.prompts_per_batch = config.evaluation.rows_per_batch
    return make_module(built, config), built.data


def score_texts(answers: Mapping[str, str], data: VLMDataModule) -> dict[str, float]:
    """Row id -> score of its answer, by the metric of the data."""
    metric = metric_named(data.metric_name)
    return {row_id: metric(text, data.sample(row_id).references).value for row_id, text in answers.items()}


def compare_scores(first: Mapping[str, float], second: Mapping[str, float], data: VLMDataModule) -> Comparison:
    """Two models' scores of the same rows, by the independent units that the rows belong to."""
    groups, kind = units_of(data.samples(list(first)))
    return compare("first", first, "second", second, groups, kind)
