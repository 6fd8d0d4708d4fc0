"""Numbers as they are printed, in console, Markdown and HTML alike. What is not finite shows as a dash, never as nan.

Shares are per cent with one decimal, differences of shares points; minus is a true one, and no zero has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DASH = "\u2013"
MINUS = "\u2212"
NO_BREAK = "\u00a0"


def finite(value: object) -> float | None:
    """`value` as a float, None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def bounds(interval: object) -> tuple[float, float] | None:
    """(low, high), None where either is missing."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return None
    low, high = finite(interval[0]), finite(interval[1])
    return None if low is None or high is None else (low, high)


def number(value: object, decimals: int) -> str:
    """With a true minus sign, and no minus before a zero."""
    known = finite(value)
    if known is None:
        return DASH
    rounded = round(known, decimals)
    return f"{rounded if rounded else 0.0:,.{decimals}f}".replace("-", MINUS)


def significant(value: float) -> str:
    """Four digits that mean something, however small the number is."""
    return f"{value:.4g}".replace("-", MINUS)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters, the last of them an ellipsis where some are missing."""
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def count(value: object) -> str:
    return number(value, 0)


def p_words(p_value: float) -> str:
    """ "p = 0.031"; a value too small for a float is no zero."""
    return f"p = {p_value:.2g}" if p_value > 0 else "p < 1e-300"


def p_value(value: object) -> str:
    """`p_words`, kept on one line."""
    known = finite(value)
    return DASH if known is None else p_words(known).replace(" ", NO_BREAK)


def console(text: str) -> str:
    """For a terminal and for logs, where signs beyond ASCII may be lost: plain spaces and hyphens."""
    return text.replace(NO_BREAK, " ").replace(MINUS, "-").replace(DASH, "-")


@dataclass(frozen=True)
class Unit:
    """How the values of a metric are written: as per cent where it is a share of right answers, else as they are."""

    is_share: bool
    is_exact: bool = False
    """As values of published predictions are quoted: per cent with two decimals, others with six digits."""

    def value(self, value: object) -> str:
        return self._bare(value) + (f"{NO_BREAK}%" if self.is_share and finite(value) is not None else "")

    def _bare(self, value: object) -> str:
        known = finite(value)
        if known is None:
            return DASH
        if self.is_share:
            return number(100 * known, 2 if self.is_exact else 1)
        return f"{known:.6g}".replace("-", MINUS) if self.is_exact else number(known, 3)

    def tick(self, value: float) -> str:
        """Short, for an axis."""
        return self.difference_tick(value) + (f"{NO_BREAK}%" if self.is_share else "")

    def difference_tick(self, value: float) -> str:
        """As `tick`, in points where the metric is a share; without the unit, which would take too much room."""
        return f"{100 * value if self.is_share else value:.6g}".replace("-", MINUS)

    def interval(self, interval: object) -> str:
        """[61.2, 65.4], in the same unit as `value`."""
        known = bounds(interval)
        return DASH if known is None else f"[{self._bare(known[0])}, {self._bare(known[1])}]"

    def bounds(self, interval: object) -> str:
        """61.2 to 65.4, for a sentence."""
        known = bounds(interval)
        return DASH if known is None else f"{self._bare(known[0])} to {self._bare(known[1])}"

    def difference(self, value: object) -> str:
        """Signed, in points where the metric is a share."""
        return self.signed(value) + (f"{NO_BREAK}points" if self.is_share and finite(value) is not None else "")

    def signed(self, value: object) -> str:
        """A difference without its unit."""
        text = self._bare(value)
        return text if text.startswith((MINUS, DASH)) else f"+{text}"

    def difference_interval(self, interval: object) -> str:
        """+67.4 to +75.4, in the unit of `difference`."""
        known = bounds(interval)
        return DASH if known is None else f"{self.signed(known[0])} to {self.signed(known[1])}"


SHARE = Unit(is_share=True)


def share(value: object) -> str:
    """A fraction as per cent."""
    return SHARE.value(value)


def percent(value: object) -> str:
    """`share` for the console and for sentences that are printed there, too."""
    return console(share(value))
