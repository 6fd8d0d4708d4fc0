"""python train.py [key=value ...]: fine-tune a vision-language model and see whether it got better."""

from __future__ import annotations

from vlmft.config.check import ConfigError
from vlmft.config.entry import entry
from vlmft.config.schema import Scale, TrainConfig
from vlmft.tools.cli import start
from vlmft.tools.train import run


@entry("train", TrainConfig)
def main(config: TrainConfig) -> None:
    if config.scale == Scale.smoke:
        config = make_small(config)
    run(config)


def make_small(config: TrainConfig) -> TrainConfig:
    """A small random model and a few drawn rows in the place of the experiment's own.

    Raises:
        ConfigError: there is no stand-in for this model or dataset, or this is no clone of the repository.
    """
    try:
        from benchmarks.smoke import stand_ins
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"scale: smoke needs the folder benchmarks/ beside train.py ({error}); run it in a clone of the repository"
        ) from error
    return stand_ins.make_small(config)


if __name__ == "__main__":
    start("train", main)
