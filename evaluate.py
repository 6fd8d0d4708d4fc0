"""python evaluate.py run=RUN_FOLDER, or model=... data=...: answers on held-out rows, scored and compared."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from vlmft.config.check import checked
from vlmft.config.entry import conf_dir, run_entry
from vlmft.config.schema import EvaluateConfig


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    config = checked(cfg, EvaluateConfig)
    from vlmft.run.reevaluate import reevaluate  # after the check: torch and transformers take seconds to import

    reevaluate(config)


if __name__ == "__main__":
    run_entry(main)
