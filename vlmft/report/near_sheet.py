"""near_duplicates.html: pictures of different splits that look alike, side by side; loads nothing, runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.config.files import write_whole
from vlmft.report.card import findings
from vlmft.report.markup import Markup, element, joined
from vlmft.report.page import packaged

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
.twins { display: grid; grid-template-columns: 1fr 1fr; gap: 0.4rem 1rem; align-items: end; padding: 0.8rem;
  border: 1px solid var(--line); border-radius: 6px; break-inside: avoid; }
.twins img { display: block; width: 100%; max-height: 15rem; object-fit: contain; background: var(--faint); }
.twins figcaption { overflow-wrap: anywhere; }
.twins .note { grid-column: 1 / -1; margin: 0; }
"""


@dataclass(frozen=True)
class Twins:
    """Two pictures that look alike, of two splits."""

    splits: tuple[str, str]
    names: tuple[str, str]
    jpegs: tuple[bytes, bytes]
    distance: int
    """Bits that differ."""


def write_near_sheet(card: Mapping[str, Any], twins: Sequence[Twins], path: Path) -> None:
    """Writes the sheet, whole or not at all; `card` is the content of data_card.json."""
    title = f"Near-duplicates in {card['data']}"
    found = card["near_duplicates"]
    note = (
        f"The nearest pairs, {len(twins)} of them shown. They differ in at most {found['distance']} of the 256 bits of "
        "a perceptual hash that sees shapes in grey and no colour; whether they are the same picture is yours to say. "
        "Their splits stay as they are, but where splits are taken from train, data.group_near_duplicates=true keeps "
        "near-duplicates in one of them."
    )
    head = [
        element("title", {}, title),
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><meta name="color-scheme" '),
        Markup('content="light dark"><link rel="icon" href="data:,">'),
        element("style", {}, Markup(packaged("page.css") + STYLE)),
    ]
    body = [
        element("h1", {}, title),
        element("p", {"class": "sentence"}, findings(card)["Near-duplicates"]),
        element("p", {}, note),
        element("div", {"class": "rows"}, *(_pair(one) for one in twins)),
    ]
    page = element("html", {"lang": "en"}, element("head", {}, *head), element("body", {}, element("main", {}, *body)))
    write_whole(path, f"<!doctype html>\n{page}\n".encode("utf-8", "replace"))


def _pair(twins: Twins) -> Markup:
    pictures = [
        element(
            "figure",
            {},
            element("img", {"src": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", "alt": name}),
            element("figcaption", {}, element("strong", {}, split), f" {name}"),
        )
        for split, name, jpeg in zip(twins.splits, twins.names, twins.jpegs, strict=True)
    ]
    told = "The hashes are equal" if twins.distance == 0 else f"{twins.distance} bits differ"
    return element("div", {"class": "twins"}, joined(pictures), element("p", {"class": "note"}, told))
