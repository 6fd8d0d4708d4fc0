"""python train.py [key=value ...]: fine-tune a vision-language model and see whether it got better."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from vlmft.config.check import checked
from vlmft.config.entry import conf_dir, run_entry
from vlmft.config.schema import TrainConfig


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def main(cfg: DictConfig) -> None:
    config = checked(cfg, TrainConfig)
    from vlmft.run.train import train  # after the check: torch and transformers take seconds to import

    train(config)


if __name__ == "__main__":
    run_entry(main)
