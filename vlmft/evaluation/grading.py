"""Answers judged by people: verdicts on disk, acceptance per arm, agreement of raters. No torch.

One line of <folder>/grading/<rater>.jsonl is one verdict: {"id", "arms", "text_sha256", "verdict", "note"}. It is about
a text under a row's question: two arms with the same text share it, and an arm that is added later reuses it. The last
line about a text counts. A rater whose name begins with "judge-" is a machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from vlmft.config.check import ConfigError
from vlmft.config.files import append_synced, whole_lines
from vlmft.evaluation.compare import Adjusted, Comparison, adjusted, arm_interval, compare

GRADING_FOLDER = "grading"
JUDGE = "judge-"
TextKey = tuple[str, str]
"""Row id and hash of the text: what a verdict is about."""
Answers = Mapping[str, Mapping[str, str]]
"""Arm -> row id -> text."""


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Verdict:
    id: str
    arms: tuple[str, ...]
    """Those that had answered this text when it was judged."""
    text_sha256: str
    verdict: Literal["accept", "reject"]
    note: str = ""

    @property
    def key(self) -> TextKey:
        return self.id, self.text_sha256


class VerdictFile:
    """One rater's verdicts, each on disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.verdicts = read_verdicts(path)

    def append(self, verdict: Verdict) -> None:
        """Raises OSError where it cannot be kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole_lines(self.path)  # repaired first: the next line would be appended to a torn one
        append_synced(self.path, (json.dumps(asdict(verdict), ensure_ascii=False) + "\n").encode())
        self.verdicts[verdict.key] = verdict


def read_verdicts(path: Path) -> dict[TextKey, Verdict]:
    """The verdicts of one file, the last one on each text; a torn last line is left out.

    Raises:
        ConfigError: a damaged line, named.
    """
    verdicts = {}
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = json.loads(line)
            one = Verdict(row["id"], tuple(row["arms"]), row["text_sha256"], row["verdict"], row.get("note") or "")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}: Expected a verdict, got {line[:40]!r}; correct the line"
            ) from error
        if one.verdict not in ("accept", "reject"):
            raise ConfigError(
                f"{path}, line {number}: Expected accept or reject, got {one.verdict!r}; correct the line"
            )
        verdicts[one.key] = one
    return verdicts


@dataclass(frozen=True)
class Acceptance:
    """Share of one arm's answers that one rater accepts."""

    arm: str
    n: int
    accepted: int
    value: float
    interval: tuple[float, float]
    """95 %, as `arm_interval`: Wilson's, or by group where rows share images."""
    interval_method: str


@dataclass(frozen=True)
class RaterResult:
    rater: str
    is_judge: bool
    n_texts: int
    """Texts judged; one that several arms answered counts once here."""
    arms: list[Acceptance]
    """Without those of which nothing was judged."""
    comparisons: list[Adjusted]
    """Every further arm against the first, on the rows where both were judged."""


@dataclass(frozen=True)
class Kappa:
    """Agreement of two raters on the texts that both judged."""

    first: str
    second: str
    n: int
    agreement: float | None
    """Share of equal verdicts; None where n is 0."""
    kappa: float | None
    """Cohen's (1960): (agreement - expected) / (1 - expected); None where that is 0 / 0."""


@dataclass(frozen=True)
class Grading:
    """The verdicts of all raters, summarised."""

    raters: list[RaterResult]
    kappas: list[Kappa]
    """Every two people, and every judge with every person."""
    mean_of_people: dict[str, float]
    """Arm -> mean of the people's rates, where there are several; each person counts once, however much they judged."""
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        content = asdict(self)
        for rater, own in zip(content["raters"], self.raters, strict=True):
            rater["comparisons"] = [one.to_dict() for one in own.comparisons]
        return content


def cohens_kappa(
    first_name: str, first: Mapping[TextKey, Verdict], second_name: str, second: Mapping[TextKey, Verdict]
) -> Kappa:
    """Counted in whole numbers, so that "expected agreement is 1" is exact."""
    shared = [(first[key].verdict, second[key].verdict) for key in first if key in second]
    n = len(shared)
    if not n:
        return Kappa(first_name, second_name, 0, None, None)
    equal = sum(one == other for one, other in shared)
    yes_first, yes_second = (sum(pair[i] == "accept" for pair in shared) for i in (0, 1))
    expected = yes_first * yes_second + (n - yes_first) * (n - yes_second)  # times n * n
    kappa = (n * equal - expected) / (n * n - expected) if expected < n * n else None
    return Kappa(first_name, second_name, n, equal / n, kappa)


def summarise_grading(
    answers: Answers, verdicts: Mapping[str, Mapping[TextKey, Verdict]], groups: Mapping[str, str], arms: Sequence[str]
) -> Grading:
    """Acceptance and agreement over `arms`; `verdicts` is rater -> what was judged, `groups` row id -> its image.

    A verdict on a text that no arm of `answers` has is not used, and counted in a note.
    """
    answered = {(row_id, text_sha256(text)) for texts in answers.values() for row_id, text in texts.items()}
    used, notes = {}, []
    for rater, own in verdicts.items():
        used[rater] = {key: verdict for key, verdict in own.items() if key in answered}
        if stale := len(own) - len(used[rater]):
            notes.append(f"{rater}: {stale} of {len(own)} verdicts are on answers that are no longer there; not used")
    raters = [_of_rater(rater, own, answers, groups, arms) for rater, own in used.items()]
    people = [one.rater for one in raters if not one.is_judge]
    judges = [one.rater for one in raters if one.is_judge]
    pairs = [*combinations(people, 2), *((judge, person) for judge in judges for person in people)]
    rates = {arm: [one.value for r in raters if not r.is_judge for one in r.arms if one.arm == arm] for arm in arms}
    return Grading(
        raters,
        [cohens_kappa(first, used[first], second, used[second]) for first, second in pairs],
        {arm: fmean(values) for arm, values in rates.items() if len(values) > 1},
        notes,
    )


def _of_rater(
    rater: str, own: Mapping[TextKey, Verdict], answers: Answers, groups: Mapping[str, str], arms: Sequence[str]
) -> RaterResult:
    scores: dict[str, dict[str, float]] = {}
    for arm in arms:
        keys = {row_id: (row_id, text_sha256(text)) for row_id, text in answers[arm].items()}
        own_scores = {row_id: float(own[key].verdict == "accept") for row_id, key in keys.items() if key in own}
        if own_scores:
            scores[arm] = own_scores
    rates = []
    for arm, values in scores.items():
        interval, method, _ = arm_interval(values, groups)
        accepted = int(sum(values.values()))
        rates.append(Acceptance(arm, len(values), accepted, accepted / len(values), interval, method))
    comparisons: list[Comparison] = []
    for second in arms[1:]:
        one, other = scores.get(arms[0], {}), scores.get(second, {})
        if shared := one.keys() & other.keys():
            pair = ({row_id: values[row_id] for row_id in shared} for values in (one, other))
            comparisons.append(compare(arms[0], next(pair), second, next(pair), groups))
    return RaterResult(rater, rater.startswith(JUDGE), len(own), rates, adjusted(comparisons))
