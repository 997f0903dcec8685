"""What is plotted of a verdict: logprobs over positions, errors of each class of operators, values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracereplay.comparator.details import Generated, Histogram, Histograms
from tracereplay.report.html.plots import Axis, Plot, bars, lines
from tracereplay.report.words import integral, number
from tracereplay.verdict import Metrics, OperatorFinding
from tracereplay.verdict.rollout import PositionBin

__all__ = ["ClassPlot", "classes", "logprobs", "logprobs_of_bins", "values"]

BINS = 160  # of positions
LEAST = 1e-7  # relative error below which the lowest mark stands for it


def logprobs(found: Generated, limit: float | None) -> tuple[Plot, list[tuple[str, str, str]]] | None:
    """Differences of golden tokens' logprobs over positions, as a plot and as rows; None: nothing differs."""
    places = found.places
    told = places.reported & (places.tokens[0] == places.tokens[1])
    if not told.any():
        return None
    position = places.keys[told, 2]
    with np.errstate(invalid="ignore"):
        apart = np.abs(places.logprobs[0][told] - places.logprobs[1][told])
    apart[np.isnan(apart)] = 0.0  # both minus infinity
    first, last = int(position.min()), int(position.max())
    width = max(1, -(-(last - first + 1) // BINS))
    bins = []
    for start in range(first, last + 1, width):
        here = apart[(position >= start) & (position < start + width)]
        if len(here):
            bins.append(PositionBin(start, start + width - 1, len(here), float(here.mean()), float(here.max())))
    return _logprobs(bins, limit, "position")


def logprobs_of_bins(
    bins: Sequence[PositionBin], limit: float | None = None
) -> tuple[Plot, list[tuple[str, str, str]]] | None:
    """The same of what a verdict keeps of it."""
    return _logprobs(bins, limit, "generated token") if bins else None


def _logprobs(
    bins: Sequence[PositionBin], limit: float | None, unit: str
) -> tuple[Plot, list[tuple[str, str, str]]] | None:
    worst = max(bins, key=lambda b: b.max)
    if not worst.max:
        return None
    top = max([b.max for b in bins if math.isfinite(b.max)] + [1e-6])
    shown = limit is not None and limit <= 4 * top
    high = 1.05 * max(top, limit if shown and limit is not None else 0.0)
    words = f"The largest difference is {number(worst.max)} nats, at {_span(worst, unit)}."
    middle = [((b.first + b.last) / 2, b) for b in bins]
    x = Axis(float(bins[0].first), float(max(bins[-1].last, bins[0].first + 1)), unit=unit, whole=True)
    plot = lines(
        "Difference of golden tokens' logprobs, in nats", words, x, Axis(0.0, high, unit="nats"),
        [
            ("largest", "most", [(at, b.max) for at, b in middle]),
            ("mean", "mean", [(at, b.mean) for at, b in middle]),
        ],
        limit=(limit, f"allowed: {number(limit)}") if shown and limit is not None else None, size=(560.0, 190.0),
        gap=1.5 * max(b.last - b.first + 1 for b in bins),
    )  # fmt: skip
    return plot, [(_span(b, unit), number(b.max), number(b.mean)) for b in bins]


def _span(b: PositionBin, unit: str) -> str:
    return f"{unit} {b.first}" if b.first == b.last else f"{unit}s {b.first} to {b.last}"


@dataclass(frozen=True)
class ClassPlot:
    """The sites of one class of operators, in execution order.

    Args:
        operator: the class.
        plot: relative error over sites.
        worst: of what is its own, as a key to sort by.
    """

    operator: str
    plot: Plot
    worst: float


def classes(
    operators: Sequence[OperatorFinding], inherited: Mapping[str, Metrics], own: str
) -> tuple[ClassPlot, ...]:
    """One plot for each class of which more than integers differs, in order of first execution, all of one scale.

    Args:
        operators: in execution order.
        inherited: by site, in a pass in which nothing is fed.
        own: what the operators' errors are called: ``isolated`` or ``own and inherited``.
    """
    kinds: dict[str, list[OperatorFinding]] = {}
    for finding in operators:
        if finding.rows and finding.error_class != "incomparable" and not integral(finding.tolerance):
            kinds.setdefault(finding.operator, []).append(finding)
    every = [f.metrics.relative_l2 for found in kinds.values() for f in found]
    every += [m.relative_l2 for m in inherited.values()]
    finite = [v for v in every if 0 < v < math.inf]
    low = 10.0 ** math.floor(math.log10(max(min(finite, default=1e-3), LEAST)))
    high = 10.0 ** math.ceil(math.log10(max(max(finite, default=1.0), 2 * low)))
    return tuple(
        ClassPlot(
            name, _of_class(name, found, inherited, own, Axis(low / 3, high, True, "relative L2")),
            max(f.metrics.relative_l2 for f in found),
        )
        for name, found in kinds.items()
        if any(f.metrics.relative_l2 or (f.site in inherited and inherited[f.site].relative_l2) for f in found)
    )  # fmt: skip


def _of_class(
    name: str, found: Sequence[OperatorFinding], inherited: Mapping[str, Metrics], own: str, y: Axis
) -> Plot:
    mine = [(float(n), f.metrics.relative_l2) for n, f in enumerate(found, 1)]
    also = [(float(n), inherited[f.site].relative_l2) for n, f in enumerate(found, 1) if f.site in inherited]
    worst = max(found, key=lambda f: f.metrics.relative_l2)
    most = worst.metrics.relative_l2
    words = f"{own}: {f'at most {number(most)}, at {worst.site}' if most else 'the same bits'}."
    if also:
        words += f" Run freely: at most {number(max(v for _, v in also))}."
    series = [("run freely", "inherited", also)] if also else []
    x = Axis(0.5, len(found) + 0.5, unit="site", whole=True)
    return lines(name, words, x, y, [*series, (own, "own", mine)], size=(300.0, 130.0))


def values(found: Histograms) -> Iterator[Plot]:
    """Golden's values, the candidate's, and their difference."""
    for name, style, part in (
        ("golden", "golden", found.golden),
        ("candidate", "candidate", found.candidate),
        ("candidate minus golden", "most", found.difference),
    ):
        yield bars(name, _words(part), Axis(part.low, part.high), part.counts, style)


def _words(part: Histogram) -> str:
    width = (part.high - part.low) / max(len(part.counts), 1)
    peak = max(range(len(part.counts)), key=part.counts.__getitem__)
    low, high = part.low + peak * width, part.low + (peak + 1) * width
    return (
        f"{sum(part.counts):,} values from {number(part.low)} to {number(part.high)}; "
        f"most between {number(low)} and {number(high)}."
    )
