"""What could explain a score without the images: see evaluation/readable_answers and baselines.

Nothing here asks a model. The `blank`, `shuffled` and `textonly` arms, where they were run, are put into sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmft.evaluation.arms import CONTROLS
from vlmft.evaluation.baselines import Baseline, baselines
from vlmft.evaluation.compare import Adjusted
from vlmft.evaluation.numbers import SHARE, console, percent, share
from vlmft.evaluation.readable_answers import Readable, readable
from vlmft.metrics.score import Metric
from vlmft.sample import Sample, Split


@dataclass(frozen=True)
class WithoutLooking:
    """Checks and baselines that need no image."""

    readable: Readable
    baselines: list[Baseline]
    controls: list[str]
    """A sentence for each arm without images."""

    @property
    def lines(self) -> list[str]:
        """For the console, below the table."""
        rules = [baselines_sentence(self.baselines)] if self.baselines else []
        return [*rules, f"answers that occur in the prompt: {self.readable.sentence}", *self.controls]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rules = [asdict(rule) for rule in self.baselines]
        return {"readable_answers": self.readable.to_dict(), "baselines": rules, "controls": self.controls}


def without_looking(
    train: Sequence[Sample], test: Sequence[Sample], metric: Metric, comparisons: Sequence[Adjusted]
) -> WithoutLooking:
    """Reads the texts of the rows that were asked, and of training rows for the baselines."""
    controls = [sentence for one in comparisons if (sentence := control_sentence(one))]
    return WithoutLooking(readable(test), baselines(train, test, metric), controls)


def alarms_of(by_split: Mapping[Split, Mapping[str, Any]]) -> list[str]:
    """One for each split whose prompts contain their answers."""
    return [sentence for split, one in by_split.items() if (sentence := alarm(split, one)) is not None]


def alarm(split: str, counts: Mapping[str, Any]) -> str | None:
    """The warning above a table where prompts of `split` contain their answers; `counts` is `Readable.to_dict()`."""
    if not counts["flagged"]:
        return None
    return (
        f"the data give away their answers: in {split} the gold answer occurs in its own prompt in "
        f"{counts['sentence']}; scores on these rows show no skill"
    )


def baselines_sentence(rules: Sequence[Baseline]) -> str:
    """Such as "baselines ...: majority 15.8 %, majority by question 31.0 % (12 kinds of question), copy 0.0 %"."""
    parts = []
    for rule in rules:
        more = (
            f" ({rule.kinds} kind{'s' * (rule.kinds != 1)} of question)" if rule.name == "majority by question" else ""
        )
        parts.append(f"{rule.name} {percent(rule.value)}{more}")
    return f"baselines from the training rows, without images: {', '.join(parts)}"


def control_sentence(judged: Adjusted) -> str | None:
    """What the comparison of an arm with the same one without its images means; None for another comparison."""
    pair = judged.comparison
    control = pair.second.partition("@")[0]
    if control not in CONTROLS or pair.first.partition("@")[0] not in ("tuned", "untuned"):
        return None
    measured = console(
        f"{pair.first} with {CONTROLS[control]} scores {share(pair.second_value)}, with its images "
        f"{share(pair.first_value)} (difference {SHARE.difference(pair.difference)}, 95 % interval "
        f"{SHARE.difference_interval(pair.interval)}): "
    )
    means = {
        "worse": "it uses its images",
        "better": "it answers better without its images, so they do not help it",
        "not distinguishable": f"these {pair.n} rows do not show that it needs its images",
    }
    return measured + means[judged.verdict]
