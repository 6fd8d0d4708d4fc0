"""The page on which a person accepts, edits or rejects drafted captions. Each decision is on disk before the next."""

from __future__ import annotations

from typing import Any

from vlmft.labels.annotate import Drafts, asked
from vlmft.pages import packaged
from vlmft.pages.local_page import Page, html_page, picture_bytes, serve


def review(drafts: Drafts, port: int, open_browser: bool) -> None:
    """Serves the page until it is done; the captions are not in the dataset yet."""
    if drafts.of("draft"):
        serve(review_page(drafts), port, open_browser)


def review_page(drafts: Drafts) -> Page:
    """The drafts that wait for a decision, in the order of the dataset."""
    names = drafts.of("draft")
    drafted = {name: drafts.rows[name]["text"] for name in names}

    def items(value: Any) -> list[dict[str, Any]]:
        return [_item(drafts, number, name) for number, name in enumerate(names)]

    def decide(value: Any) -> None:
        name, status, text = names[value["item"]], value["status"], value["text"].strip()
        if status not in ("accepted", "rejected"):
            raise ValueError(f"Expected accepted or rejected, got {status!r}")
        if status == "accepted" and not text:
            raise ValueError("a caption needs a text; write one, or reject the draft")
        drafts.decide(name, status, text, "a person" if text == drafted[name] else "a person, who edited it")

    def image(name: str) -> bytes:
        (picture,) = drafts.missing[names[int(name)]].prompt.images
        return picture_bytes(picture.load())

    html = html_page("Captions to review", packaged("review.html"), packaged("review.js"), ["review.css"])
    return Page(html, {"items": items, "decide": decide}, image)


def _item(drafts: Drafts, number: int, name: str) -> dict[str, Any]:
    row = drafts.rows[name]
    status = row["status"] if row["status"] != "draft" else None
    by = f"{row['annotator']}, {row['model']}"
    return {
        "image": str(number),
        "name": name,
        "asked": asked(drafts.missing[name]),
        "text": row["text"],
        "by": by,
        "status": status,
    }
