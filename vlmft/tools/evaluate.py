"""vlmft evaluate, python evaluate.py in a clone: answers on held-out rows, scored and compared."""

from __future__ import annotations

from vlmft.config.entry import entry, run_entry
from vlmft.config.schema import EvaluateConfig
from vlmft.run.start import require_evaluation


@entry("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    dataset = require_evaluation(config)
    # after the checks: torch and transformers take seconds to import
    from vlmft.labels.grade import keep_grading
    from vlmft.run.evaluate import evaluate

    keep_grading(evaluate(config, dataset))


if __name__ == "__main__":
    run_entry(main)
