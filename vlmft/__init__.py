"""vlmft: fine-tune a vision-language model and learn whether it got better. Importing this does nothing.

For a notebook, `compose`, `from_config`, `score` and `compare` are here; docs/notebook.md has an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmft.config.schema import TrainConfig
    from vlmft.data.datamodule import VLMDataModule
    from vlmft.evaluation.compare import Comparison
    from vlmft.training.module import VLMModule

__version__ = "0.1.0"


# Imported inside: torch and transformers take seconds.


def compose(*overrides: str) -> TrainConfig:
    """The settings that train.py has with these arguments, as in `compose("model=tiny", "train.lr=1e-3")`.

    Raises:
        ConfigError: a setting or a choice that there is not, or a value that cannot be.
    """
    from vlmft.config.tools import compose_train

    return compose_train(overrides)


def from_config(config: TrainConfig) -> tuple[VLMModule, VLMDataModule]:
    """The module and its DataModule for any `lightning.Trainer`: `trainer.fit(module, datamodule=data)`.

    Raises:
        ConfigError: something cannot be had, does not fit the memory, or the splits overlap.
        BadRowError: a row cannot be used, as `data.on_bad_row` says.
    """
    from vlmft.run.module import from_config

    return from_config(config)


def score(answers: Mapping[str, str], data: VLMDataModule) -> dict[str, float]:
    """Row id -> score in 0..1 of each answer, by the metric of the data."""
    from vlmft.run.module import score_texts

    return score_texts(answers, data)


def compare(first: Mapping[str, float], second: Mapping[str, float], data: VLMDataModule) -> Comparison:
    """The scores of `second` against those of `first` on the same rows, by a paired test; rows that share an image
    count as one.

    Raises:
        ValueError: they are of different rows, or of none.
    """
    from vlmft.run.module import compare_scores

    return compare_scores(first, second, data)
