"""Charts as inline SVG, drawn here so that the page needs no library. Colours and fonts come from page.css.

Text in an SVG shrinks with it, so every chart is drawn twice, for wide and for narrow pages; the style sheet shows one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlmft.report.content import Bar, Curve
from vlmft.report.markup import Attributes, Markup, element, joined
from vlmft.report.units import count, finite, share, shortened, significant

LANES_WIDE, CURVES_WIDE, NARROW = 1000.0, 500.0, 350.0
"""Pixels, near to how wide the page shows them, so that text keeps its size."""
CHARACTER = 7.6
"""Pixels that a bold character takes at most, nearly always."""
MAX_LINE_POINTS = 400
MAX_DOTS = 80
"""Points of a curve that are drawn one by one."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Lane:
    """One line of an interval chart: a value, how far it may lie off, and an optional baseline to compare it with."""

    label: str
    text: str
    """The value in words, printed beside the label."""
    value: float | None
    interval: tuple[float, float] | None
    baseline: float | None = None
    mood: str = "plain"
    """A class of the style sheet: good, bad, or plain."""


@dataclass(frozen=True)
class Scale:
    """Maps values onto pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, at_most: int) -> list[float]:
        """Round values inside the scale."""
        step = nice_step((self.high - self.low) / at_most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def nice_step(at_least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is not below `at_least`."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least * (1 - 1e-9))


def rounded_range(values: Sequence[float], steps: int = 5) -> tuple[float, float]:
    """The values' range, widened to round numbers; never empty."""
    low, high = min(values), max(values)
    spread, size = high - low, max(abs(low), abs(high))
    if spread <= 1e-9 * size:  # nothing but rounding: steps as small as that would not change the ends
        spread = size or 1.0
    step = nice_step(spread / steps)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return (low, high) if high > low else (low - step, high + step)


def both_widths(draw: Callable[[float], Markup], wide: float) -> Markup:
    """The chart for wide and for narrow pages, of which one is shown."""
    return joined(
        element("div", {"class": kind}, draw(width)) for kind, width in (("wide-only", wide), ("narrow-only", NARROW))
    )


def interval_chart(
    lanes: Sequence[Lane], limits: tuple[float, float], tick: Format, summary: str, zero: bool = False
) -> Markup:
    """A dot with whiskers for each lane; `zero` adds the line of no difference."""
    longest = max(len(lane.text) for lane in lanes)

    def draw(width: float) -> Markup:
        wide = width > NARROW
        start, lane_height, top = (255.0 if wide else 18.0), (32.0 if wide else 48.0), 8.0
        bottom = top + lane_height * len(lanes)
        scale = Scale(*limits, start, width - (CHARACTER * longest + 20 if wide else 18.0))
        pieces = [_x_axis(scale, bottom, top, tick, at_most=8 if wide else 4)]
        if zero:
            pieces.append(_line(scale(0), top, scale(0), bottom, "zero"))
        for index, lane in enumerate(lanes):
            base = top + lane_height * index
            pieces.append(_lane(lane, scale, base, lane_height, width, wide))
        return _svg(width, bottom + 26, summary, pieces)

    return both_widths(draw, LANES_WIDE)


def _lane(lane: Lane, scale: Scale, top: float, height: float, width: float, wide: bool) -> Markup:
    y = top + (height / 2 if wide else height - 14)
    label_at, text_at = (y + 4, y + 4) if wide else (top + 18, top + 18)
    pieces = [
        _text(0, label_at, shortened(lane.label, 29), "lane-label"),
        _text(width, text_at, lane.text, "lane-text", anchor="end"),
    ]
    if lane.baseline is not None:
        pieces.append(_line(scale(lane.baseline), y - 11, scale(lane.baseline), y + 11, "baseline"))
    if lane.interval is not None:
        low, high = (scale(bound) for bound in lane.interval)
        pieces += [_line(low, y, high, y, "whisker"), _line(low, y - 5, low, y + 5, "whisker")]
        pieces.append(_line(high, y - 5, high, y + 5, "whisker"))
    if lane.value is not None:
        pieces.append(element("circle", {"cx": scale(lane.value), "cy": y, "r": 5, "class": "dot"}))
    return element("g", {"class": f"lane {lane.mood}"}, element("title", {}, f"{lane.label}: {lane.text}"), *pieces)


def bar_chart(bars: Sequence[Bar], summary: str) -> Markup:
    """Horizontal bars from zero."""
    values = [finite(bar.value) or 0.0 for bar in bars]
    low, high = min(0.0, *values), max(0.0, *values)
    longest = max(len(bar.label) for bar in bars)
    after = 12 + CHARACTER * max(len(bar.text) for bar in bars)

    def draw(width: float) -> Markup:
        label = CHARACTER * min(longest, 29 if width > NARROW else 14) + 14
        before = label + (after if low < 0 else 0)  # what is shorter than nothing has its text to the left
        scale = Scale(low, high if high > low else low + 1, before, width - after)
        pieces = []
        for index, (bar, value) in enumerate(zip(bars, values, strict=True)):
            y, ends = 6 + 30.0 * index, sorted((scale(0), scale(value)))
            place = {"x": ends[0], "y": y, "width": max(ends[1] - ends[0], 1), "height": 18}
            box: Attributes = {**place, "rx": 2, "class": "bar"}
            text = (ends[0] - 8, "end") if value < 0 else (ends[1] + 8, "start")
            pieces += [_text(0, y + 14, shortened(bar.label, 29 if width > NARROW else 14), "lane-label")]
            pieces += [element("rect", box), _text(text[0], y + 14, bar.text, "lane-text", anchor=text[1])]
        if low < 0:
            pieces.append(_line(scale(0), 0, scale(0), 30.0 * len(bars), "zero"))
        return _svg(width, 6 + 30.0 * len(bars), summary, pieces)

    return both_widths(draw, LANES_WIDE)


def curve_chart(curves: Sequence[Curve], summary: str) -> Markup:
    """Curves over one pair of axes, told apart by colour and dash; many points also get a running mean."""
    known = [(curve, finite_points(curve)) for curve in curves]
    points = [point for _, line in known for point in line]
    if not points:
        return element("p", {"class": "note"}, "No finite value was logged.")

    def draw(width: float) -> Markup:
        height, left = (260.0 if width > NARROW else 230.0), 60.0
        last = max(step for step, _ in points)
        first = min(min(step for step, _ in points), last - 1)
        x = Scale(first, last, left, width - 22)
        y = Scale(*rounded_range([value for _, value in points]), height - 30, 12)
        ticks = min(6 if width > NARROW else 4, int(last - first))  # no steps between steps
        pieces = [
            _x_axis(x, height - 30, None, count, at_most=ticks),
            _y_axis(y, left, width - 22),
        ]
        for index, (_, line) in enumerate(known):
            pieces.append(_curve(line, x, y, f"series series-{index % 6}"))
        return _svg(width, height, summary, pieces)

    return both_widths(draw, CURVES_WIDE)


def _curve(points: Sequence[tuple[float, float]], x: Scale, y: Scale, kind: str) -> Markup:
    jagged = is_jagged(points)
    pieces = [_polyline(thinned(points), x, y, "raw" if jagged else "line")]
    if jagged:
        pieces.append(_polyline(thinned(running_mean(points)), x, y, "line"))
    for step, value in points if len(points) <= MAX_DOTS else ():
        dot: Attributes = {"cx": x(step), "cy": y(value), "r": 3, "class": "dot"}
        pieces.append(element("circle", dot, element("title", {}, f"step {count(step)}: {significant(value)}")))
    return element("g", {"class": kind}, *pieces)


def is_jagged(points: Sequence[tuple[float, float]]) -> bool:
    """Whether a curve has too many points to show each, and turns at more than every fourth: then a mean helps."""
    values = [value for _, value in points]
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(values, values[1:], values[2:], strict=False))
    return len(points) > MAX_DOTS and turns > len(points) / 4


def finite_points(curve: Curve) -> list[tuple[float, float]]:
    """(step, value) in order of steps, without nan and infinity."""
    pairs = ((float(step), finite(float(value))) for step, value in zip(curve.steps, curve.values, strict=True))
    return sorted((step, value) for step, value in pairs if value is not None)


def mean_window(points: int) -> int:
    """How many points the running mean of a curve takes together; odd."""
    return 2 * (points // 60) + 1


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred mean; near the ends over fewer points on both sides alike, so that it does not lag."""
    reach = mean_window(len(points)) // 2
    smooth = []
    for index, (step, _) in enumerate(points):
        side = min(reach, index, len(points) - 1 - index)
        part = [value for _, value in points[index - side : index + side + 1]]
        smooth.append((step, math.fsum(part) / len(part)))
    return smooth


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_LINE_POINTS`: of each stretch its lowest and its highest point, so that no spike is lost."""
    if len(points) <= MAX_LINE_POINTS:
        return list(points)
    stretch = math.ceil(2 * len(points) / MAX_LINE_POINTS)
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        extremes = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(extremes)
    return kept


def grouped_bars(names: Sequence[str], shares: Mapping[str, Sequence[float]], summary: str) -> Markup:
    """Lying bars beside their names, of each name one for each series; all from zero."""
    start, lane = 130.0, 12.0 + 13.0 * len(shares)
    highest = max([0.01, *(part for parts in shares.values() for part in parts)])

    def draw(width: float) -> Markup:
        scale = Scale(0, highest, start, width - 62)
        pieces = [_text(0, lane * row + lane / 2 + 4, name, "lane-label") for row, name in enumerate(names)]
        for index, (series, parts) in enumerate(shares.items()):
            for row, (name, part) in enumerate(zip(names, parts, strict=True)):
                y, told = lane * row + 6 + 13.0 * index, f"{name}, {series}: {share(part)}"
                pieces.append(_box(index, start, y, scale(part) - start, 11.0, told))
                pieces.append(_text(scale(part) + 6, y + 10, share(part), "tick"))
        return _svg(width, lane * len(names), summary, pieces)

    return both_widths(draw, CURVES_WIDE)


def grouped_columns(names: Sequence[str], shares: Mapping[str, Sequence[float]], summary: str) -> Markup:
    """Standing columns over their names, of each name one for each series; all from zero."""
    height, left = 150.0, 56.0
    highest = max(part for parts in shares.values() for part in parts)

    def draw(width: float) -> Markup:
        room, scale = (width - left) / len(names), Scale(0, highest, height, 8.0)
        thick = min(26.0, 0.8 * room / len(shares))
        every = math.ceil((7.0 * max(map(len, names)) + 8) / room)  # so that names do not meet
        pieces = [_line(left, height, width, height, "axis")]
        for value in scale.ticks(4)[1:]:
            pieces.append(_line(left, scale(value), width, scale(value), "grid"))
            pieces.append(_text(left - 8, scale(value) + 4, share(value), "tick", anchor="end"))
        for column, name in enumerate(names):
            middle = left + room * (column + 0.5)
            for index, (series, parts) in enumerate(shares.items()):
                x, y = middle + thick * (index - len(shares) / 2), scale(parts[column])
                pieces.append(_box(index, x, y, thick - 1, height - y, f"{name}, {series}: {share(parts[column])}"))
            if column % every == 0:
                at = min(middle, width - 3.5 * len(name))  # the last one stays inside
                pieces.append(_text(at, height + 18, name, "tick", anchor="middle"))
        return _svg(width, height + 26, summary, pieces)

    return both_widths(draw, CURVES_WIDE)


def _box(series: int, x: float, y: float, width: float, height: float, told: str) -> Markup:
    box: Attributes = {"x": x, "y": y, "width": width, "height": height, "fill": "currentColor"}
    return element("g", {"class": f"series-{series}"}, element("rect", box, element("title", {}, told)))


def _x_axis(scale: Scale, y: float, grid_top: float | None, tick: Format, at_most: int) -> Markup:
    pieces = [_line(scale.start, y, scale.end, y, "axis")]
    for value in scale.ticks(at_most):
        if grid_top is not None:
            pieces.append(_line(scale(value), grid_top, scale(value), y, "grid"))
        pieces.append(_text(scale(value), y + 18, tick(value), "tick", anchor="middle"))
    return element("g", {}, *pieces)


def _y_axis(scale: Scale, left: float, right: float) -> Markup:
    pieces = []
    for value in scale.ticks(5):
        pieces.append(_line(left, scale(value), right, scale(value), "grid"))
        pieces.append(_text(left - 8, scale(value) + 4, significant(value), "tick", anchor="end"))
    return element("g", {}, *pieces)


def _svg(width: float, height: float, summary: str, pieces: Sequence[Markup]) -> Markup:
    frame: Attributes = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": summary}
    return element("svg", frame, *pieces)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Markup:
    return element("text", {"x": x, "y": y, "class": kind, "text-anchor": anchor}, text)


def _polyline(points: Sequence[tuple[float, float]], x: Scale, y: Scale, kind: str) -> Markup:
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    return element("polyline", {"points": path, "class": kind})
