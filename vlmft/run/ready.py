"""What comes before a run's folder: the model is loaded, every row is looked at, preflight has passed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmft.config.schema import TrainConfig
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import Ledger
from vlmft.data.survey.survey import Survey, survey_splits
from vlmft.evaluation.gains import detectable
from vlmft.models.lora import count_by_part
from vlmft.report.console import say
from vlmft.run.build import Built, build, share_out
from vlmft.run.card import data_card, keep_card
from vlmft.run.features import cost
from vlmft.run.folder import folder_of, groups_of, resumes
from vlmft.run.preflight import Check, preflight, require
from vlmft.run.present import print_card, print_checks, print_parts
from vlmft.run.results import Phases
from vlmft.run.rows import MANIFEST_FILE, keep_manifest, require_same_rows
from vlmft.run.usable import refuse_unusable
from vlmft.training.checkpoint import steps_in
from vlmft.training.interruption import StopRequest
from vlmft.training.memory import give_back_freed_pages, keep_freed_pages

DRY_RUN_ROWS = 16


@dataclass(frozen=True)
class Checked:
    """The results of the checks before the first step."""

    survey: Survey
    card: dict[str, Any]
    """data_card.json"""
    checks: list[Check]
    manifest: dict[str, Any] | None
    """Which rows are in which split; None where a dry run has cut its test rows."""


def build_for(config: TrainConfig, dataset: Dataset | None, ledger: Ledger | None, clock: Phases) -> Built:
    """Model and data of a run; raises ConfigError as `build`."""
    with clock("load"):
        built = build(
            config.model,
            config.data,
            config.trainer,
            seed=config.seed,
            train=config.train,
            resumes=resumes(config) and bool(steps_in(folder_of(config) / "checkpoints")),
            dataset=dataset,
            ledger=ledger,
            cache=config.cache,
        )
        share_out(built, config.trainer)
    (give_back_freed_pages if built.checkpointing else keep_freed_pages)()
    if config.trainer.fast_dev_run:
        built.data.ids["test"] = built.data.ids["test"][:DRY_RUN_ROWS]
    return built


def is_tested(config: TrainConfig, built: Built) -> bool:
    """Whether the arms are compared at the end."""
    return config.test and len(built.data.ids["test"]) > 0


def check(config: TrainConfig, built: Built, folder: Path, clock: Phases, stop: StopRequest) -> Checked:
    """Looks at all rows, runs preflight and prints the results. Writes nothing.

    Raises:
        ConfigError: a split, a row or a check says that this run cannot be what it is meant to be.
    """
    data, family, manifest = built.data, built.family, None
    if not config.trainer.fast_dev_run:
        manifest = require_same_rows(folder / MANIFEST_FILE, data)
    with clock("splits"):
        stop.check()
        survey = survey_splits(data, stop.check)
        image_tokens = lru_cache(maxsize=None)(family.image_tokens)
        card = data_card(survey, family, image_tokens, config.model.name, stop.check)
        print_card(card, len(data.ledger.bad), config.data, family.resolution, verbose=config.verbose)
        refuse_unusable(survey, family, image_tokens, stop.check)
    if sentence := data.epoch_sentence():
        say(f"  {sentence}")
    print_parts(count_by_part(built.model), sum(p.numel() for p in built.model.parameters()))
    n_rows = len(data.ids["test"])
    if config.test and n_rows:
        say(f"  test: {detectable(n_rows, min(n_rows, groups_of(card, 'test') or n_rows))}")
    elif config.test:
        say("  test has no rows: nothing is evaluated at the end")
    with clock("preflight"):
        checks = preflight(built, config) if config.preflight else []
        if checks:
            print_checks(checks, verbose=config.verbose)
            require(checks)
    n_images = sum(split["images"] for split in card["splits"].values())
    if family.cache is not None and (stored := cost(family.cache, n_images, config.cache)):
        say(f"  {stored}")
    return Checked(survey, card, checks, manifest)


def keep_data(checked: Checked, folder: Path) -> None:
    """Stores the card of the data, and which rows are in which split."""
    if (sheet := keep_card(checked.card, checked.survey, folder)) is not None:
        say(f"  near-duplicates: look at them in {sheet}")
    if checked.manifest is not None:
        keep_manifest(folder / MANIFEST_FILE, checked.survey, checked.manifest)
