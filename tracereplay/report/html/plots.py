"""Plots as coordinates, which `parts.j2` writes as SVG; each says in words what it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tracereplay.report.words import number

__all__ = ["Axis", "Line", "Plot", "bars", "lines"]

LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 8.0, 24.0  # margins
POINTS = 70  # of a line that are marked each


@dataclass(frozen=True)
class Axis:
    """Bounds of an axis.

    Args:
        low, high: what it shows, ``low < high``.
        log: by the logarithm; what is not above ``low`` lies at its end then.
        unit: what it counts.
        whole: in whole numbers.
    """

    low: float
    high: float
    log: bool = False
    unit: str = ""
    whole: bool = False

    def at(self, value: float) -> float:
        """From 0 to 1, where it lies."""
        low, high = (math.log10(v) if self.log else v for v in (self.low, self.high))
        if math.isnan(value) or (self.log and value <= 0):
            return 0.0
        place = math.log10(value) if self.log and math.isfinite(value) else value
        return min(max((place - low) / (high - low), 0.0), 1.0)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Where, from 0 to 1, and what stands there."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            step = max(1, (last - first + 3) // 4)
            marks = [10.0**n for n in range(first, last + 1, step)]
        else:
            marks = _round_marks(self.low, self.high, 1.0 if self.whole else 0.0)
        return [(self.at(mark), number(mark)) for mark in marks]


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        name: for the legend.
        style: a class of style.css: ``golden``, ``candidate``, ``own``, ``inherited``, ``most``, ``mean``.
        path: of SVG.
        points: where its points are, if these are few.
    """

    name: str
    style: str
    path: str
    points: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Plot:
    """A plot.

    Args:
        title: what it shows.
        words: what is seen in it, for who does not see it.
        width, height: of the whole.
        lines, boxes: what is drawn: lines, or bars as x, y, width and height, of ``style``.
        x, y: ticks: where, and what stands there.
        limit: where a dashed line runs from left to right, and what it is, which the legend says: in the plot a
            curve may run over it.
        units: of the axes.
    """

    title: str
    words: str
    width: float
    height: float
    lines: Sequence[Line] = ()
    boxes: Sequence[tuple[float, float, float, float]] = ()
    style: str = ""
    x: Sequence[tuple[float, str]] = ()
    y: Sequence[tuple[float, str]] = ()
    limit: tuple[float, str] | None = None
    units: tuple[str, str] = ("", "")

    @property
    def right(self) -> float:
        """Where the drawing ends."""
        return self.width - RIGHT

    @property
    def left(self) -> float:
        """Where it begins."""
        return LEFT

    @property
    def bottom(self) -> float:
        """Where it stands."""
        return self.height - BOTTOM


def lines(
    title: str, words: str, x: Axis, y: Axis, series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]], *,
    size: tuple[float, float] = (360.0, 170.0), limit: tuple[float, str] | None = None, gap: float = math.inf,
) -> Plot:  # fmt: skip
    """Lines through points.

    Args:
        title, words: see `Plot`.
        x, y: the axes.
        series: name, style and points of each line.
        size: of the whole.
        limit: a value on the y axis, and its name.
        gap: along the x axis, over which no line runs.
    """
    width, height = size

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = x.at(point[0]), y.at(point[1])
        return _round(LEFT + across * (width - LEFT - RIGHT)), _round(
            height - BOTTOM - up * (height - TOP - BOTTOM)
        )

    drawn = []
    for name, style, points in series:
        placed = [place(point) for point in points]
        joined = [False, *(after[0] - before[0] <= gap for before, after in pairwise(points))]
        path = " ".join(f"{'L' if on else 'M'}{a:g} {b:g}" for on, (a, b) in zip(joined, placed, strict=False))
        drawn.append(Line(name, style, path, placed if len(placed) <= POINTS else ()))
    at = None if limit is None else (place((x.low, limit[0]))[1], limit[1])
    return Plot(
        title, words, width, height, drawn, x=_along(x, width), y=_up(y, height), limit=at, units=(x.unit, y.unit)
    )


def bars(title: str, words: str, x: Axis, counts: Sequence[int], style: str) -> Plot:
    """A histogram: counts between equally spaced bounds along ``x``, by the root, which shows few beside many."""
    width, height = 360.0, 130.0
    most = max(counts, default=0) or 1
    y = Axis(0.0, float(most))
    each = (width - LEFT - RIGHT) / max(len(counts), 1)
    boxes = []
    for n, count in enumerate(counts):
        tall = math.sqrt(count / most) * (height - TOP - BOTTOM)
        if count:
            boxes.append(
                (_round(LEFT + n * each), _round(height - BOTTOM - tall), _round(each - 0.5), _round(tall))
            )
    ticks = [(height - BOTTOM, "0"), (TOP, f"{most:,}")]
    return Plot(
        title, words, width, height, boxes=boxes, style=style, x=_along(x, width), y=ticks, units=("", y.unit)
    )


def _along(x: Axis, width: float) -> list[tuple[float, str]]:
    return [(_round(LEFT + at * (width - LEFT - RIGHT)), words) for at, words in x.ticks]


def _up(y: Axis, height: float) -> list[tuple[float, str]]:
    return [(_round(height - BOTTOM - at * (height - TOP - BOTTOM)), words) for at, words in y.ticks]


def _round(value: float) -> float:
    return round(value, 1)


def _round_marks(low: float, high: float, least: float) -> list[float]:
    """Up to six round numbers within the bounds, ``least`` apart or more."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    unit = 10.0 ** math.floor(math.log10(span / 3))
    step = next(unit * m for m in (1, 2, 5, 10) if span / (unit * m) <= 5)
    step = max(step, least)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
