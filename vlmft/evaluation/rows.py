"""What evaluation needs of a dataset, without knowing where its rows come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmft.sample import Sample, Split


@dataclass(frozen=True)
class EvaluationRows:
    """The rows of a split that are asked, and what evaluation needs to know of their dataset."""

    split: Split
    ids: Sequence[str]
    samples: list[Sample]
    """Of `ids`, without those that cannot be read."""
    metric_name: str
    with_answer: Callable[[str, str], tuple[Sample, bool]]
    """(row id, answer) -> the row as if this were its gold answer, and whether its source record already said so."""
    train_ids: Sequence[str]
    train_sample: Callable[[str], Sample]
    """Raises BadRowError."""
    written_shots: Callable[[], list[Sample]]
    """Examples that the settings name a file of; raises ConfigError."""
    baseline_rows: Callable[[], list[Sample]]
    """Training rows that rules without images are fitted on."""
    seed: int
