"""Writes a `Report` as one HTML file that loads nothing: style, script, charts and pictures are inside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from vlmft.config.files import write_whole
from vlmft.evaluation.report import figures, tables
from vlmft.evaluation.report.content import Report
from vlmft.evaluation.report.gallery import gallery
from vlmft.evaluation.report.markup import Markup, element, escaped, joined
from vlmft.evaluation.report.units import Unit, count


@dataclass(frozen=True)
class Section:
    """One part of the page, reached by its anchor."""

    anchor: str
    heading: str
    content: Markup


def write_report(report: Report, path: Path) -> None:
    """Writes the page, or leaves what was there: a temporary file in the same folder takes its place when complete.

    Equal reports make equal bytes.

    Raises:
        ValueError: when a thumbnail is no PNG, JPEG or WebP file.
    """
    page = page_text(report).encode("utf-8", "replace")  # a lone surrogate in a model's text must not cost the report
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def page_text(report: Report) -> str:
    """The whole page as text."""
    style, script = packaged("page.css"), packaged("page.js")
    rows = gallery(report)
    sections = [section for section in _sections(report, rows.notes) if section.content]
    links = (element("a", {"href": f"#{section.anchor}"}, section.heading) for section in sections)
    return Template(packaged("page.html")).substitute(
        policy=_policy(style, script),
        style=style,
        script=script,
        title=escaped(report.title),
        badge=_badge(report),
        sentence=element("p", {"class": f"sentence {_mood(report)}", "id": "result"}, report.sentence),
        warnings=_warnings(report.warnings),
        links=joined(links),
        sections=joined(section_markup(section) for section in sections),
        rows=rows.data,
    )


def _sections(report: Report, gallery_notes: Sequence[str]) -> list[Section]:
    unit = Unit(is_share=not report.is_graded)
    comparisons = [tables.comparison_table(report.comparisons, unit), figures.forest_plot(report.comparisons, unit)]
    return [
        Section("arms", "Arms", _arms(report.arms, unit)),
        Section("comparison", "Paired comparison", joined(comparisons if report.comparisons else [])),
        Section("gallery", "Gallery", _gallery_frame(gallery_notes) if report.rows and report.views else Markup()),
        Section("curves", "Training", figures.curve_figures(report.curves)),
        Section("data", "Data", figures.split_figure(report.split_sizes)),
        Section("checks", "Checks", tables.definitions(report.checks)),
        Section("settings", "Settings", tables.tree(report.settings)),
        Section("origin", "Origin", _origin(report)),
    ]


def section_markup(section: Section) -> Markup:
    heading = f"{section.anchor}-heading"
    return element(
        "section",
        {"id": section.anchor, "aria-labelledby": heading},
        element("h2", {"id": heading}, section.heading),
        section.content,
    )


def _arms(arms: Sequence[Mapping[str, Any]], unit: Unit) -> Markup:
    """A table and a chart for each metric."""
    by_metric: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        by_metric.setdefault(str(arm["metric"]), []).append(arm)
    return joined(
        part for some in by_metric.values() for part in (tables.arm_table(some, unit), figures.arm_figure(some, unit))
    )


def _mood(report: Report) -> str:
    return tables.mood(report.comparisons[0]) if report.comparisons else "plain"


def _badge(report: Report) -> Markup:
    if not report.comparisons:
        text = "One arm, nothing to compare" if len(report.arms) == 1 else "No comparison"
        return element("p", {"class": "badge plain"}, text)
    first = report.comparisons[0]
    pair = element("span", {"class": "pair"}, f"{first['second']} against {first['first']}")
    return element("p", {"class": f"badge {_mood(report)}"}, tables.verdict(first), " ", pair)


def _warnings(warnings: Sequence[str]) -> Markup:
    if not warnings:
        return Markup()
    heading = "1 warning" if len(warnings) == 1 else f"{count(len(warnings))} warnings"
    return element(
        "section",
        {"class": "warnings", "aria-labelledby": "warnings-heading"},
        element("h2", {"id": "warnings-heading"}, heading),
        element("ul", {}, *(element("li", {}, warning) for warning in warnings)),
    )


def _gallery_frame(notes: Sequence[str]) -> Markup:
    """What page.js fills with rows."""
    return joined(
        [
            element("div", {"id": "gallery-app"}),
            element("noscript", {}, element("p", {}, "The rows need JavaScript, which is inside this file.")),
            *(element("p", {"class": "note"}, note) for note in notes),
        ]
    )


def _origin(report: Report) -> Markup:
    command = element("pre", {"tabindex": "0", "aria-label": "Command"}, element("code", {}, report.command))
    return joined(
        [
            joined([element("h3", {}, "Command"), command] if report.command else []),
            joined([element("h3", {}, "Versions"), tables.definitions(report.versions)] if report.versions else []),
        ]
    )


def _policy(style: str, script: str) -> str:
    """Content-Security-Policy: nothing is loaded, and of scripts only this very one runs."""
    return (
        f"default-src 'none'; img-src data:; style-src {source_hash(style)}; script-src {source_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def packaged(name: str) -> str:
    return resources.files("vlmft.evaluation.report").joinpath(name).read_text("utf-8")
