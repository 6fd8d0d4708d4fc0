"""near_duplicates.html: pictures of different splits that look alike, side by side; loads nothing, runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.config.files import write_whole
from vlmft.pages import whole_page
from vlmft.report.card import findings
from vlmft.report.gallery import data_address


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
    pairs = [
        {
            "pictures": list(zip(one.splits, one.names, map(data_address, one.jpegs, one.names), strict=True)),
            "note": "The hashes are equal" if one.distance == 0 else f"{one.distance} bits differ",
        }
        for one in twins
    ]
    values = {"sentence": findings(card)["Near-duplicates"], "note": note, "pairs": pairs}
    text = whole_page("near_duplicates.html", title, values, styles=("page.css", "near_duplicates.css"))
    write_whole(path, text.encode("utf-8", "replace"))
