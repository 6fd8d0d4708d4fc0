"""Numbers as a reader sees them. What is not a finite number shows as a dash, never as nan."""

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


def count_of(value: object, total: object) -> str:
    """A count with its share of `total`."""
    part, whole = finite(value), finite(total)
    if part is None or not whole or not part:
        return count(value)
    return f"{count(part)} ({number(100 * part / whole, 1)}{NO_BREAK}%)"


def share(value: object) -> str:
    """A fraction as per cent."""
    known = finite(value)
    return DASH if known is None else f"{number(100 * known, 1)}{NO_BREAK}%"


def p_value(value: object) -> str:
    """Such as `p = 0.031` or `p < 0.001`."""
    known = finite(value)
    if known is None:
        return DASH
    if known < 0.001:
        return f"p{NO_BREAK}<{NO_BREAK}0.001"
    return f"p{NO_BREAK}={NO_BREAK}{number(known, 3 if known < 0.1 else 2)}"


@dataclass(frozen=True)
class Unit:
    """How the values of a metric are written: as per cent where it is a share of right answers, else as they are."""

    is_share: bool

    def value(self, value: object) -> str:
        return share(value) if self.is_share else number(value, 3)

    def tick(self, value: float) -> str:
        """Short, for an axis."""
        scaled = 100 * value if self.is_share else value
        return f"{scaled:.6g}".replace("-", MINUS) + (f"{NO_BREAK}%" if self.is_share else "")

    def difference_tick(self, value: float) -> str:
        """As `tick`, in percentage points where the metric is a share."""
        return self.tick(value).replace("%", "pp")

    def interval(self, interval: object) -> str:
        """[61.2, 65.4], in the same unit as `value`."""
        known = bounds(interval)
        if known is None:
            return DASH
        scale, decimals = (100, 1) if self.is_share else (1, 3)
        return f"[{number(scale * known[0], decimals)}, {number(scale * known[1], decimals)}]"

    def difference(self, value: object) -> str:
        """Signed, in percentage points where the metric is a share."""
        known = finite(value)
        if known is None:
            return DASH
        text = number(100 * known, 1) if self.is_share else number(known, 3)
        sign = "+" if known > 0 and any(digit in "123456789" for digit in text) else ""
        return f"{sign}{text}" + (f"{NO_BREAK}pp" if self.is_share else "")
