"""Which chart shows what: picks values out of the report and puts captions under `charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.report.charts import (
    Lane,
    bar_chart,
    curve_chart,
    finite_points,
    interval_chart,
    is_jagged,
    mean_window,
    rounded_range,
)
from vlmft.report.content import Bar, Curve
from vlmft.report.markup import Markup, element
from vlmft.report.tables import metric_words, mood, pair_name
from vlmft.report.units import Unit, bounds, count, finite, p_value, significant


def arm_figure(arms: Sequence[Mapping[str, Any]], unit: Unit) -> Markup:
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
    metric = metric_words(str(arms[0]["metric"]))
    summary = f"{metric} of each arm: " + ", ".join(f"{lane.label} {lane.text}" for lane in lanes)
    methods = dict.fromkeys(str(arm["interval_method"]) for arm in arms if arm.get("interval_method"))
    told = f" ({', '.join(methods)})" if methods else ""
    caption = f"{metric}: dot with 95 % interval{told}."
    if unit.is_share:
        caption += " Dashed: the majority baseline, what always giving the most frequent reference would score."
    return captioned(interval_chart(lanes, (0.0, 1.0), unit.tick, summary), caption)


def forest_plot(comparisons: Sequence[Mapping[str, Any]], unit: Unit) -> Markup:
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
    reach = max([abs(value) for value in _extent(lanes)] or [0.0]) or 0.01
    summary = "Differences: " + ", ".join(f"{lane.label} {lane.text}" for lane in lanes)
    caption = (
        "Paired difference, second minus first, with its 95 % interval. Where the interval holds zero, "
        "these rows do not tell the arms apart."
    ) + (" Beside it: p by Holm, for all comparisons together." if any("p_holm" in p for p in comparisons[1:]) else "")
    return captioned(
        interval_chart(lanes, rounded_range([-reach, reach], steps=10), unit.difference_tick, summary, zero=True),
        caption,
    )


def curve_figures(curves: Sequence[Curve]) -> Markup:
    """One chart for each last name: "train/loss" and "val/loss" share theirs."""
    names = dict.fromkeys(curve.name.rsplit("/", 1)[-1] for curve in curves)
    charts = [
        _curve_figure(name, [curve for curve in curves if curve.name.rsplit("/", 1)[-1] == name]) for name in names
    ]
    return element("div", {"class": "charts"}, *charts) if charts else Markup()


def _curve_figure(name: str, curves: Sequence[Curve]) -> Markup:
    keys = [
        element(
            "li",
            {"class": f"series-{index % 6}"},
            element("span", {"class": "swatch"}),
            f"{curve.name}: {_ends(curve)}",
        )
        for index, curve in enumerate(curves)
    ]
    notes = [_curve_note(curve) for curve in curves]
    summary = f"{name} by step: " + "; ".join(f"{curve.name} {_ends(curve)}" for curve in curves)
    caption = " ".join(["By optimiser step.", *(note for note in notes if note)])
    chart = curve_chart(curves, summary)
    return element(
        "div",
        {"class": "chart"},
        element("h3", {}, name.replace("_", " ")),
        element("ul", {"class": "legend"}, *keys),
        captioned(chart, caption),
    )


def _ends(curve: Curve) -> str:
    points = finite_points(curve)
    return f"{significant(points[0][1])} \u2192 {significant(points[-1][1])}" if points else "no finite value"


def _curve_note(curve: Curve) -> str:
    points = finite_points(curve)
    lost = len(curve.values) - len(points)
    notes = [f"{curve.name}: {count(lost)} of {count(len(curve.values))} values were not finite."] if lost else []
    if is_jagged(points):
        notes.append(f"{curve.name}: faint as logged, bold a mean over {mean_window(len(points))} points.")
    return " ".join(notes)


def split_figure(sizes: Mapping[str, int]) -> Markup:
    """Rows in each split."""
    if not sizes:
        return Markup()
    bars = [Bar(name, size, count(size)) for name, size in sizes.items()]
    title = "Rows in each split"
    return captioned(bar_figure(title, bars), f"{title}, {count(sum(sizes.values()))} in all.")


def bar_figure(title: str, bars: Sequence[Bar]) -> Markup:
    return bar_chart(bars, f"{title}: " + ", ".join(f"{bar.label} {bar.text}" for bar in bars))


def _extent(lanes: Sequence[Lane]) -> list[float]:
    bounds_of = [bound for lane in lanes if lane.interval is not None for bound in lane.interval]
    return bounds_of + [lane.value for lane in lanes if lane.value is not None]


def captioned(chart: Markup, caption: str) -> Markup:
    return element("figure", {}, chart, element("figcaption", {}, caption))
