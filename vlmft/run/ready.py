"""All of a run that comes before its folder: the model is loaded, every row is looked at, preflight has passed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmft.config.schema import TrainConfig
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import Ledger
from vlmft.evaluation.gains import detectable
from vlmft.models.lora import count_by_part, trainable
from vlmft.run.build import Built, build
from vlmft.run.card import data_card
from vlmft.run.evaluate import canary_on
from vlmft.run.folder import folder_of, groups_of
from vlmft.run.manifest import MANIFEST_FILE, require_same_rows
from vlmft.run.preflight import Check, preflight, require
from vlmft.run.present import print_card, print_checks, print_parts
from vlmft.run.results import Phases, Summary
from vlmft.run.usable import refuse_unusable
from vlmft.training.checkpoint import steps_in
from vlmft.training.interruption import StopRequest

DRY_RUN_ROWS = 16


@dataclass
class Ready:
    """What has been checked, and is run as soon as it has a folder."""

    built: Built
    card: dict[str, Any]
    checks: list[Check]
    summary: Summary
    clock: Phases
    tested: bool


def built_for(config: TrainConfig, dataset: Dataset | None, ledger: Ledger | None) -> Built:
    return build(
        config.model,
        config.data,
        config.trainer,
        seed=config.seed,
        train=config.train,
        resumes=config.resume and bool(steps_in(folder_of(config) / "checkpoints")),
        dataset=dataset,
        ledger=ledger,
    )


def made_ready(config: TrainConfig, folder: Path, dataset: Dataset | None, ledger: Ledger, stop: StopRequest) -> Ready:
    """Builds, looks at all rows and checks, and says what it found. Writes nothing."""
    summary = Summary(config.model.name, config.data.name, config.scale.name)
    clock = Phases(summary)
    with clock("load"):
        built = built_for(config, dataset, ledger)
        if config.trainer.fast_dev_run:
            built.data.ids["test"] = built.data.ids["test"][:DRY_RUN_ROWS]
        else:
            require_same_rows(folder / MANIFEST_FILE, built.data)
        summary.rows = {split: len(ids) for split, ids in built.data.ids.items()}
        summary.trained_parameters = sum(p.numel() for p in trainable(built.model).values())
    with clock("splits"):
        stop.check()
        built.data.check_splits(stop.check)
        card = data_card(built.data, built.family, config.model.name, stop.check)
        print_card(card, len(built.data.ledger.bad), config.data)
        refuse_unusable(built.data, built.family, lru_cache(maxsize=None)(built.family.image_tokens), stop.check)
    if sentence := built.data.epoch_sentence():
        print(f"  {sentence}")
    print("  rows: " + ", ".join(f"{split} {n:,}" for split, n in summary.rows.items()))
    print(f"  images: {built.family.resolution}")
    print_parts(count_by_part(built.model), sum(p.numel() for p in built.model.parameters()))
    tested = config.test and bool(built.data.ids["test"])
    if tested:
        n_rows = len(built.data.ids["test"])
        print(f"  test: {detectable(n_rows, min(n_rows, groups_of(card, 'test') or n_rows))}")
    if config.test and not tested:
        print("  test has no rows: nothing is evaluated at the end")
    with clock("preflight"):
        checks = _checked(config, built)
    return Ready(built, card, checks, summary, clock, tested)


def _checked(config: TrainConfig, built: Built) -> list[Check]:
    if not config.preflight:
        return []
    checks = preflight(built, config, canary_on(built, config.evaluation, "train"))
    print("preflight")
    print_checks(checks)
    require(checks)
    return checks
