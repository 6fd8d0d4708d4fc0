"""Writes a `Report` as GitHub-flavoured Markdown: what can be pasted into an issue, without rows and pictures."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path

from vlmft.config.files import write_whole
from vlmft.report.content import Grid, Report, Section
from vlmft.report.outline import blocks
from vlmft.report.tables import verdict_words

_MENTION = re.compile(r"(?<!\w)@(?=\w)")
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>|#~!&$]")


def write_markdown(report: Report, path: Path) -> None:
    """Writes the file whole, or leaves what was there. Equal reports make equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, markdown_text(report).encode("utf-8", "replace"))


def markdown_text(report: Report) -> str:
    """The whole file as text."""
    pieces = [f"# {_plain(report.title)}", _plain(_verdict(report)), f"> {_plain(report.sentence)}", *_warnings(report)]
    pieces += [_list(report.run)]
    for block in blocks(report):
        pieces += _section(block.section, 2) if not block.page_only else []
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def _verdict(report: Report) -> str:
    return ": ".join(verdict_words(report)) if report.comparisons else ""


def _warnings(report: Report) -> list[str]:
    lines = [f"> - {_plain(warning)}" for warning in report.warnings]
    return ["\n".join(["> [!WARNING]", *lines])] if lines else []


def _section(section: Section, rank: int) -> list[str]:
    inner = [_plain(text) for text in section.sentences]
    if section.table is not None:
        inner.append(_table(section.table))
    if section.bars:
        inner.append(_table(Grid(("", "Value"), tuple((bar.label, bar.text) for bar in section.bars))))
    inner += [_plain(note) for note in section.notes]
    for part in section.parts:
        inner += _section(part, rank + 1)
    inner += [_list(section.definitions), _code(section.code) if section.code else ""]
    if section.is_folded and rank > 2:
        return [f"<details><summary>{html.escape(section.title)}</summary>", *inner, "</details>"]
    return [f"{'#' * rank} {_plain(section.title)}", *inner]


def _table(grid: Grid) -> str:
    rules = ["---" if column in grid.text_columns else "--:" for column in range(len(grid.heads))]
    lines = [[_cell(cell, i in grid.bold_columns) for i, cell in enumerate(line)] for line in grid.lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [[_plain(head) for head in grid.heads], rules, *lines])


def _cell(text: str, is_bold: bool) -> str:
    first, *small = (_plain(line) for line in text.split("\n"))
    return "<br>".join([f"**{first}**" if is_bold and first else first, *(f"<sub>{line}</sub>" for line in small)])


def _list(values: Mapping[str, str]) -> str:
    return "\n".join(f"- {_plain(name)}: {_plain(str(value))}" for name, value in values.items())


def _code(text: str) -> str:
    """Inside a fence that is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}\n{text}\n{fence}"


def _plain(text: str) -> str:
    """Text that stays text: nothing in it is markup, a line break, or somebody's name to be notified."""
    return _MENTION.sub("@\u2060", _SPECIAL.sub(r"\\\g<0>", " ".join(text.split())))
