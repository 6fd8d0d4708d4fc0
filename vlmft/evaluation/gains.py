"""Format gain and skill gain of tuning; and which differences a test set can show at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.special import ndtri

from vlmft.evaluation.arms import CONTROLS, SIXTEEN_BIT
from vlmft.evaluation.compare import SEED, SMALLEST_SIGNIFICANT, Adjusted, rows_sentence
from vlmft.evaluation.intervals import NORMAL_QUANTILE_975, Clusters, student_quantile
from vlmft.evaluation.numbers import SHARE, console, p_words, percent

NORMAL_QUANTILE_80 = float(ndtri(0.8))
USUAL_DISCORDANCE = 0.1
"""Share of rows on which two arms disagree: 6 % in a QLoRA of a strong model on ChartQA, 30 % and more where tuning
changes what a model does."""


@dataclass(frozen=True)
class FormatAndSkill:
    """The gain, split into what the untuned model also reaches under another prompt, and the rest."""

    untuned: float
    best_untuned_arm: str
    """The untuned arm that does best: another prompt, or examples before the question."""
    best_untuned: float
    tuned: float
    skill: Adjusted
    """Best untuned arm against tuned: the difference is not reached by any prompt of this evaluation."""

    @property
    def format_gain(self) -> float:
        return self.best_untuned - self.untuned

    @property
    def sentence(self) -> str:
        skill = self.skill.comparison
        by_format = "none is format (no other prompt and no examples raise the untuned model's score)"
        caution = ""
        if self.best_untuned_arm != "untuned":
            by_format = f"{SHARE.signed(self.format_gain)} are format ({self.best_untuned_arm} has them without tuning)"
            caution = " The best of several untuned arms flatters it, so this skill is rather too small."
        return console(
            f"Of {SHARE.difference(self.tuned - self.untuned)}, {by_format}; {SHARE.signed(skill.difference)} (95 % "
            f"interval {SHARE.difference_interval(skill.interval)}, {p_words(self.skill.p_value)} by Holm) are skill: "
            f"{self.skill.verdict_sentence}.{caution}"
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
    """Splits the gain of `tuned` over `untuned`, as one of these comparisons; None where there is no `skill_pair`.

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


def smallest_difference(n: int, discordance: float = USUAL_DISCORDANCE) -> float | None:
    """The difference of two arms, 0..1, that `n` independent rows show in four cases of five at p < 0.05; None where
    the rows are too few for any.

    Normal approximation of McNemar's test (Connor 1987, "Sample size for testing differences in proportions for the
    paired-sample design"), where the arms disagree on this share of the rows; one row more, as the exact test is the
    more careful one. Raises ValueError unless n >= 1.
    """
    if n < 1:
        raise ValueError(f"Expected at least one row, got {n!r}; a test set without rows shows nothing")
    difference = discordance
    for _ in range(50):  # a fixed point: the variance of the difference is smaller, the larger the difference is
        spread = math.sqrt(max(0.0, discordance - difference**2))
        difference = (NORMAL_QUANTILE_975 * math.sqrt(discordance) + NORMAL_QUANTILE_80 * spread) / math.sqrt(n)
    return difference + 1 / n if difference + 1 / n <= discordance else None  # no more gets better than changes


def detectable(n: int, n_groups: int, kind: str = "groups") -> str:
    """What a test set of `n` rows in `n_groups` independent groups can show, in a sentence.

    As if a group changed as one: what its rows add beyond that is not known before they are answered.
    """
    units = rows_sentence(n, n_groups, kind)
    if n_groups < SMALLEST_SIGNIFICANT:
        what = "rows" if n == n_groups else kind
        return f"{units} cannot show any difference of two arms at p < 0.05: that takes {SMALLEST_SIGNIFICANT} {what}"
    smallest = [smallest_difference(n_groups, share) for share in (0.1, 0.3)]
    if smallest[-1] is None:
        return f"{units} are too few: where 30 % of the answers or less change, most differences will look like chance"
    few, many = (None if one is None else f"{100 * one:.1f} points" for one in smallest)
    if_few = f"{few} if 10 % do" if few else "where 10 % do, no difference shows"
    return (
        f"{units}: if 30 % of the answers change, a difference of {many} between two models is told from chance in "
        f"four cases of five ({if_few}); a smaller one can look like chance"
    )


MANY_TUNED = 3
"""From this number of tuned arms on, the best one's value is reported with a note that the choice flatters it."""
HALVINGS = 200


@dataclass(frozen=True)
class BestOfSeveral:
    """The best of several tuned arms on the rows that it was chosen on, and what such a choice is worth elsewhere."""

    arm: str
    n_arms: int
    value: float
    """Its mean score on all rows: too high, because the arm was chosen by it."""
    split_half: float
    """The mean score of the arm that is best on one half of the groups, on the other half; over seeded halvings."""

    @property
    def sentence(self) -> str:
        return (
            f"{self.arm} is the best of {self.n_arms} candidates on these very rows, which flatters it: "
            f"{percent(self.value)}; chosen on one half of the rows and scored on the other, the best reaches "
            f"{percent(self.split_half)} (mean of {2 * HALVINGS}). Choose on validation, or on other rows."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "sentence": self.sentence}


def best_tuned(scores: Mapping[str, Mapping[str, float]], groups: Mapping[str, str]) -> BestOfSeveral | None:
    """Of the arms that are candidates to be chosen: neither untuned nor a control."""
    others = ("untuned", "fewshot", SIXTEEN_BIT, *CONTROLS)
    return best_of_several({arm: own for arm, own in scores.items() if arm.partition("@")[0] not in others}, groups)


def best_of_several(scores: Mapping[str, Mapping[str, float]], groups: Mapping[str, str]) -> BestOfSeveral | None:
    """`scores`: candidate -> row id -> score. None for fewer than `MANY_TUNED` arms, or fewer than two groups.

    Halves are drawn by group; an arm that ties is passed over for the one named before it.
    """
    arms = list(scores)
    if len(arms) < MANY_TUNED or len(set(groups.values())) < 2:
        return None
    ids = sorted(scores[arms[0]])
    rows = [Clusters.of(np.array([scores[arm][i] for i in ids]), [groups[i] for i in ids]) for arm in arms]
    sums, sizes = np.stack([one.sums for one in rows]), rows[0].sizes
    generator, reached = np.random.default_rng(SEED), []
    for _ in range(HALVINGS):
        order = generator.permutation(len(sizes))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for chosen_on, scored_on in (halves, halves[::-1]):
            best = int(np.argmax(sums[:, chosen_on].sum(axis=1)))
            reached.append(float(sums[best, scored_on].sum() / sizes[scored_on].sum()))
    means = sums.sum(axis=1) / sizes.sum()
    best = int(np.argmax(means))
    return BestOfSeveral(arms[best], len(arms), float(means[best]), float(np.mean(reached)))


def seeds_apart(differences: Sequence[float]) -> str:
    """Several training seeds of one experiment, in a sentence."""
    mean, ends = SHARE.difference(fmean(differences)), (min(differences), max(differences))
    return console(f"{len(differences)} seeds: mean {mean}, from {SHARE.difference_interval(ends)}")


def seeds_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over all seeds there could be, by Student's t of two or more seeds."""
    half = student_quantile(len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return fmean(differences) - half, fmean(differences) + half
