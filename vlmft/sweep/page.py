"""sweep.html: the jobs of a sweep ranked on validation, in the looks of the report; loads nothing, runs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmft.config.files import write_whole
from vlmft.report.charts import NARROW, Lane, Scale, both_widths, interval_chart, rounded_range
from vlmft.report.content import Grid
from vlmft.report.figures import captioned
from vlmft.report.markup import Attributes, Markup, element, joined
from vlmft.report.page import Block, code, packaged, sentence, whole_page
from vlmft.report.tables import data_table, definitions, metric_words, rows_and_groups
from vlmft.report.units import DASH, Unit, count, finite, number, share, significant

MAX_LANES = 30
MAX_MARKS = 8
"""Values of a setting that get a place of their own on its axis; more are placed by size."""


def write_sweep_page(sweep: Mapping[str, Any], path: Path) -> None:
    """Writes the page of a sweep.json, whole or not at all."""
    write_whole(path, sweep_page(sweep).encode("utf-8", "replace"))


def sweep_page(sweep: Mapping[str, Any]) -> str:
    """The whole page as text; `sweep` is the content of sweep.json."""
    jobs, unit = sweep["jobs"], Unit(is_share=any(job["interval"] for job in sweep["jobs"]))
    ranked = [job for job in jobs if job["rank"] is not None]
    parameters = list(dict.fromkeys(key for job in jobs for key in job["values"]))
    blocks = [
        Block("ranking", "Ranking on validation", joined([_ranking(jobs, parameters, unit), _lanes(ranked, unit)])),
        Block("parallel", "Settings and outcome", parallel_coordinates(ranked, parameters, unit)),
        Block("importance", "Importance", _importance(sweep["importance"])),
        Block("origin", "Origin", _origin(sweep)),
    ]
    warnings = [element("p", {"class": "warnings"}, " ".join(sweep["warnings"]))] if sweep["warnings"] else []
    style = packaged("page.css") + packaged("sweep.css")
    return whole_page(sweep["title"], [sentence(sweep["sentence"]), *warnings], blocks, style)


def _ranking(jobs: Sequence[Mapping[str, Any]], parameters: Sequence[str], unit: Unit) -> Markup:
    heads = ["Rank", *parameters, _metric(jobs), "95\u00a0% interval", "n", "Against the best"]
    heads += ["State", "Seconds", "Run"]
    lines = tuple(
        (
            str(job["rank"] or DASH),
            *(_written(job["values"].get(key, "")) for key in parameters),
            unit.value(job["value"]),
            unit.interval(job["interval"]),
            rows_and_groups(job),
            job["standing"] or DASH,
            job["state"],
            number(job["seconds"], 0),
            Path(job["folder"] or DASH).name,
        )
        for job in jobs
    )
    k = len(parameters)
    failures = {f"{_settings(job) or job['number']}": job["message"] for job in jobs if job["message"]}
    told = [element("h3", {}, "Failures"), definitions(failures)] if failures else []
    texts = (0, *range(1, k + 1), k + 4, k + 5, k + 7)
    return joined([data_table(_metric(jobs), Grid(heads, lines, texts, bold_columns=(k + 1,))), *told])


def _metric(jobs: Sequence[Mapping[str, Any]]) -> str:
    return next((metric_words(job["metric"].rpartition("/")[2]) for job in jobs if job["metric"]), "Validation")


def _lanes(ranked: Sequence[Mapping[str, Any]], unit: Unit) -> Markup:
    """Where the metric is a share: each job with its interval, on the whole range from 0 to 1."""
    if not ranked or not unit.is_share:
        return Markup()
    lanes = [
        Lane(
            label=f"{job['rank']}. {_settings(job)}",
            text=unit.value(job["value"]),
            value=finite(job["value"]),
            interval=job["interval"],
            baseline=ranked[0]["value"],
            mood="bad" if job["standing"] == "below" else "plain",
        )
        for job in ranked[:MAX_LANES]
    ]
    caption = (
        f"{_metric(ranked)} on the validation rows, of each job's best checkpoint with its 95\u00a0% Wilson interval; "
        "dashed: the best job. Intervals that overlap the best one's do not tell the jobs apart; the rows are the "
        "same, but their predictions are not stored, so there is no paired test. The best of several jobs looks "
        "better than it is: "
        "its figure to quote is that of the test split."
    )
    if len(ranked) > MAX_LANES:
        caption += f" The {MAX_LANES} best of {len(ranked)} jobs."
    return captioned(interval_chart(lanes, (0.0, 1.0), unit.tick, "Validation by job: " + _spoken(lanes)), caption)


def _spoken(lanes: Sequence[Lane]) -> str:
    return ", ".join(f"{lane.label} {lane.text}" for lane in lanes)


def _settings(job: Mapping[str, Any]) -> str:
    """Short: the last names of the settings."""
    return " ".join(f"{key.rpartition('.')[2]}={_written(value)}" for key, value in job["values"].items())


def _written(text: str) -> str:
    """A value as people write it: a drawn number with four digits."""
    try:
        value = float(text)
    except ValueError:
        return text
    return significant(value) if len(text) > 7 and math.isfinite(value) else text


class Axis:
    """Where a setting's values, or the metric's, lie between 0 and 1."""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self.key = self.name = name
        distinct = list(dict.fromkeys(labels))
        numbers = {label: _finite(label) for label in distinct}
        known = [value for value in numbers.values() if value is not None]
        if len(known) == len(distinct):
            distinct.sort(key=lambda label: numbers[label] or 0.0)
        if len(distinct) <= MAX_MARKS or len(known) < len(distinct):
            places = [(index + 1) / (len(distinct) + 1) for index in range(len(distinct))]
            self.place = dict(zip(distinct, places, strict=True))
            step = max(1, math.ceil(len(distinct) / MAX_MARKS))
            self.marks = [(self.place[label], _written(label)) for label in distinct[::step]]
            return
        is_log = known[0] is not None and min(known) > 0 and max(known) / min(known) >= 20
        scaled = {label: math.log(value) if is_log else value for label, value in numbers.items() if value is not None}
        scale = Scale(min(scaled.values()), max(scaled.values()), 0.0, 1.0)
        self.place = {label: scale(value) for label, value in scaled.items()}
        self.marks = [(self.place[label], _written(label)) for label in (distinct[0], distinct[-1])]
        self.name += " (log)" if is_log else ""


def _finite(text: str) -> float | None:
    try:
        return finite(float(text))
    except ValueError:
        return None


def _metric_axis(name: str, values: Sequence[float], unit: Unit) -> Axis:
    axis = Axis(name, [])
    low, high = rounded_range(values)
    scale = Scale(low, high, 0.0, 1.0)
    axis.place = {repr(value): scale(value) for value in values}
    axis.marks = [(scale(value), unit.tick(value)) for value in scale.ticks(5)]
    return axis


def parallel_coordinates(ranked: Sequence[Mapping[str, Any]], parameters: Sequence[str], unit: Unit) -> Markup:
    """A line for each job through its settings to its outcome; axes stand side by side, on narrow pages stacked."""
    if len(ranked) < 2 or not parameters:
        return Markup()
    axes = [Axis(key, [job["values"].get(key, "") for job in ranked]) for key in parameters]
    axes.append(_metric_axis("validation", [job["value"] for job in ranked], unit))

    def draw(width: float) -> Markup:
        wide = width > NARROW
        gap, length = ((width - 160) / (len(axes) - 1), 250.0) if wide else (78.0, width - 50)
        height = 300.0 if wide else 40 + gap * (len(axes) - 1) + 30

        def at(index: int, place: float) -> tuple[float, float]:
            if wide:
                return 80 + gap * index, 35 + length * (1 - place)
            return 25 + length * place, 30 + gap * index

        paths = [_path(job, axes, at) for job in reversed(ranked)]
        drawn = [piece for index, axis in enumerate(axes) for piece in _axis(axis, index, at, wide)]
        frame: Attributes = {
            "viewBox": f"0 0 {width:g} {height:g}",
            "role": "img",
            "aria-label": "Settings of each job",
        }
        return element("svg", frame, *paths, *drawn)

    caption = (
        "Each line is a finished job. Thick: the best. Blue: not distinguishable from it. Grey: the others. "
        "Only settings that vary have an axis."
    )
    return captioned(both_widths(draw, 1000.0), caption)


Place = Callable[[int, float], tuple[float, float]]


def _path(job: Mapping[str, Any], axes: Sequence[Axis], at: Place) -> Markup:
    labels = [*(job["values"].get(axis.key, "") for axis in axes[:-1]), repr(job["value"])]
    points = [at(index, axis.place[label]) for index, (axis, label) in enumerate(zip(axes, labels, strict=True))]
    kind = {"best": "best", "not distinguishable": "alike"}.get(job["standing"], "rest")
    line: Attributes = {"points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points), "class": f"path {kind}"}
    return element("polyline", line, element("title", {}, f"{job['rank']}. {_settings(job)}"))


def _axis(axis: Axis, index: int, at: Place, wide: bool) -> list[Markup]:
    (x1, y1), (x2, y2) = at(index, 0.0), at(index, 1.0)
    name: Attributes = {"x": x2 if wide else 0, "y": (y2 if wide else y1) - 14, "class": "lane-label halo"}
    pieces = [
        element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": "axis"}),
        element("text", {**name, "text-anchor": "middle" if wide else "start"}, axis.name),
    ]
    for place, mark in axis.marks:
        x, y = at(index, place)
        spot: Attributes = {"x": x - 6 if wide else x, "y": y + (4 if wide else 16), "class": "tick halo"}
        pieces.append(element("text", {**spot, "text-anchor": "end" if wide else "middle"}, mark))
    return pieces


def _importance(items: Sequence[Mapping[str, Any]]) -> Markup:
    if not items:
        return Markup()
    heads = ("Setting", "Measure", "Share of the variance", "By chance alone", "Jobs", "Values")
    lines = tuple(
        (i["parameter"], i["measure"], share(i["share"]), share(i["chance"]), count(i["n"]), count(i["levels"]))
        for i in items
    )
    note = (
        "Eta squared: the share of the variance between finished jobs that lies between the groups of one setting's "
        "values. Squared rank correlation (Spearman): the same for numbers that hardly repeat, where the effect is "
        "monotonic. By chance alone: what a setting without effect is expected to reach. Neither sees what two "
        "settings do only together, and jobs that Optuna chose are no random sample."
    )
    table = Grid(heads, lines, text_columns=(0, 1))
    return joined([data_table("Importance", table), element("p", {"class": "note"}, note)])


def _origin(sweep: Mapping[str, Any]) -> Markup:
    winner = code("The winner on the test split", sweep["evaluate"] or "")
    return joined([winner, code("Command", sweep["command"] or "")])
