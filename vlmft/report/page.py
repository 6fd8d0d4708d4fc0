"""Writes a `Report` as one HTML file that loads nothing: style, script, charts and pictures are inside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmft.config.files import write_whole
from vlmft.evaluation.numbers import DASH, Unit
from vlmft.pages import packaged, whole_page
from vlmft.report.charts import bar_lanes
from vlmft.report.content import Report
from vlmft.report.gallery import data_address, gallery
from vlmft.report.outline import blocks
from vlmft.report.tables import metric_words, mood, rows_and_groups, verdict_words


def write_report(report: Report, path: Path) -> None:
    """Writes the page, or leaves what was there: a temporary file in the same folder takes its place when complete.

    Equal reports make equal bytes.

    Raises:
        ValueError: when a thumbnail is no PNG, JPEG or WebP file.
    """
    text = page_text(report).encode("utf-8", "replace")  # a lone surrogate in a model's text must not cost the report
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def page_text(report: Report) -> str:
    """The whole page as text."""
    values = {
        "report": report,
        "badge": verdict_words(report),
        "mood": mood(report.comparisons[0]) if report.comparisons and not report.alarms else "plain",
        "figure": figure(report),
        "examples": examples(report),
        "blocks": blocks(report),
        "gallery": gallery(report),
        "bar_lanes": bar_lanes,
    }
    return whole_page("report.html", report.title, values, script=packaged("make.js") + packaged("report.js"))


def figure(report: Report) -> tuple[str, str] | None:
    """The one number that the report is about, and its interval in words; None without arms."""
    unit = Unit(is_share=not report.is_graded)
    if not report.arms:
        return None
    arm = report.arms[0]
    metric = metric_words(str(arm["metric"]))
    if report.comparisons:
        pair = report.comparisons[0]
        values = f"{unit.value(pair['first_value'])} \u2192 {unit.value(pair['second_value'])}"
        interval = unit.difference_interval(pair["interval"])
        return unit.difference(pair["difference"]), f"95\u00a0% interval {interval}; {metric} {values}, {_rows(pair)}"
    interval = unit.interval(arm["interval"])
    return unit.value(arm["value"]), f"95\u00a0% interval {interval}; {metric} of {arm['arm']}, {_rows(arm)}"


def _rows(counted: Mapping[str, Any]) -> str:
    return f"n = {rows_and_groups(counted)}".replace("\n", " rows, ")


EXAMPLES = {
    "fixed": "Fixed",
    "broken": "Broken",
    "both_wrong": "Still wrong",
    "right": "Right",
    "wrong": "Wrong",
}
"""Outcomes of which the first screen shows one row each."""


def examples(report: Report) -> list[dict[str, Any]]:
    """A row of each of `EXAMPLES` that this report has, the first one with pictures where there is one."""
    view, found = report.view, []
    if view is None:
        return []
    for outcome, words in EXAMPLES.items():
        rows = [row for row in report.rows if view.outcome(row) == outcome]
        if not rows:
            continue
        row = next((one for one in rows if one.thumbnails), rows[0])
        answers = [row.answer(arm) for arm in (view.first, view.second) if arm is not None]
        found.append(
            {
                "words": words,
                "row": row,
                "picture": data_address(row.thumbnails[0], row.id) if row.thumbnails else None,
                "reference": row.references[0] if row.references else DASH,
                "answers": [answer for answer in answers if answer is not None],
            }
        )
    return found
