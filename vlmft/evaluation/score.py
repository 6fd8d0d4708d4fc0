"""From answers to numbers: one score per row, one summary per arm, and what a summary cannot support."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vlmft.evaluation.compare import SMALLEST_SIGNIFICANT, arm_interval, compare, expect_same_ids, rows_sentence
from vlmft.evaluation.intervals import SIGNIFICANCE
from vlmft.evaluation.numbers import SHARE, console, percent
from vlmft.metrics import Labels, beside
from vlmft.metrics.score import Metric, Score
from vlmft.sample import Answer

SMALL_N = 100
"""Below it an arm's own interval is 17 points wide at 75 %."""
COLLAPSED_SHARE = 0.5
NOTABLE_SHARE = 0.01
"""Less than one row in a hundred treated differently hardly moves a score; what chance also does is not reported."""
REFUSAL = re.compile(
    r"(i['\u2019]?m|i am) (sorry|unable|not able)|sorry,|i (can['\u2019]?t|cannot)\b|as an ai\b|unfortunately, i\b"
    r"|извините|к сожалению, я|я не могу|как ии\b",
    re.IGNORECASE,
)
"""How a refusal begins."""


@dataclass(frozen=True)
class ScoredRow:
    """One answer and what it is worth."""

    id: str
    text: str
    finish: Literal["stop", "length"]
    score: Score


@dataclass(frozen=True)
class ArmSummary:
    """One arm's score on one test set, with what is needed to doubt it."""

    arm: str
    metric: str
    n: int
    value: float
    """Mean score, 0..1. Every row counts, unparsed ones as wrong."""
    interval: tuple[float, float]
    """95 % interval of `value`."""
    interval_method: str
    n_groups: int
    """Independent units, such as images, that the rows belong to."""
    parse_failures: int
    truncated: int
    """Answers cut at `max_new_tokens`."""
    verbatim: int
    """Answers that repeat a reference character by character."""
    top_answer: str | None
    """The most frequent parsed answer; None where none was parsed."""
    top_share: float
    """Its share of all rows."""
    majority_share: float
    """The share of the most frequent (first) reference: what always giving that one answer would score."""
    answers_per_second: float | None
    beside: Mapping[str, float | None] = field(default_factory=dict)
    """Other metrics of the same answers, by variant; None where one is withheld."""
    draws: tuple[float, ...] = ()
    """Value of each draw of few-shot examples, of which `value` is the mean; else empty."""
    kind: str = "groups"
    """What the groups are, such as images."""
    answered_by: str = ""
    """What a server says of itself, and when; "" of a model that is loaded here."""

    @property
    def rows_sentence(self) -> str:
        return rows_sentence(self.n, self.n_groups, self.kind)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: strings, finite numbers, None, and the interval as a list of two."""
        return {**asdict(self), "interval": list(self.interval), "draws": list(self.draws)}


def score_answers(
    answers: Mapping[str, Answer], references: Mapping[str, Sequence[str]], metric: Metric
) -> dict[str, ScoredRow]:
    """Scores each answer against the references of its id, in the order of `references`.

    Raises ValueError where the ids differ, as a row left out would silently leave the denominator.
    """
    ids = expect_same_ids("references", references, "answers", answers)
    rows = {}
    for row_id in ids:
        answer = answers[row_id]
        try:
            rows[row_id] = ScoredRow(row_id, answer.text, answer.finish, metric(answer.text, references[row_id]))
        except ValueError as error:
            raise ValueError(f"{error} (row {row_id})") from error
    return rows


def summarise(
    arm: str,
    rows: Mapping[str, ScoredRow],
    references: Mapping[str, Sequence[str]],
    metric_name: str,
    seconds: float | None = None,
    labels: Labels | None = None,
    groups: Mapping[str, str] | None = None,
    kind: str = "groups",
    *,
    is_share: bool | None = None,
    alone: bool = False,
) -> ArmSummary:
    """Sums up the scored rows of one arm; `seconds` is the time that all of its answers took, `labels` their classes,
    `groups` each row's independent unit (None: itself), `is_share` as in `mean_interval`; `alone` leaves out
    the other metrics, which take longer than the one that is asked for.

    Raises ValueError where the ids differ or there are no rows.
    """
    ids = expect_same_ids("references", references, arm, rows)
    scores = [rows[row_id].score for row_id in ids]
    values = {row_id: rows[row_id].score.value for row_id in ids}
    groups = {row_id: row_id for row_id in ids} if groups is None else groups
    interval, method, n_groups = arm_interval(values, groups, is_share=is_share)
    top_answer, top_count = _most_common(score.parsed for score in scores if score.parsed is not None)
    _, majority_count = _most_common(references[row_id][0].strip() for row_id in ids)
    return ArmSummary(
        arm=arm,
        metric=metric_name,
        n=len(ids),
        value=sum(values.values()) / len(ids),
        interval=interval,
        interval_method=method,
        n_groups=n_groups,
        kind=kind,
        parse_failures=sum(score.parsed is None for score in scores),
        truncated=sum(row.finish == "length" for row in rows.values()),
        verbatim=sum(rows[row_id].text in references[row_id] for row_id in ids),
        top_answer=top_answer,
        top_share=top_count / len(ids),
        majority_share=majority_count / len(ids),
        answers_per_second=len(ids) / seconds if seconds else None,
        beside={} if alone else beside(metric_name, [(rows[i].text, references[i]) for i in ids], labels),
    )


def mean_of_draws(draws: Sequence[Mapping[str, ScoredRow]]) -> dict[str, ScoredRow]:
    """Each row's mean score over the draws; its text is that of the first."""
    first, n = draws[0], len(draws)
    means = {row_id: sum(draw[row_id].score.value for draw in draws) / n for row_id in first}
    return {i: replace(r, score=replace(r.score, value=means[i])) for i, r in first.items()}


def summarise_draws(
    mean: ArmSummary,
    draws: Sequence[Mapping[str, ScoredRow]],
    references: Mapping[str, Sequence[str]],
    labels: Labels | None = None,
) -> ArmSummary:
    """`mean` is the summary of each row's mean score; what is counted in answers becomes the mean over the draws."""
    each = [
        summarise(mean.arm, {i: draw[i] for i in references}, references, mean.metric, labels=labels) for draw in draws
    ]
    counted = {
        name: round(sum(getattr(one, name) for one in each) / len(each))
        for name in ("parse_failures", "truncated", "verbatim")
    }
    others = {
        key: None if None in (column := [one.beside[key] for one in each]) else sum(filter(None, column)) / len(each)
        for key in mean.beside
    }
    speed = mean.answers_per_second and mean.answers_per_second * len(each)
    return replace(mean, **counted, beside=others, answers_per_second=speed, draws=tuple(one.value for one in each))


def _most_common(texts: Iterable[str]) -> tuple[str | None, int]:
    """The most frequent text, the alphabetically first of several, and how often it occurs."""
    counts = Counter(texts)
    if not counts:
        return None, 0
    text = min(counts, key=lambda candidate: (-counts[candidate], candidate))
    return text, counts[text]


def warnings(summary: ArmSummary) -> list[str]:
    """What a reader must know before believing `summary`, a sentence each; empty where nothing stands out."""
    sentences = []
    if summary.top_share > max(COLLAPSED_SHARE, 2 * summary.majority_share):
        sentences.append(
            f"{summary.arm}: {percent(summary.top_share)} of {summary.n} answers are {summary.top_answer!r}, while the "
            f"most frequent reference fits {percent(summary.majority_share)} of the questions; it has collapsed to one "
            "answer."
        )
    if summary.n >= SMALL_N and summary.value == 1 and summary.verbatim == summary.n:
        sentences.append(
            f"{summary.arm}: all {summary.n} answers are right and repeat a reference character by character; before "
            "believing it, look for the answers in the prompts."
        )
    return sentences


def cut_off(arms: Iterable[ArmSummary]) -> list[str]:
    """A sentence on every arm where one has answers that were cut at the length limit, in more than a few rows."""
    arms = list(arms)
    if all(arm.truncated < NOTABLE_SHARE * arm.n or not arm.truncated for arm in arms):
        return []
    shares = ", ".join(f"{arm.arm} {percent(arm.truncated / arm.n)}" for arm in arms)
    return [
        f"Answers were cut at data.max_new_tokens: {shares}. What would have come after it counts as missing; set it "
        "higher, or to 0 for as long as the references."
    ]


def too_few(summary: ArmSummary) -> list[str]:
    """What the rows of `summary`, and of every arm beside it, are too few for, in a sentence; empty where they are
    not."""
    n, n_groups, least = summary.n, summary.n_groups, SMALLEST_SIGNIFICANT  # by exact sign flips
    if n_groups >= SMALL_N:
        return []
    if n_groups < least:
        units = "rows" if n == n_groups else summary.kind
        claim = f"no difference between two arms can be distinguished from chance, which takes {least} {units} or more"
    elif n_groups < n:
        claim = f"no difference can be distinguished from chance in which fewer than {least} {summary.kind} change"
    else:
        points = console(SHARE.difference(least / n)).removeprefix("+")
        claim = f"a difference below {points} ({least} rows) cannot be distinguished from chance"
    return [f"With {summary.rows_sentence} {claim}."]


TREATED: dict[str, Callable[[ScoredRow], bool]] = {
    "not parsed": lambda row: row.score.parsed is None,
    "cut at the length limit": lambda row: row.finish == "length",
    "empty or refused": lambda row: not row.text.strip() or REFUSAL.match(row.text.strip()) is not None,
}
"""What can become of an answer that says little of the model's skill."""


def unequal_treatment(
    first_name: str,
    first: Mapping[str, ScoredRow],
    second_name: str,
    second: Mapping[str, ScoredRow],
    groups: Mapping[str, str],
) -> list[str]:
    """A sentence for each kind of `TREATED` that one arm has notably more often than the other, with what the
    difference of the arms would be if those answers were all right, or all wrong.

    Notable: by `NOTABLE_SHARE` of the rows or more, and more than chance does (p < 0.05 by group).
    """
    sentences = []
    for what, is_so in TREATED.items():
        flags = [{i: float(is_so(arm[i])) for i in groups} for arm in (first, second)]
        rates = compare(first_name, flags[0], second_name, flags[1], groups)
        if rates.p_value >= SIGNIFICANCE or abs(rates.difference) < NOTABLE_SHARE:
            continue
        (low_1, high_1), (low_2, high_2) = (
            [sum(worth if flag[i] else arm[i].score.value for i in groups) / len(groups) for worth in (0.0, 1.0)]
            for arm, flag in zip((first, second), flags, strict=True)
        )
        range_1, range_2 = f"{percent(low_1)} to {percent(high_1)}", f"{percent(low_2)} to {percent(high_2)}"
        sentences.append(
            f"Unequal treatment: {percent(rates.first_value)} of the answers of {first_name} and "
            f"{percent(rates.second_value)} of {second_name} are {what}. All wrong or all right, they would put "
            f"{first_name} at {range_1} and {second_name} at {range_2}: a difference of "
            f"{console(SHARE.difference_interval((low_2 - high_1, high_2 - low_1)))} points."
        )
    return sentences
