"""What could explain a score without anybody having looked at a picture: see evaluation/readable_answers and baselines.

Nothing here asks a model. `blank`, `shuffled` and `textonly` arms, where they were run, are put into words.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmft.data.order import epoch_order
from vlmft.data.rows import Rows
from vlmft.evaluation.baselines import Baseline, baselines
from vlmft.evaluation.compare import Adjusted
from vlmft.evaluation.readable_answers import MOST_ROWS, Readable, readable
from vlmft.metrics import metric_named
from vlmft.report import Grid, Section
from vlmft.sample import BadRowError, Sample, Split

TRAIN_ROWS = 2_000
"""At most so many training rows are read for the baselines."""
CONTROLS = {
    "blank": "black images in place of its own",
    "shuffled": "another row's images in place of its own",
    "textonly": "no image at all",
}


@dataclass(frozen=True)
class WithoutLooking:
    """What needs no image."""

    readable: Readable
    baselines: list[Baseline]
    controls: list[str]
    """A sentence for each arm without images."""

    @property
    def lines(self) -> list[str]:
        """For the console, below the table."""
        found = [baselines_sentence(self.baselines)] if self.baselines else []
        return [*found, f"answers that stand in the prompt: {self.readable.sentence}", *self.controls]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rules = [found.to_dict() for found in self.baselines]
        return {"readable_answers": self.readable.to_dict(), "baselines": rules, "controls": self.controls}


def without_looking(
    rows: Rows, split: Split, samples: Sequence[Sample], comparisons: Sequence[Adjusted]
) -> WithoutLooking:
    """Reads the texts of these rows, and of training rows for the baselines, which a look at train itself has not."""
    train = training_rows(rows) if split != "train" else []
    fitted = baselines(train, samples, metric_named(rows.metric_name))
    return WithoutLooking(readable(samples), fitted, [said for one in comparisons if (said := control_sentence(one))])


def training_rows(rows: Rows) -> list[Sample]:
    """A seeded sample of train; rows that cannot be read are left out, and told of where they are used."""
    ids, found = rows.ids["train"], []
    for place in np.sort(epoch_order(len(ids), 0, epoch=0)[:TRAIN_ROWS]).tolist():
        with contextlib.suppress(BadRowError):
            found.append(rows.sample(ids[place]))
    return found


def readable_of_splits(rows: Rows) -> dict[str, dict[str, Any]]:
    """Split -> `Readable.to_dict()`; after `check_splits`."""
    return {
        split: readable([sample for sample, _ in rows.some_rows(split, MOST_ROWS)]).to_dict() for split in rows.cards
    }


def alarms_of(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of the splits that tell their answers."""
    return [said for split, one in found.items() if (said := alarm(split, one)) is not None]


def alarm(split: str, found: Mapping[str, Any]) -> str | None:
    """What stands above a table where the rows of `split` tell their answers; `found` is `Readable.to_dict()`."""
    if not found["flagged"]:
        return None
    return (
        f"the data tell their answers: in {split} the gold answer stands in its own prompt in {found['sentence']}; "
        "what is scored on these shows no skill"
    )


def baselines_sentence(found: Sequence[Baseline]) -> str:
    """Such as "without looking: majority 15.8 %, majority by question 31.0 % (12 kinds of question), copy 0.0 %"."""
    told = []
    for rule in found:
        more = (
            f" ({rule.kinds} kind{'s' * (rule.kinds != 1)} of question)" if rule.name == "majority by question" else ""
        )
        told.append(f"{rule.name} {100 * rule.value:.1f} %{more}")
    return f"rules from the training rows, which look at nothing: {', '.join(told)}"


def control_sentence(judged: Adjusted) -> str | None:
    """What the comparison of an arm with the same one without its images means; None for another comparison."""
    found = judged.comparison
    control = found.second.partition("@")[0]
    if control not in CONTROLS or found.first.partition("@")[0] not in ("tuned", "untuned"):
        return None
    low, high = (100 * bound for bound in found.interval)
    told = (
        f"{found.first} with {CONTROLS[control]} scores {100 * found.second_value:.1f} %, with its images "
        f"{100 * found.first_value:.1f} % (difference {100 * found.difference:+.1f} points, 95 % interval "
        f"{low:+.1f} to {high:+.1f}): "
    )
    means = {
        "worse": "it uses its images",
        "better": "it answers better without its images, so they do not tell it the answer",
        "not distinguishable": f"these {found.n} rows do not show that it needs its images",
    }
    return told + means[judged.verdict]


def section(found: WithoutLooking) -> Section:
    """The report's part on it."""
    said = [f"Answers that stand in the prompt: {found.readable.sentence}.", *(f"{text}." for text in found.controls)]
    meaning = {
        "majority": "always the most frequent training answer",
        "majority by question": "that of the same kind of question",
        "copy": "what stands where training prompts have their answer",
    }
    lines = [
        (rule.name, f"{100 * rule.value:.1f} %", str(rule.answered), str(rule.kinds), meaning[rule.name])
        for rule in found.baselines
    ]
    heads = ("Rule", "Score", "Rows answered", "Kinds", "What it says")
    return Section("Without looking", tuple(said), Grid(heads, lines, (0, 4), (1,)) if lines else None)
