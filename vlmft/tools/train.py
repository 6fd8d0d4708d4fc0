"""vlmft train [key=value ...]: what python train.py is in a clone, but for scale=smoke."""

from __future__ import annotations

from vlmft.config.check import ConfigError
from vlmft.config.entry import entry
from vlmft.config.schema import Scale, TrainConfig
from vlmft.tools.cli import start


def run(config: TrainConfig) -> None:
    """Checks the data and the model, then trains."""
    from vlmft.run.start import require_training

    dataset = require_training(config)
    from vlmft.run.train import train  # after the checks: torch and transformers take seconds to import

    train(config, dataset)


@entry("train", TrainConfig)
def main(config: TrainConfig) -> None:
    if config.scale == Scale.smoke:
        raise ConfigError(
            "scale: Expected full, got smoke, whose small models and rows are made by train.py in a clone"
        )
    run(config)


if __name__ == "__main__":
    start("train", main)
