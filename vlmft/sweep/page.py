"""sweep.html: the jobs of a sweep ranked on validation, in the looks of the report; loads nothing, runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vlmft.config.files import write_whole
from vlmft.evaluation.numbers import DASH, Unit, count, finite, number, share, significant
from vlmft.pages import whole_page
from vlmft.report.charts import Lane, Lanes, Scale, bar_lanes, rounded_range
from vlmft.report.content import Grid, Section
from vlmft.report.outline import Block
from vlmft.report.tables import metric_words, rows_and_groups

MAX_LANES = 30
MAX_MARKS = 8
"""Values of a setting that get a place of their own on its axis; more are placed by size."""
IMPORTANCE = (
    "Eta squared: the share of the variance between finished jobs that lies between the groups of one setting's "
    "values. Squared rank correlation (Spearman): the same for numbers that hardly repeat, where the effect is "
    "monotonic. By chance alone: what a setting without effect is expected to reach. Neither measures what two "
    "settings do only together, and jobs that Optuna chose are no random sample."
)


def write_sweep_page(sweep: Mapping[str, Any], path: Path) -> None:
    """Writes the page of a sweep.json, whole or not at all."""
    write_whole(path, sweep_page(sweep).encode("utf-8", "replace"))


def sweep_page(sweep: Mapping[str, Any]) -> str:
    """The whole page as text; `sweep` is the content of sweep.json."""
    jobs, unit = sweep["jobs"], Unit(is_share=any(job["interval"] for job in sweep["jobs"]))
    ranked = [job for job in jobs if job["rank"] is not None]
    parameters = list(dict.fromkeys(key for job in jobs for key in job["values"]))
    blocks = [_ranking(jobs, ranked, parameters, unit)]
    if len(ranked) > 1 and parameters:
        chart = Parallel.of(ranked, parameters, unit)
        blocks.append(Block("parallel", Section("Settings and outcome"), (chart,)))  # type: ignore[arg-type]
    if sweep["importance"]:
        blocks.append(Block("importance", _importance(sweep["importance"])))
    codes = {"The winner on the test split": sweep["evaluate"], "Command": sweep["command"]}
    blocks += [Block(f"code-{i}", Section(title, code=code)) for i, (title, code) in enumerate(codes.items()) if code]
    values = {"sweep": sweep, "blocks": blocks, "bar_lanes": bar_lanes}
    return whole_page("sweep.html", sweep["title"], values, styles=("page.css", "sweep.css"))


def _ranking(
    jobs: Sequence[Mapping[str, Any]], ranked: Sequence[Mapping[str, Any]], parameters: Sequence[str], unit: Unit
) -> Block:
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
    table = Grid(heads, lines, (0, *range(1, k + 1), k + 4, k + 5, k + 7), bold_columns=(k + 1,))
    failures = {f"{_settings(job) or job['number']}": job["message"] for job in jobs if job["message"]}
    parts = (Section("Failures", definitions=failures),) if failures else ()
    charts = (_lanes(ranked, unit),) if ranked and unit.is_share else ()
    return Block("ranking", Section("Ranking on validation", table=table, parts=parts), charts)


def _metric(jobs: Sequence[Mapping[str, Any]]) -> str:
    return next((metric_words(job["metric"].rpartition("/")[2]) for job in jobs if job["metric"]), "Validation")


def _lanes(ranked: Sequence[Mapping[str, Any]], unit: Unit) -> Lanes:
    """Where the metric is a share: each job with its interval, on the whole range from 0 to 1."""
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
        "dashed: the best job. Intervals that overlap the best one's do not distinguish the jobs; the rows are the "
        "same, but their predictions are not stored, so there is no paired test. The best of several jobs looks "
        "better than it is: its figure to quote is that of the test split."
    )
    if len(ranked) > MAX_LANES:
        caption += f" The {MAX_LANES} best of {len(ranked)} jobs."
    return Lanes(lanes, Scale(0.0, 1.0), caption, unit.tick)


def _settings(job: Mapping[str, Any]) -> str:
    """Short: the last names of the settings."""
    return " ".join(f"{key.rpartition('.')[2]}={_written(value)}" for key, value in job["values"].items())


def _written(text: str) -> str:
    """A value as people write it: a drawn number with four digits."""
    value = as_number(text)
    return text if value is None or len(text) <= 7 else significant(value)


def as_number(text: str) -> float | None:
    """The finite number that a setting's value is, None where it is none."""
    try:
        return finite(float(text))
    except ValueError:
        return None


class Axis:
    """Where a setting's values, or the metric's, lie between 0 and 1."""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self.name = name
        distinct = list(dict.fromkeys(labels))
        numbers = {label: as_number(label) for label in distinct}
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
        scale = Scale(min(scaled.values()), max(scaled.values()))
        self.place = {label: scale(value) / 100 for label, value in scaled.items()}
        self.marks = [(self.place[label], _written(label)) for label in (distinct[0], distinct[-1])]
        self.name += " (log)" if is_log else ""


@dataclass(frozen=True)
class Parallel:
    """A line for each job through its settings to its outcome."""

    kind: ClassVar[str] = "parallel"
    axes: Sequence[tuple[float, Axis]]
    """Each with its place from left to right, 0..100."""
    lines: Sequence[tuple[str, str, str]]
    """Class, name and points of each job's line, the best one last."""
    title: str = ""
    legend: Sequence[str] = ()
    caption: str = (
        "Each line is a finished job. Thick: the best. Blue: not distinguishable from it. Grey: the others. "
        "Only settings that vary have an axis."
    )

    @classmethod
    def of(cls, ranked: Sequence[Mapping[str, Any]], parameters: Sequence[str], unit: Unit) -> Parallel:
        axes = [Axis(key, [job["values"].get(key, "") for job in ranked]) for key in parameters]
        axes.append(_metric_axis("validation", [job["value"] for job in ranked], unit))
        placed = [(round(100 * index / (len(axes) - 1), 2), axis) for index, axis in enumerate(axes)]
        lines = []
        for job in reversed(ranked):
            labels = [*(job["values"].get(key, "") for key in parameters), repr(job["value"])]
            points = (f"{x:g},{100 - 100 * axis.place[at]:.2f}" for (x, axis), at in zip(placed, labels, strict=True))
            kind = {"best": "best", "not distinguishable": "alike"}.get(job["standing"], "rest")
            lines.append((kind, f"{job['rank']}. {_settings(job)}", " ".join(points)))
        return cls(placed, lines)


def _metric_axis(name: str, values: Sequence[float], unit: Unit) -> Axis:
    axis = Axis(name, [])
    scale = Scale(*rounded_range(values))
    axis.place = {repr(value): scale(value) / 100 for value in values}
    axis.marks = [(scale(value) / 100, unit.tick(value)) for value in scale.ticks(5)]
    return axis


def _importance(items: Sequence[Mapping[str, Any]]) -> Section:
    heads = ("Setting", "Measure", "Share of the variance", "By chance alone", "Jobs", "Values")
    lines = tuple(
        (i["parameter"], i["measure"], share(i["share"]), share(i["chance"]), count(i["n"]), count(i["levels"]))
        for i in items
    )
    return Section("Importance", table=Grid(heads, lines, text_columns=(0, 1)), notes=(IMPORTANCE,))
