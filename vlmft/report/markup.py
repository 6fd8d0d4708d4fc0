"""HTML in which nothing is forgotten to be escaped: a plain `str` is text, and only `Markup` is markup."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping


class Markup(str):
    """A string that is HTML already. Made by the functions of this module and from the files of this package alone."""

    __slots__ = ()


Attributes = Mapping[str, str | float]


def escaped(text: str) -> Markup:
    """`text` as HTML: unchanged where it is markup already."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def joined(pieces: Iterable[str]) -> Markup:
    """Pieces one after the other, each escaped unless it is markup."""
    return Markup("".join(escaped(piece) for piece in pieces))


def element(name: str, attributes: Attributes, *children: str) -> Markup:
    """<name attributes>children</name>. Numbers among the attributes are rounded to a hundredth."""
    pairs = "".join(f' {key}="{_attribute(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{pairs}>{joined(children)}</{name}>")


def script_json(value: object) -> Markup:
    """JSON that can stand inside a <script> element, whatever its strings hold.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _attribute(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else f"{round(value, 2):g}"
