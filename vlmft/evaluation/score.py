"""From answers to numbers: one score per row, one summary per arm, and what a summary cannot support."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vlmft.evaluation.compare import SMALLEST_SIGNIFICANT, expect_same_ids, wilson_interval
from vlmft.metrics import Labels, beside
from vlmft.metrics.score import Metric, Score
from vlmft.sample import Answer

SMALL_N = 100
"""Below it an arm's own interval is 17 points wide at 75 %."""
COLLAPSED_SHARE = 0.5


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
    """95 % Wilson interval of `value`; takes rows for independent."""
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
    return {row_id: _score_row(row_id, answers[row_id], references[row_id], metric) for row_id in ids}


def _score_row(row_id: str, answer: Answer, references: Sequence[str], metric: Metric) -> ScoredRow:
    try:
        return ScoredRow(row_id, answer.text, answer.finish, metric(answer.text, references))
    except ValueError as error:
        raise ValueError(f"{error} (row {row_id})") from error


def summarise(
    arm: str,
    rows: Mapping[str, ScoredRow],
    references: Mapping[str, Sequence[str]],
    metric_name: str,
    seconds: float | None = None,
    labels: Labels | None = None,
) -> ArmSummary:
    """Sums up the scored rows of one arm; `seconds` is the time that all of its answers took, `labels` their classes.

    Raises ValueError where the ids differ or there are no rows.
    """
    ids = expect_same_ids("references", references, arm, rows)
    scores = [rows[row_id].score for row_id in ids]
    total = sum(score.value for score in scores)
    top_answer, top_count = _most_common(score.parsed for score in scores if score.parsed is not None)
    _, majority_count = _most_common(references[row_id][0].strip() for row_id in ids)
    return ArmSummary(
        arm=arm,
        metric=metric_name,
        n=len(ids),
        value=total / len(ids),
        interval=wilson_interval(total, len(ids)),
        parse_failures=sum(score.parsed is None for score in scores),
        truncated=sum(row.finish == "length" for row in rows.values()),
        verbatim=sum(rows[row_id].text in references[row_id] for row_id in ids),
        top_answer=top_answer,
        top_share=top_count / len(ids),
        majority_share=majority_count / len(ids),
        answers_per_second=len(ids) / seconds if seconds else None,
        beside=beside(metric_name, [(rows[row_id].text, references[row_id]) for row_id in ids], labels),
    )


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
    found = []
    if summary.top_share > max(COLLAPSED_SHARE, 2 * summary.majority_share):
        found.append(
            f"{summary.arm}: {summary.top_share:.0%} of {summary.n} answers are {summary.top_answer!r}, while the most "
            f"frequent reference fits {summary.majority_share:.0%} of the questions; it has collapsed to one answer."
        )
    if summary.n >= SMALL_N and summary.value == 1 and summary.verbatim == summary.n:
        found.append(
            f"{summary.arm}: all {summary.n} answers are right and repeat a reference character by character; before "
            "believing it, look for the answers in the prompts."
        )
    if summary.n < SMALL_N:
        found.append(
            f"{summary.arm}: with {summary.n} rows {_smallest_claim(summary.n)}; the score's own 95 % interval is "
            f"{summary.interval[0]:.1%} to {summary.interval[1]:.1%}."
        )
    return found


def _smallest_claim(n: int) -> str:
    """The smallest difference of two arms that n rows can show (exact McNemar), as half a sentence."""
    if n < SMALLEST_SIGNIFICANT:
        return "no difference between two arms can be told from chance"
    points = 100 * SMALLEST_SIGNIFICANT / n
    return f"a difference below {points:.1f} points ({SMALLEST_SIGNIFICANT} rows) cannot be told from chance"
