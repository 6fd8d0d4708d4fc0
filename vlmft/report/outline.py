"""A report as a list of blocks: what stands under which heading, in one order for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlmft.evaluation.numbers import Unit, bounds, count, finite, p_value
from vlmft.report.breakdown import breakdowns
from vlmft.report.card import card_charts, card_words
from vlmft.report.charts import Chart, Lane, Lanes, Scale, bar_lanes, plots, rounded_range
from vlmft.report.content import Bar, Report, Section
from vlmft.report.graded import graded_section
from vlmft.report.tables import (
    arm_notes,
    arm_table,
    by_metric,
    comparison_notes,
    comparison_table,
    has_holm,
    metric_words,
    mood,
    pair_name,
)


@dataclass(frozen=True)
class Block:
    """What stands under one heading, reached by its anchor."""

    anchor: str
    section: Section
    charts: tuple[Chart, ...] = ()
    """Of the page alone, as all of a block that is `page_only`."""
    page_only: bool = False
    special: Literal["", "gallery", "sheet"] = ""
    """What the page adds that is no section: the gallery, or the link to the near-duplicates."""


def blocks(report: Report) -> list[Block]:
    """Arms, comparisons, rows, what explains them, curves; what is seldom asked for is folded, at the end."""
    return [*_results(report), *_background(report)]


def _results(report: Report) -> Iterator[Block]:
    unit = Unit(is_share=not report.is_graded)
    if report.arms:
        yield _arms(report, unit)
    if report.comparisons:
        table = comparison_table(report.comparisons, unit)
        section = Section("Paired comparison", table=table, notes=comparison_notes(report.comparisons))
        yield Block("comparison", section, (forest(report.comparisons, unit),))
    if report.rows and report.view:
        yield Block("gallery", Section("Gallery"), page_only=True, special="gallery")
    yield from _added(report, is_folded=False)
    if report.grading is not None:
        yield Block("grading", graded_section(report.grading))
    yield from (Block(f"breakdown-{index}", section) for index, section in enumerate(breakdowns(report), start=1))
    if report.curves:
        yield Block("curves", Section("Training"), plots(report.curves), page_only=True)


def _added(report: Report, *, is_folded: bool) -> Iterator[Block]:
    sections = enumerate(report.sections, start=1)
    return (Block(f"section-{index}", one) for index, one in sections if one.is_folded == is_folded)


def _background(report: Report) -> Iterator[Block]:
    yield from _added(report, is_folded=True)
    if report.card is not None:
        section = Section("Data", definitions=card_words(report.card), is_folded=True)
        yield Block("data", section, card_charts(report.card), special="sheet" if report.card.get("sheet") else "")
    elif report.split_sizes:
        bars = [Bar(name, size, count(size)) for name, size in report.split_sizes.items()]
        chart = bar_lanes(f"Rows in each split, {count(sum(report.split_sizes.values()))} in all.", bars)
        yield Block("data", Section("Data", is_folded=True), (chart,), page_only=True)
    lists = {
        "Checks": report.checks,
        "Settings": report.settings,
        "Fingerprints": report.fingerprints,
        "Versions": report.versions,
    }
    for name, values in lists.items():
        if values:
            section = Section(name, definitions=values, is_folded=True)
            yield Block(name.lower(), section, page_only=name == "Settings")
    if report.command:
        yield Block("command", Section("Command", code=report.command, is_folded=True))


def _arms(report: Report, unit: Unit) -> Block:
    """A table and a chart for each metric."""
    first, *others = by_metric(report.arms)
    parts = tuple(Section(metric_words(str(some[0]["metric"])), table=arm_table(some, unit)) for some in others)
    notes = (*arm_notes(report.arms), *report.remarks)
    section = Section("Arms", table=arm_table(first, unit), parts=parts, notes=notes)
    return Block("arms", section, tuple(arm_lanes(some, unit) for some in (first, *others)))


def arm_lanes(arms: Sequence[Mapping[str, Any]], unit: Unit) -> Lanes:
    """The arms of one metric, always on the whole range of a score from 0 to 1, so that nothing looks larger."""
    lanes = [
        Lane(
            label=str(arm["arm"]),
            text=unit.value(arm["value"]),
            value=finite(arm["value"]),
            interval=bounds(arm["interval"]),
            baseline=finite(arm["majority_share"]) if unit.is_share else None,
        )
        for arm in arms
    ]
    methods = dict.fromkeys(str(arm["interval_method"]) for arm in arms if arm.get("interval_method"))
    method = f" ({', '.join(methods)})" if methods else ""
    caption = f"{metric_words(str(arms[0]['metric']))}: dot with 95\u00a0% interval{method}."
    if unit.is_share:
        caption += " Dashed: the majority baseline, what always giving the most frequent reference would score."
    return Lanes(lanes, Scale(0.0, 1.0), caption, unit.tick)


def forest(comparisons: Sequence[Mapping[str, Any]], unit: Unit) -> Lanes:
    """Differences around the line of none."""
    lanes = [
        Lane(
            label=pair_name(pair),
            text=f"{unit.difference(pair['difference'])}, {p_value(pair.get('p_holm', pair['p_value']))}",
            value=finite(pair["difference"]),
            interval=bounds(pair["interval"]),
            mood=mood(pair),
        )
        for pair in comparisons
    ]
    known = [abs(value) for lane in lanes for value in (*(lane.interval or ()), lane.value) if value is not None]
    reach = max(known or [0.0]) or 0.01
    caption = (
        f"Paired difference{' in points' if unit.is_share else ''}, second minus first, with its 95\u00a0% interval. "
        "Where the interval holds zero, these rows do not tell the arms apart."
    ) + (" p is Holm's." if has_holm(comparisons) else "")
    scale = Scale(*rounded_range([-reach, reach], steps=10))
    return Lanes(lanes, scale, caption, unit.difference_tick, zero=True)
