"""The text of a file in any encoding; a guessed code page is reported."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from vlmft.config.check import ConfigError

MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CODE_PAGES = "cp1252 cp1251 gb18030 cp932 euc_kr big5 cp866 koi8_r cp1253 cp1256".split()
"""Code pages of office programs, distinguished by their letters."""
LOOKED_AT_BYTES = 1 << 16
"""Beginning of a file in which UTF-16 without a mark is detected."""


@dataclass(frozen=True)
class Text:
    text: str
    encoding: str
    """In words: "UTF-8", "UTF-16", "cp1251 (guessed)"."""


def read_text(file: Path, encoding: str | None = None) -> Text:
    """The whole text of a file, under `encoding` or as `decoded` detects it.

    Raises:
        ConfigError: it cannot be read, or is not text in that encoding.
    """
    try:
        return decoded(file.read_bytes(), encoding)
    except OSError as error:
        raise ConfigError(f"{file}: Expected a file that can be read, got {error.strerror}; check the path") from error
    except (UnicodeDecodeError, LookupError) as error:
        how = f"text in {encoding}" if encoding else "text in UTF-8, UTF-16 or a known code page"
        remedy = "save it as UTF-8, or name its encoding (data.options.encoding=cp1250)"
        raise ConfigError(f"{file}: Expected {how}, got {error}; {remedy}") from error


def decoded(data: bytes, encoding: str | None = None) -> Text:
    """By `encoding`; else by a byte order mark, as UTF-8, as UTF-16 without a mark; else by the letters.

    Raises:
        UnicodeDecodeError: not text, or not in that encoding.
        LookupError: no such encoding.
    """
    if encoding is not None:
        return Text(data.decode(encoding).removeprefix("\ufeff"), encoding)
    for mark, name in MARKS.items():
        if data.startswith(mark):
            return Text(data.decode(name), name.removesuffix("-sig").upper())
    if bare := _wide_without_a_mark(data):
        return Text(data.decode(bare), f"{bare[:6].upper()} without a mark")
    try:
        return Text(data.decode("utf-8"), "UTF-8")
    except UnicodeDecodeError:
        found = _guessed(data)
        if found is None:
            raise
        return found


def _wide_without_a_mark(data: bytes) -> str | None:
    """UTF-16's plain letters have a zero for every second byte, UTF-32's all letters two of four; UTF-8 has none."""
    head = data[:LOOKED_AT_BYTES]
    for name, first in (("utf-32-le", 2), ("utf-32-be", 0)):
        if len(head) >= 8 and not any(head[first::4]) and not any(head[first + 1 :: 4][:-1]):
            return name
    odd, even = head[1::2].count(0), head[::2].count(0)
    if max(odd, even) < len(head) / 8:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _guessed(data: bytes) -> Text | None:
    from charset_normalizer import from_bytes  # slow to import, seldom needed

    best = from_bytes(data, cp_isolation=list(CODE_PAGES)).best()
    return None if best is None else Text(str(best), f"{best.encoding} (guessed)")


class WrittenFloat(float):
    """A number that knows how it was written: 12.50 in a file stays 12.50."""

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str
