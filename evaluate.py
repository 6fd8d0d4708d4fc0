"""python evaluate.py run=RUN_FOLDER, or model=... data=...: answers on held-out rows, scored and compared."""

from __future__ import annotations

from vlmft.config.entry import entry, run_entry
from vlmft.config.schema import EvaluateConfig


@entry("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    from vlmft.run.reevaluate import reevaluate  # after the check: torch and transformers take seconds to import

    reevaluate(config)


if __name__ == "__main__":
    run_entry(main)
