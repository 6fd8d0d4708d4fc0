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
from vlmft.report import figures, tables
from vlmft.report.card import card_section
from vlmft.report.content import Report, Section
from vlmft.report.gallery import gallery
from vlmft.report.markup import Markup, element, escaped, joined
from vlmft.report.units import Unit, count


@dataclass(frozen=True)
class Block:
    """What stands under one heading of the page, reached by its anchor."""

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
    script, rows = packaged("page.js"), gallery(report)
    header = [_badge(report), sentence(report.sentence, _mood(report)), _warnings(report.warnings)]
    scripts = [
        element("script", {"type": "application/json", "id": "rows"}, rows.data),
        element("script", {}, Markup(script)),
    ]
    blocks = _blocks(report, rows.notes)
    return whole_page(report.title, header, blocks, packaged("page.css"), scripts, f"; script-src {_hash(script)}")


def whole_page(
    title: str,
    header: Sequence[Markup],
    blocks: Sequence[Block],
    style: str,
    scripts: Sequence[Markup] = (),
    script_policy: str = "",
) -> str:
    """A page of those blocks that hold something. Its policy loads nothing, and of scripts runs only the allowed."""
    shown = [block for block in blocks if block.content]
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}{script_policy}"
    return Template(packaged("page.html")).substitute(
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
        style=style,
        title=escaped(title),
        header=joined(header),
        links=joined(element("a", {"href": f"#{block.anchor}"}, block.heading) for block in shown),
        blocks=joined(_block(block) for block in shown),
        scripts=joined(scripts),
    )


def sentence(text: str, mood: str = "plain") -> Markup:
    """The sentence that can be quoted."""
    return element("p", {"class": f"sentence {mood}", "id": "result"}, text)


def _blocks(report: Report, gallery_notes: Sequence[str]) -> list[Block]:
    unit = Unit(is_share=not report.is_graded)
    added = (
        Block(f"section-{index}", section.title, _section(section))
        for index, section in enumerate(report.sections, start=1)
    )
    return [
        Block("arms", "Arms", _arms(report.arms, unit)),
        Block("comparison", "Paired comparison", _comparisons(report.comparisons, unit)),
        *added,
        Block("gallery", "Gallery", _gallery_frame(gallery_notes) if report.rows and report.view else Markup()),
        Block("curves", "Training", figures.curve_figures(report.curves)),
        Block("data", "Data", card_section(report.card) if report.card else figures.split_figure(report.split_sizes)),
        Block("checks", "Checks", tables.definitions(report.checks)),
        Block("settings", "Settings", tables.tree(report.settings)),
        Block("origin", "Origin", _origin(report)),
    ]


def _block(block: Block) -> Markup:
    heading = f"{block.anchor}-heading"
    return element(
        "section",
        {"id": block.anchor, "aria-labelledby": heading},
        element("h2", {"id": heading}, block.heading),
        block.content,
    )


def _section(section: Section) -> Markup:
    """Sentences, table, bars, then the parts, each under a heading of the third rank."""
    pieces = [element("p", {"class": "said"}, text) for text in section.sentences]
    if section.table is not None:
        pieces.append(tables.data_table(section.title, section.table))
    if section.bars:
        pieces.append(element("figure", {}, figures.bar_figure(section.title, section.bars)))
    return joined([*pieces, *(_part(part) for part in section.parts)])


def _part(part: Section) -> Markup:
    if part.is_folded:
        return element("details", {"class": "part"}, element("summary", {}, part.title), _section(part))
    return element("div", {"class": "part"}, element("h3", {}, part.title), _section(part))


def _arms(arms: Sequence[Mapping[str, Any]], unit: Unit) -> Markup:
    """A table and a chart for each metric."""
    pieces = []
    for some in tables.by_metric(arms):
        name = f"Arms by {tables.metric_words(str(some[0]['metric']))}"
        pieces += [tables.data_table(name, tables.arm_table(some, unit)), figures.arm_figure(some, unit)]
    return joined(pieces)


def _comparisons(comparisons: Sequence[Mapping[str, Any]], unit: Unit) -> Markup:
    if not comparisons:
        return Markup()
    table = tables.data_table("Paired comparison", tables.comparison_table(comparisons, unit))
    note = tables.comparison_note(comparisons)
    said = [element("p", {"class": "note"}, note)] if note else []
    return joined([table, *said, figures.forest_plot(comparisons, unit)])


def _mood(report: Report) -> str:
    return tables.mood(report.comparisons[0]) if report.comparisons and not report.alarms else "plain"


def _badge(report: Report) -> Markup:
    if not report.comparisons:
        text = "One arm, nothing to compare" if len(report.arms) == 1 else "No comparison"
        return element("p", {"class": "badge plain"}, text)
    first = report.comparisons[0]
    but = tables.BUT if report.alarms else ""
    pair = element("span", {"class": "pair"}, f"{first['second']} against {first['first']}{but}")
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
    shown = {"Fingerprints": report.fingerprints, "Versions": report.versions}
    lists = ([element("h3", {}, name), tables.definitions(values)] for name, values in shown.items() if values)
    return joined([code("Command", report.command), *(piece for pieces in lists for piece in pieces)])


def code(heading: str, text: str) -> Markup:
    """Text to be typed, under a heading of the third rank; nothing where there is none."""
    block = element("pre", {"tabindex": "0", "aria-label": heading}, element("code", {}, text))
    return joined([element("h3", {}, heading), block]) if text else Markup()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def packaged(name: str) -> str:
    return resources.files("vlmft.report").joinpath(name).read_text("utf-8")
