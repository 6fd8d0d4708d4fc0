"""python train.py [key=value ...]: fine-tune a vision-language model and see whether it got better."""

from __future__ import annotations

from vlmft.config.entry import entry, run_entry
from vlmft.config.schema import TrainConfig


@entry("train", TrainConfig)
def main(config: TrainConfig) -> None:
    from vlmft.run.train import train  # after the check: torch and transformers take seconds to import

    train(config)


if __name__ == "__main__":
    run_entry(main)
