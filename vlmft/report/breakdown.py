"""What hides behind a mean: the score by group, counts by true count, and which answer stands for which reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, zip_longest

from vlmft.evaluation.compare import arm_interval
from vlmft.evaluation.numbers import DASH, MINUS, Unit, count, finite, number, share, shortened
from vlmft.metrics.counting import counting
from vlmft.metrics.numerals import whole_number
from vlmft.report.content import RIGHT_SCORE, Grid, Report, ReportRow, Section, View

MAX_GROUPS = 20
MAX_COUNTS = 20
"""Different true counts up to which they are a scale to be read along, and not amounts."""
MAX_CLASSES = 200
ROWS_PER_CLASS = 3
"""Rows for each class from which on references are classes, and not texts that happen to repeat."""
MAX_MATRIX = 15
MAX_CONFUSIONS = 10
MAX_OPEN = 10
"""Lines up to which a table stands open, so that the page stays short."""
NONE_READ, OTHER = "(none read)", "(other)"

Rows = Sequence[ReportRow]
Pairs = Mapping[tuple[str, str], int]
"""(reference, answer), as scoring reads both -> rows."""


def breakdowns(report: Report) -> tuple[Section, ...]:
    """The sections that the rows of this report can fill."""
    rows, view, unit = report.rows, report.view, Unit(is_share=not report.is_graded)
    if view is None or not rows:
        return ()
    arms = report.arm_names
    is_counted = _is_counted(rows)
    drawn = [str(arm["arm"]) for arm in report.arms if len(arm.get("draws", ())) > 1]
    notes = tuple(f"{arm}: what is counted in answers is of its first draw of examples." for arm in drawn)
    found = [_groups(rows, arms, view, unit, skip_truth=is_counted)]
    found += [replace(_counts(rows, arms, view, unit), notes=notes)] if is_counted else []
    confusions = _confusions(rows, arms, view) if _has_classes(rows) else None
    found += [replace(confusions, notes=notes)] if confusions is not None else []
    return tuple(section for section in found if section is not None)


def _is_counted(rows: Rows) -> bool:
    counts = {whole_number(reference) for row in rows for reference in row.references}
    return None not in counts and 2 <= len(counts) <= MAX_COUNTS


def _has_classes(rows: Rows) -> bool:
    classes = {row.truth for row in rows}
    return None not in classes and 2 <= len(classes) <= min(MAX_CLASSES, len(rows) / ROWS_PER_CLASS)


def _groups(rows: Rows, arms: Sequence[str], view: View, unit: Unit, *, skip_truth: bool) -> Section | None:
    """A table for each tag that has several groups, most of them of several rows."""
    parts = []
    for tag in dict.fromkeys(name for row in rows for name in row.tags):
        labels = [row.tags.get(tag) or "(none)" for row in rows]
        is_truth = skip_truth and all(label in row.references for label, row in zip(labels, rows, strict=True))
        if 2 <= len(set(labels)) <= len(rows) / 2 and not is_truth:
            parts.append(_by(tag, labels, rows, arms, view, unit))
    said = (
        "Score of each arm with its 95\u00a0% interval, darker where it is higher. Groups are smaller than the "
        "whole: read the intervals, and expect one in twenty groups to stand out by chance."
    )
    return Section("By group", (said,), parts=tuple(parts)) if parts else None


def _by(name: str, labels: Sequence[str], rows: Rows, arms: Sequence[str], view: View, unit: Unit) -> Section:
    """The largest groups, a line each, and the others together in a last one."""
    groups: dict[str, list[ReportRow]] = {}
    for label, row in zip(labels, rows, strict=True):
        groups.setdefault(label, []).append(row)
    ranked = sorted(groups, key=lambda label: (-len(groups[label]), -_moved(groups[label], view), label))
    largest, rest = ranked[:MAX_GROUPS], ranked[MAX_GROUPS:]
    largest.sort(key=lambda label: (whole_number(label) is None, whole_number(label) or -len(groups[label]), label))
    shown = [(shortened(label, 60), groups[label]) for label in largest]
    said: tuple[str, ...] = ()
    if rest:
        shown.append((f"{count(len(rest))} other groups", [row for label in rest for row in groups[label]]))
        said = (
            f"The {MAX_GROUPS} largest of {count(len(groups))} groups, among equally large ones those whose answers "
            "changed most; the last line holds all others.",
        )
    lines = tuple((label, count(len(some)), *(_value(some, arm, unit) for arm in arms)) for label, some in shown)
    heat = tuple((None, None, *(_mean(_scores(some, arm)) for arm in arms)) for _, some in shown)
    table = Grid((name[:1].upper() + name[1:], "n", *arms), lines, heat=heat)
    if len(lines) <= MAX_OPEN:
        return Section(f"By {name}", said, table)
    return Section(f"By {name}, {count(len(groups))} groups", said, table, is_folded=True)


def _moved(rows: Rows, view: View) -> int:
    return sum(view.outcome(row) in ("fixed", "broken") for row in rows)


def _scores(rows: Rows, arm: str) -> dict[str, float]:
    return {row.id: score for row in rows if (score := finite(row.score(arm))) is not None}


def _mean(scores: Mapping[str, float]) -> float | None:
    return sum(scores.values()) / len(scores) if scores else None


def _value(rows: Rows, arm: str, unit: Unit) -> str:
    scores = _scores(rows, arm)
    if not scores:
        return DASH
    interval, _, _ = arm_interval(scores, {row.id: row.group or row.id for row in rows})
    return f"{unit.value(_mean(scores))}\n{unit.interval(interval)}"


def _counts(rows: Rows, arms: Sequence[str], view: View, unit: Unit) -> Section:
    """How far off and which way, over all rows and by true count."""
    answers = {arm: [(answer, row) for row in rows if (answer := row.answer(arm)) is not None] for arm in arms}
    tables = {arm: counting([(a.text, row.references) for a, row in some]) for arm, some in answers.items() if some}
    overall = tuple(
        (
            arm,
            share(table.values["within_1"]),
            number(table.values["mae"], 2),
            _signed(table.values["bias"]),
            count(sum(answer.parsed is None for answer, _ in answers[arm])),
        )
        for arm, table in tables.items()
    )
    bias = {arm: {line["count"]: line["bias"] for line in t.lists["per_true_count"]} for arm, t in tables.items()}
    truths = sorted({truth for by_count in bias.values() for truth in by_count})
    lines = tuple((str(truth), *(_signed(bias[arm].get(truth)) for arm in tables)) for truth in truths)
    said = (
        "Bias is the mean of answer minus true count over the answers in which a number was read: below zero the arm "
        "counts too few. Answering the middle of a narrow range does well within one, so hold the score beside it."
    )
    by_truth = _by("true count", [str(whole_number(row.references[0])) for row in rows], rows, arms, view, unit)
    return Section(
        "Counts",
        (said,),
        Grid(("Arm", "Within one", "Mean absolute error", "Bias", "No number read"), overall),
        parts=(by_truth, Section("Bias by true count", table=Grid(("True count", *tables), lines), is_folded=True)),
    )


def _signed(value: object) -> str:
    text = number(value, 2)
    return text if text.startswith(MINUS) or text in (DASH, "0.00") else f"+{text}"


def _confusions(rows: Rows, arms: Sequence[str], view: View) -> Section | None:
    """Which wrong answers were given most and, for few classes, all answers of each arm."""
    pairs = {arm: Counter(_pairs(rows, arm)) for arm in arms}
    wrong = [{pair: n for pair, n in pairs[arm].items() if pair[0] != pair[1]} for arm in arms]
    most_first = [[pair for _, pair in sorted((-n, pair) for pair, n in found.items())] for found in wrong]
    turns = dict.fromkeys(pair for turn in zip_longest(*most_first) for pair in turn if pair is not None)
    if not turns:
        return None
    shown = list(islice(turns, MAX_CONFUSIONS))
    shown.sort(key=lambda pair: -max(found.get(pair, 0) for found in wrong))
    most = max(found.get(pair, 0) for found in wrong for pair in shown)
    lines = tuple((_class(p[0]), _class(p[1]), *(count(found.get(p, 0)) for found in wrong)) for p in shown)
    heat = tuple((None, None, *(found.get(pair, 0) / most for found in wrong)) for pair in shown)
    said = f"Rows in which an arm gave this wrong answer; {len(shown)} of {len(turns)} such pairs, each arm's worst."
    table = Grid(("Reference", "Answer", *arms), lines, text_columns=(0, 1), heat=heat)
    classes = sorted({str(row.truth) for row in rows}, key=lambda name: (whole_number(name) or 0, name))
    main = [arm for arm in arms if arm in (view.first, view.second)]
    few = [*main, *(arm for arm in arms if arm not in main)] if len(classes) <= MAX_MATRIX else []
    parts = tuple(_matrix(arm, pairs[arm], classes, is_folded=arm not in main) for arm in few)
    return Section("Confusions", (said,), table, parts=parts)


def _pairs(rows: Rows, arm: str) -> Iterator[tuple[str, str]]:
    """Reference and answer of each row; an answer that is right in another spelling counts as its reference."""
    for row in rows:
        answer = row.answer(arm)
        if answer is not None:
            read = NONE_READ if answer.parsed is None else answer.parsed
            yield str(row.truth), str(row.truth) if answer.score >= RIGHT_SCORE else read


def _class(name: str) -> str:
    return shortened(" ".join(name.split()), 40)


def _matrix(arm: str, pairs: Pairs, classes: Sequence[str], *, is_folded: bool) -> Section:
    """A line for each reference, a column for each answer, shaded by its share of the line."""
    cells = Counter[tuple[str, str]]()
    for (truth, read), n in pairs.items():
        cells[truth, read if read in (*classes, NONE_READ) else OTHER] += n
    columns = [*classes, *(name for name in (OTHER, NONE_READ) if any(read == name for _, read in cells))]
    counts = [[cells[truth, read] for read in columns] for truth in classes]
    lines = tuple((_class(truth), *map(count, line)) for truth, line in zip(classes, counts, strict=True))
    heat = tuple((None, *(n / max(1, sum(line)) for n in line)) for line in counts)
    heads = ("Reference \u2193 answer \u2192", *map(_class, columns))
    return Section(f"{arm}: answers to each reference", table=Grid(heads, lines, heat=heat), is_folded=is_folded)
