"""vlmft evaluate, python evaluate.py in a clone: answers on held-out rows, scored and compared."""

from __future__ import annotations

from vlmft.config.entry import entry
from vlmft.config.processes import follows
from vlmft.config.schema import EvaluateConfig
from vlmft.tools.cli import start


@entry("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    from vlmft.run.start import require_evaluation

    dataset = require_evaluation(config)
    # after the checks: torch and transformers take seconds to import
    from vlmft.labels.grade import keep_grading
    from vlmft.run.evaluate import evaluate

    folder = evaluate(config, dataset)
    if not follows():
        keep_grading(folder)


if __name__ == "__main__":
    start("evaluate", main)
