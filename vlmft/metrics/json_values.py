"""One value of a JSON answer against the reference's: numbers, dates and truth values by value, texts by ANLS."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from vlmft.metrics.anls import anls
from vlmft.metrics.numerals import folded
from vlmft.metrics.words import composed

Kind = Literal["number", "date", "truth value", "text"]

_CURRENCY = r"(?P<{0}>[$€£¥₽₹₩₴]|(?:usd|eur|gbp|rub|rs|rm|rp|idr|inr|cny|jpy|krw)\b\.?)?"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?{_CURRENCY.format('before')} ?"
    r"(?P<value>(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?"  # not "007", a code, nor the digits of a card
    r"|[1-9]\d{0,2}(?:[, ]\d{3})+(?:\.\d+)?"
    r"|[1-9]\d{0,2}(?:\.\d{3})+,\d{1,2}|(?:0|[1-9]\d{0,14}),\d{1,2})"
    rf" ?{_CURRENCY.format('after')}"
)
_DECIMAL_COMMA = re.compile(r",\d{1,2}$")
_MONTHS = {name: n for n, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), start=1)}
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})[a-z]*\.?"
_DATES = [
    re.compile(pattern)
    for pattern in (
        r"(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})",
        r"(?P<first>\d{1,2})([-/.])(?P<second>\d{1,2})\2(?P<year>\d{4}|\d{2})",
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?[ -]?{_MONTH}[ ,-]{{0,2}}(?P<year>\d{{4}}|\d{{2}})",
        rf"{_MONTH} ?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})",
    )
]
_Dates: TypeAlias = tuple[date | None, date | None]
"""Read with the day first, and with the month first; equal where there is no doubt."""


def kind_of(value: Any) -> Kind:
    """What a value of the reference is compared as; a text that is all a number or a date is one."""
    if isinstance(value, bool):
        return "truth value"
    if number_of(value) is not None:
        return "number"
    return "date" if isinstance(value, str) and dates_of(value) is not None else "text"


def similarity(gold: Any, answer: Any) -> float:
    """1 where two values are the same, whatever their spelling or JSON type: "12.50", 12.5 and "$12.50" are.

    Numbers must be equal, also in their currency where both name one; dates the same day, of which "03/04/2018" is
    read as the other one is, day or month first, and is never equal to "04/03/2018". Texts are equal without case and
    runs of spaces, else worth their ANLS, 0 from half wrong on.
    """
    written, answered = (" ".join(composed(str(shown_as(value))).split()) for value in (gold, answer))
    if written == answered:
        return 1.0
    kind = kind_of(gold)
    if kind == "number":
        number, other = number_of(gold), number_of(answer)
        return float(number is not None and other is not None and _same_amount(number, other))
    if kind == "date":
        days, others = dates_of(written), dates_of(answered)
        return float(any(a is not None and a == b for a, b in zip(days or (), others or (), strict=False)))
    return anls(answered, [written]).value if kind == "text" else 0.0


def shown_as(value: Any) -> str | None:
    """A value as text: true as JSON writes it, a number as it was written; None for null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def number_of(value: Any) -> tuple[Decimal, str] | None:
    """The number that a value is, also as a text, and its currency, "" where it names none; None for anything else.

    "1,234.50", "1.234,50" and "12,50" are read; "45.500" is 45.5, which in some countries is written for 45500. Codes
    such as "007" and runs of more than 15 digits are texts.
    """
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return Decimal(str(value)), ""
    match = _NUMBER.fullmatch(folded(value)) if isinstance(value, str) and len(value) <= 40 else None
    if match is None:
        return None
    digits = match["value"].replace(" ", "")
    digits = digits.replace(".", "").replace(",", ".") if _DECIMAL_COMMA.search(digits) else digits.replace(",", "")
    return Decimal(match["sign"] + digits), (match["before"] or match["after"] or "").rstrip(".")


def _same_amount(first: tuple[Decimal, str], second: tuple[Decimal, str]) -> bool:
    return first[0] == second[0] and (not first[1] or not second[1] or first[1] == second[1])


def dates_of(text: str) -> _Dates | None:
    """The day that a text is, with the day first and with the month first; None where it is no date."""
    written = folded(text)
    match = next((found for pattern in _DATES if (found := pattern.fullmatch(written))), None)
    if match is None:
        return None
    parts = match.groupdict()
    year = int(parts["year"]) + (0 if len(parts["year"]) == 4 else 2000 if int(parts["year"]) < 70 else 1900)
    if "first" in parts:
        first, second = int(parts["first"]), int(parts["second"])
        days = _day(year, second, first), _day(year, first, second)
    else:
        month = _MONTHS.get(parts["month"]) or int(parts["month"])
        days = (_day(year, month, int(parts["day"])),) * 2
    sure = [day for day in days if day is not None]
    return None if not sure else days if len(sure) == 2 else (sure[0], sure[0])


def _day(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None
