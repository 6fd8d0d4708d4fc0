"""What the charts of a page show, as numbers; pages/charts.html draws them. Positions are in per cent of a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vlmft.evaluation.numbers import count, finite, share, significant
from vlmft.report.content import Bar, Curve

MAX_LINE_POINTS = 400
MAX_DOTS = 80
"""Points of a curve that are drawn one by one."""


@dataclass(frozen=True)
class Scale:
    """Maps values onto 0..100."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

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


@dataclass(frozen=True)
class Lane:
    """One line of a chart of lanes: a dot with its interval, or a bar from zero."""

    label: str
    text: str
    """The value in words, printed beside the label."""
    value: float | None
    interval: tuple[float, float] | None = None
    baseline: float | None = None
    """A second value, to compare it with."""
    mood: str = "plain"
    """A class of the style sheet: good, bad, plain, or series-0 and so on."""
    is_bar: bool = False
    group: str = ""
    """What several lanes have in common; stands before the label where it is read aloud."""


@dataclass(frozen=True)
class Lanes:
    """Lanes over one axis."""

    kind: ClassVar[str] = "lanes"
    lanes: Sequence[Lane]
    scale: Scale
    caption: str
    tick: Callable[[float], str] | None = None
    """Writes the axis's values; None leaves the axis out."""
    zero: bool = False
    """Draws the line of zero."""
    title: str = ""
    legend: Sequence[str] = ()

    @property
    def ticks(self) -> list[tuple[float, str]]:
        return [(self.scale(at), self.tick(at)) for at in self.scale.ticks(5)] if self.tick is not None else []

    def bar(self, lane: Lane) -> tuple[float, float]:
        """Where it begins, and its width, of which something is always seen."""
        start, end = sorted((self.scale(0), self.scale(lane.value or 0.0)))
        return start, max(round(end - start, 2), 0.2)


def bar_lanes(title: str, bars: Sequence[Bar], end: float | None = None) -> Lanes:
    """Bars from zero; `end` is where the axis ends, None at the largest value."""
    values = [finite(bar.value) or 0.0 for bar in bars]
    low, high = min(0.0, *values), end or max(0.0, *values)
    lanes = [Lane(bar.label, bar.text, value, is_bar=True) for bar, value in zip(bars, values, strict=True)]
    return Lanes(lanes, Scale(low, high if high > low else low + 1), title, zero=low < 0)


@dataclass(frozen=True)
class Columns:
    """Standing columns over their names, of each name one for each series; all from zero."""

    kind: ClassVar[str] = "columns"
    title: str
    summary: str
    caption: str
    names: Sequence[str]
    shares: Mapping[str, Sequence[float]]
    """Series -> a value for each name."""

    @property
    def legend(self) -> Sequence[str]:
        return list(self.shares)

    @property
    def scale(self) -> Scale:
        return Scale(0, max(part for parts in self.shares.values() for part in parts))

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        return [(100 - self.scale(at), share(at)) for at in self.scale.ticks(4)]

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Every name, or every second and so on, so that names do not meet on a narrow page."""
        width = 100 / len(self.names)
        every = math.ceil((7.0 * max(map(len, self.names)) + 8) / (2.8 * width))
        return [(round(width * (i + 0.5), 2), name) for i, name in enumerate(self.names) if i % every == 0]

    def boxes(self) -> Iterator[tuple[int, float, float, float, str]]:
        """Number of the series, left edge, width, height, and what it says."""
        width = 100 / len(self.names)
        thick = min(5.0, 0.8 * width / len(self.shares))
        for index, (series, parts) in enumerate(self.shares.items()):
            for column, (name, part) in enumerate(zip(self.names, parts, strict=True)):
                x = width * (column + 0.5) + thick * (index - len(self.shares) / 2)
                yield index, round(x, 2), round(thick - 0.2, 2), self.scale(part), f"{name}, {series}: {share(part)}"


@dataclass(frozen=True)
class Plot:
    """Curves over one pair of axes, told apart by colour and dash; many points also get a running mean."""

    kind: ClassVar[str] = "curves"
    title: str
    curves: Sequence[Curve]

    @property
    def series(self) -> list[list[tuple[float, float]]]:
        return [finite_points(curve) for curve in self.curves]

    @property
    def is_drawn(self) -> bool:
        """One point is no curve; the legend tells its value."""
        return any(len(points) > 1 for points in self.series)

    @property
    def legend(self) -> list[str]:
        return [f"{curve.name}: {ends(curve)}" for curve in self.curves]

    @property
    def summary(self) -> str:
        return f"{self.title} by step: {'; '.join(f'{curve.name} {ends(curve)}' for curve in self.curves)}"

    @property
    def caption(self) -> str:
        notes = ["By optimiser step."] if self.is_drawn else []
        for curve, points in zip(self.curves, self.series, strict=True):
            if lost := len(curve.values) - len(points):
                notes.append(f"{curve.name}: {count(lost)} of {count(len(curve.values))} values were not finite.")
            if is_jagged(points):
                notes.append(f"{curve.name}: faint as logged, bold a mean over {mean_window(len(points))} points.")
        return " ".join(notes)

    @property
    def x(self) -> Scale:
        steps = [step for points in self.series for step, _ in points]
        return Scale(min(*steps, max(steps) - 1), max(steps))

    @property
    def y(self) -> Scale:
        return Scale(*rounded_range([value for points in self.series for _, value in points]))

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        at_most = min(5, int(self.x.high - self.x.low))  # no steps between steps
        return [(self.x(at), count(at)) for at in self.x.ticks(at_most)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        return [(round(100 - self.y(at), 2), significant(at)) for at in self.y.ticks(5)]

    def lines(self) -> Iterator[tuple[int, str, str]]:
        """Number of the series, class and points of each line."""
        x, y = self.x, self.y
        for index, points in enumerate(self.series):
            jagged = is_jagged(points)
            drawn = [("raw" if jagged else "line", points), *([("line", running_mean(points))] if jagged else [])]
            for kind, some in drawn:
                yield index, kind, " ".join(f"{x(step):g},{100 - y(value):g}" for step, value in thinned(some))

    def dots(self) -> Iterator[tuple[int, float, float, str]]:
        """Number of the series, place and words of each point, where there are few."""
        for index, points in enumerate(self.series):
            for step, value in points if len(points) <= MAX_DOTS else ():
                place = self.x(step), round(100 - self.y(value), 2)
                yield index, *place, f"step {count(step)}: {significant(value)}"


Chart = Lanes | Columns | Plot


def plots(curves: Sequence[Curve]) -> tuple[Plot, ...]:
    """One for each last name: "train/loss" and "val/loss" share theirs."""
    by_name: dict[str, list[Curve]] = {}
    for curve in curves:
        by_name.setdefault(curve.name.rsplit("/", 1)[-1], []).append(curve)
    return tuple(Plot(name.replace("_", " "), some) for name, some in by_name.items())


def ends(curve: Curve) -> str:
    """First and last value in words."""
    points = [significant(value) for _, value in finite_points(curve)]
    return " \u2192 ".join(dict.fromkeys((points[0], points[-1]))) if points else "no finite value"


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
