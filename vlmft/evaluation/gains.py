"""What tuning taught of the form, apart from what it taught of the task; and what a test set can show at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmft.evaluation.compare import NORMAL_QUANTILE_975, Adjusted, p_words

NORMAL_QUANTILE_80 = 0.8416212335729143
USUAL_DISCORDANCE = 0.1
"""Share of rows on which two arms disagree: 6 % in a QLoRA of a strong model on ChartQA, 30 % and more where tuning
changes what a model does."""


@dataclass(frozen=True)
class FormatAndSkill:
    """The gain, parted: what the untuned model has, too, when it is asked otherwise, and the rest."""

    untuned: float
    asked_otherwise: str
    """The untuned arm that does best: another prompt, or examples before the question."""
    best_untuned: float
    tuned: float
    skill: Adjusted
    """Best untuned arm against tuned: the difference is what no prompt here gives the untuned model."""

    @property
    def format_gain(self) -> float:
        return self.best_untuned - self.untuned

    @property
    def sentence(self) -> str:
        skill = self.skill.comparison
        total, low, high = self.tuned - self.untuned, *skill.interval
        if self.asked_otherwise == "untuned":
            had, caution = "none are", ""
        else:
            had = f"{100 * self.format_gain:+.1f} are"
            caution = " The best of several untuned arms flatters it, so this skill is rather too small."
        where = f" ({self.asked_otherwise})" if caution else ""
        gain = f"Of {100 * total:+.1f} points, {had} had by asking the untuned model otherwise{where}"
        return (
            f"{gain}; {100 * skill.difference:+.1f} (95 % interval {100 * low:+.1f} to {100 * high:+.1f}, "
            f"{p_words(self.skill.p_value)} by Holm) are not: {self.skill.verdict}.{caution}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **asdict(self),
            "skill": self.skill.to_dict(),
            "format_gain": self.format_gain,
            "sentence": self.sentence,
        }


def skill_pair(values: Mapping[str, float]) -> tuple[str, str] | None:
    """The best untuned arm and `tuned`; None without another way of asking the untuned model."""
    others = [arm for arm in values if arm == "fewshot" or arm.startswith("untuned@")]
    if not others or not {"untuned", "tuned"} <= values.keys():
        return None
    return max(["untuned", *others], key=lambda arm: values[arm]), "tuned"


def format_and_skill(values: Mapping[str, float], comparisons: Sequence[Adjusted]) -> FormatAndSkill | None:
    """Parts the gain of `tuned` over `untuned`, as one of these comparisons; None where there is no `skill_pair`.

    `values` are the arms' mean scores.
    """
    if (pair := skill_pair(values)) is None:
        return None
    (skill,) = [one for one in comparisons if (one.comparison.first, one.comparison.second) == pair]
    best, _ = pair
    return FormatAndSkill(values["untuned"], best, values[best], values["tuned"], skill)


def prompt_matrix(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Prompt -> arm -> mean score, for the arms asked in several ways; empty where there is one way."""
    ways = dict.fromkeys(arm.partition("@")[2] or "train" for arm in values)
    arms = dict.fromkeys(arm.partition("@")[0] for arm in values if "@" in arm)
    if len(ways) < 2:
        return {}

    def name(arm: str, way: str) -> str:
        return arm if way == "train" else f"{arm}@{way}"

    return {way: {arm: values[name(arm, way)] for arm in arms if name(arm, way) in values} for way in ways}


def smallest_difference(n: int, discordance: float = USUAL_DISCORDANCE) -> float:
    """The difference of two arms, 0..1, that `n` independent rows show in four cases of five at p < 0.05.

    Normal approximation of McNemar's test (Connor 1987, "Sample size for testing differences in proportions for the
    paired-sample design"), where the arms disagree on this share of the rows. Raises ValueError unless n >= 1.
    """
    if n < 1:
        raise ValueError(f"Expected at least one row, got {n!r}; a test set without rows shows nothing")
    found = discordance
    for _ in range(50):  # a fixed point: the variance of the difference is smaller, the larger the difference is
        spread = math.sqrt(max(0.0, discordance - found**2))
        found = (NORMAL_QUANTILE_975 * math.sqrt(discordance) + NORMAL_QUANTILE_80 * spread) / math.sqrt(n)
    return min(discordance, found)  # no more can change for the better than changes


def detectable(n: int, n_groups: int) -> str:
    """What a test set of `n` rows in `n_groups` independent groups can show, in a sentence."""
    each = [
        f"{100 * smallest_difference(n_groups, share):.1f} points where {share:.0%} of them" for share in (0.1, 0.3)
    ]
    units = f"{n} rows" if n == n_groups else f"{n} rows on {n_groups} independent images"
    return f"{units} show, in four cases of five, a difference of {each[0]} change, and of {each[1]} do"


def seeds_apart(differences: Sequence[float]) -> str:
    """Several training seeds of one experiment, in a sentence."""
    mean = sum(differences) / len(differences)
    low, high = min(differences), max(differences)
    return f"{len(differences)} seeds: mean {100 * mean:+.1f} points, from {100 * low:+.1f} to {100 * high:+.1f}"
