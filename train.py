"""python train.py [key=value ...]: fine-tune a vision-language model and see whether it got better."""

from __future__ import annotations

from vlmft.config.entry import entry, run_entry
from vlmft.config.schema import TrainConfig
from vlmft.run.start import require_training


@entry("train", TrainConfig)
def main(config: TrainConfig) -> None:
    dataset = require_training(config)
    from vlmft.run.train import train  # after the checks: torch and transformers take seconds to import

    train(config, dataset)


if __name__ == "__main__":
    run_entry(main)
