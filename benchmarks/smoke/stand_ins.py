"""scale=smoke: an experiment end to end in seconds, with a small random model of its family, on rows of its form."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.smoke.rows import WRITERS
from vlmft.config.check import ConfigError, checked_options
from vlmft.config.schema import Init, TrainConfig

MOST: Mapping[str, float] = {
    "data.limit_train": 24.0,
    "data.limit_val": 8.0,
    "data.limit_test": 12.0,
    "data.max_new_tokens": 8,
    "data.default_epochs": 2,
    "train.rows_per_step": 8,
    "train.rows_per_batch": 4,
    "evaluation.rows_per_batch": 8,
    "evaluation.canary_rows": 4,
}
"""Sizes, which are set where they are left open or larger; floats where the schema says so, for they are hashed."""
MOST_WHERE_SET: Mapping[str, int] = {
    "data.train_per_class": 4,
    "train.warmup_steps": 1,
    "trainer.max_epochs": 2,
    "trainer.max_steps": 4,
}
SHARE = 0.2
"""Of the rows that val and test each take, where the experiment takes a count of them."""


def make_small(config: TrainConfig) -> TrainConfig:
    """The settings with stand-ins where model and data would come from the Hub, and with small sizes.

    What names something on this machine stays: a `model.path` that is a folder or comes with vlmft, a `data.path`.
    Stand-ins are written once, below <output_root>/smoke. Weights & Biases is left out unless `logger.mode` asks.

    Raises:
        ConfigError: there is no stand-in for this model or dataset.
    """
    if config.data.options.get("parts"):
        raise ConfigError("scale: Expected one dataset for smoke, got a mixture; try its parts one by one")
    config = copy.deepcopy(config)
    root = Path(config.output_root) / "smoke"
    if not (config.model.path.startswith("package:") or Path(config.model.path).expanduser().is_dir()):
        from benchmarks.smoke.models import FAMILIES  # here: transformers takes seconds to import

        config.model.path = _written(root, "model", config.model.name, FAMILIES)
        config.model.init = Init.random
    if config.data.path is None and "path" in inspect.signature(checked_options(config.data)).parameters:
        config.data.path = _written(root, "data", config.data.name, WRITERS)
        config.data.revision = None
    for key, most in {**MOST, **MOST_WHERE_SET}.items():
        group, _, name = key.partition(".")
        value = getattr(getattr(config, group), name)
        if value is not None or key in MOST:
            setattr(getattr(config, group), name, most if value is None else min(value, most))
    for name in ("val_rows", "test_rows"):
        if getattr(config.data, name) >= 1:
            setattr(config.data, name, SHARE)
    if config.logger.mode == "auto":
        config.logger.wandb = False
    return config


def _written(root: Path, group: str, name: str, writers: Mapping[str, Callable[[Path], None]]) -> str:
    if name not in writers:
        raise ConfigError(
            f"scale: Expected {group}={' or '.join(writers)} for smoke, got {name!r}; or set {group}.path to a folder"
        )
    from vlmft.training.checkpoint import whole_folder

    folder = root / name
    if not folder.is_dir():
        with whole_folder(folder) as beside:
            writers[name](beside)
    return str(folder)
