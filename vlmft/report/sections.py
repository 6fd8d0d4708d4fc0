"""Sections that come into a report.html after it was written, and take their own place when they come again."""

from __future__ import annotations

import re
from pathlib import Path

from vlmft.config.files import write_whole
from vlmft.report.markup import Markup, element


def put_section(path: Path, name: str, heading: str, content: Markup) -> None:
    """Puts a section at the end of the page `path`, or in the place of the one of this name, and links to it.

    Raises:
        ValueError: the file is no report of ours.
    """
    text = path.read_text("utf-8")
    title = element("h2", {"id": f"{name}-heading"}, heading)
    section = element("section", {"id": name, "aria-labelledby": f"{name}-heading"}, title, content)
    text = _placed(text, f"section:{name}", section, "</main>", path)
    link = element("a", {"href": f"#{name}"}, heading)
    write_whole(path, _placed(text, f"link:{name}", link, "</nav>", path).encode())


def _placed(text: str, marker: str, markup: Markup, before: str, path: Path) -> str:
    """Texts of models and people are escaped in the page, so that neither a marker nor a tag can be theirs."""
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    old = re.search(f"{re.escape(start)}.*?{re.escape(end)}", text, re.DOTALL)
    if old is None and text.count(before) != 1:
        raise ValueError(f"Expected a report with one {before}, got {text.count(before)} in {path}; evaluate again")
    first, last = old.span() if old is not None else (text.index(before), text.index(before))
    return f"{text[:first]}{start}{markup}{end}{text[last:]}"
