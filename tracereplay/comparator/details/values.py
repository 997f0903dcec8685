"""Values of single calls: digests of what a site was first given, and histograms of the first divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from tracereplay.columns.tensors import Array, Ints
from tracereplay.comparator.numbers.dtypes import widen
from tracereplay.comparator.numbers.results import Finding
from tracereplay.comparator.numbers.tables import PassIndex, Table, gather, pair_rows

__all__ = ["Digests", "Histogram", "Histograms", "digests_of", "histograms_of"]

BINS = 40
ELEMENTS = 1 << 20  # of a call that are looked at
ROWS = 64  # of a site's first call that a digest covers
INPUTS = 4


@dataclass(frozen=True, slots=True)
class Digests:
    """XXH3-64 of what arrived at an input of a site in golden's first call there, by rows that both sides have.

    Args:
        index: of the input.
        golden, candidate: in hexadecimal.
        rows: how many.
    """

    index: int
    golden: str
    candidate: str
    rows: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values between equally spaced bounds from ``low`` to ``high``."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Histograms:
    """Of the values of the first call out of tolerance.

    Args:
        golden, candidate: over the same bounds.
        difference: candidate minus golden.
        rows, elements: looked at.
        nonfinite: elements that are not finite on one side or both, which no histogram has.
    """

    golden: Histogram
    candidate: Histogram
    difference: Histogram
    rows: int
    elements: int
    nonfinite: int


def digests_of(golden: PassIndex, candidate: PassIndex) -> Mapping[str, Sequence[Digests]]:
    """By site, those of its inputs."""
    found: dict[str, list[Digests]] = {}
    first = golden.calls.first
    for key, table in golden.tables.items():
        other = candidate.tables.get(key)
        if key.side != "in" or key.index >= INPUTS or other is None or key.site not in first:
            continue
        pairs = pair_rows(table, other)
        shared = np.flatnonzero(table.order(pairs.golden) == first[key.site])[:ROWS]
        if len(shared):
            sides = _digest(table, pairs.golden[shared]), _digest(other, pairs.candidate[shared])
            found.setdefault(key.site, []).append(Digests(key.index, *sides, len(shared)))
    return found


def _digest(table: Table, rows: Ints) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(gather(table, rows, alone=True)).tobytes())


def histograms_of(finding: Finding, golden: PassIndex, candidate: PassIndex) -> Histograms | None:
    """Of the first call of ``finding`` that is out of tolerance; None where its values are not numbers to plot."""
    event = finding.onset
    table, other = golden.tables.get(finding.key), candidate.tables.get(finding.key)
    if event is None or table is None or other is None:
        return None
    pairs = pair_rows(table, other)
    rows = np.flatnonzero(table.order(pairs.golden) == event.order)
    signature = table.signature()
    if not len(rows) or signature is None:
        return None
    rows = rows[: max(1, ELEMENTS // max(1, signature[1]))]
    sides = (table, pairs.golden[rows]), (other, pairs.candidate[rows])
    one, two = (widen(gather(t, r, alone=True), _dtype(t)).astype(np.float64).reshape(-1) for t, r in sides)
    finite = np.isfinite(one) & np.isfinite(two)
    mine, theirs = one[finite], two[finite]
    if not len(mine):
        return None
    low, high = min(mine.min(), theirs.min()), max(mine.max(), theirs.max())
    with np.errstate(over="ignore"):
        apart = theirs - mine
    if not (np.isfinite(apart).all() and np.isfinite(high - low)):  # of float64 at its ends
        return None
    return Histograms(
        _counted(mine, low, high), _counted(theirs, low, high), _counted(apart), len(rows), len(one),
        int(len(one) - finite.sum()),
    )  # fmt: skip


def _dtype(table: Table) -> str:
    return str(table.tensors[0].dtype)


def _counted(values: Array, low: float | None = None, high: float | None = None) -> Histogram:
    low = float(values.min()) if low is None else float(low)
    high = float(values.max()) if high is None else float(high)
    if not high > low:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(values, BINS, (low, high))
    return Histogram(low, high, tuple(counts.tolist()))
