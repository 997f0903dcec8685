"""What is found of one tensor over all its rows, and when that counts.

Rows come block by block in golden's order; of them sums, extremes and a sample of leans are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracereplay.comparator.numbers.dtypes import Array
from tracereplay.comparator.numbers.metrics import Floats, RowErrors, differing, lean_score, row_errors
from tracereplay.verdict.measures import BEYOND, ErrorClass, Metrics, Siblings, Worst

__all__ = [
    "BIAS_ROWS", "BIAS_ULP", "BIAS_Z", "SIGN_ULP", "Event", "Tally", "compare_rows", "onset_of",
]  # fmt: skip

# A lean counts when it is more than 0.1 ulp on average and five standard errors from zero (6e-7 by chance;
# a comparison asks some thousand times).
BIAS_ULP = 0.1
# Along the values' signs more is honest where it is a rounding convention (leans.py): an engine that truncates
# leans by half an ulp for each rounding (some do on CPUs; TOLERANCES.md), and a fused operator rounds twice.
SIGN_ULP = 1.25
BIAS_Z = 5.0
BIAS_ROWS = 12  # fewer distinct rows may all lean one way by chance
LEANS_KEPT = 4096  # rows; enough to settle any lean, and bounds memory

SLICE = 1 << 16  # elements widened at a time; what is made of them stays in a cache


@dataclass(frozen=True, slots=True)
class Event:
    """The first call of a tensor that shows something: its order, metrics and class."""

    order: int
    step: int
    metrics: Metrics


def onset_of(error_class: ErrorClass, first_different: Event | None, first_beyond: Event | None) -> Event | None:
    """The first call out of tolerance, if any; a lean is there from the first difference on."""
    if error_class in BEYOND:
        return first_beyond
    return first_different if error_class == "biased" else None


@dataclass(slots=True)
class Tally:
    """What was found of one tensor so far; rows are added block by block in golden order.

    Args:
        limit: largest ratio that passes: 1, or 0 where the tolerance is zero.
        peak: how many times its allowance a single element may be off (`row_errors`).
        bias_limit: largest mean lean along the axis that passes, in ulp.
        sign_limit: largest mean lean along the values' signs that passes, in ulp; more where it is a rounding
            convention, which one tensor cannot show.
        siblings: how it compares with tensors like it, as far as that was judged (`leans`).
        watch: is told of rows that differ: their keys, ratios, and whether they are out of tolerance.
    """

    limit: float = 1.0
    peak: float = 1.0
    bias_limit: float = BIAS_ULP
    sign_limit: float = BIAS_ULP
    rows: int = 0
    elements: int = 0
    equal: int = 0
    ratio: float = 0.0
    relative_l2: float = 0.0
    max_abs: float = 0.0
    max_ulp: float = 0.0
    nonfinite: int = 0
    worst: Worst | None = None
    first_different: Event | None = None
    first_beyond: Event | None = None
    siblings: Siblings | None = None
    watch: Callable[[Array, Floats, Any], None] | None = None
    _samples: list[Floats] = field(default_factory=list)  # of [rows, 5]; see `samples`
    _kept: int = 0

    def add_equal(self, rows: int, width: int) -> None:
        """Counts rows that are bitwise equal."""
        self.rows += rows
        self.elements += rows * width
        self.equal += rows * width
        self._kept += rows

    def add(self, errors: RowErrors, width: int, keys: Array, order: Array, step: Array) -> None:
        """Counts rows that differ; ``keys`` is ``[rows, 3]``, ``order`` and ``step`` are golden's."""
        self.rows += len(order)
        self.elements += len(order) * width
        self.equal += int(errors.equal.sum())
        self.nonfinite += int(errors.nonfinite.sum())
        peak = int(errors.ratio.argmax())
        if self.worst is None or errors.ratio[peak] > self.ratio:
            self.worst = _worst(errors, peak, keys, step)
        self.ratio = max(self.ratio, float(errors.ratio[peak]))
        self.max_abs = max(self.max_abs, float(errors.max_abs.max()))
        self.max_ulp = max(self.max_ulp, float(errors.max_ulp.max()))
        self.relative_l2 = max(self.relative_l2, float(errors.relative_l2.max()))
        if self._kept < LEANS_KEPT:
            differing = 1 - errors.equal / width
            columns = errors.axis_lean, errors.sign_lean, errors.relative_l2, errors.growth, differing
            self._samples.append(np.stack(columns, axis=1))
            self._kept += len(order)
        different = errors.equal < width  # not all are: equal integers of two dtypes come here too
        beyond = (errors.ratio > self.limit) | (errors.nonfinite > 0)
        if self.watch is not None:
            self.watch(keys[different], errors.ratio[different], beyond[different])
        self.first_different = self.first_different or _event(errors, width, different, keys, order, step)
        self.first_beyond = self.first_beyond or _event(errors, width, beyond, keys, order, step)

    @property
    def leans(self) -> tuple[tuple[float, float], tuple[float, float], int]:
        """Mean lean in ulp and its score in standard errors, along the axis and along the signs, and the rows."""
        leans, share = self.samples
        if not len(leans):
            return (0.0, 0.0), (0.0, 0.0), 0
        (axis, axis_score), (sign, sign_score) = lean_score(leans[:, 0]), lean_score(leans[:, 1])
        return (axis * share, axis_score), (sign * share, sign_score), len(leans)

    @property
    def samples(self) -> tuple[Floats, float]:
        """The distinct rows that differ, ``[rows, 5]``, and the share of all rows that differ.

        The columns are lean along the axis, lean along the signs, relative L2, growth, and the share of elements
        that differ.
        """
        if not self._samples:
            return np.empty((0, 5)), 0.0
        rows = np.concatenate(self._samples)
        # Rows that are equal lean by zero: they dilute the mean, and do not make it any less certain.
        share = len(rows) / max(self._kept, 1)
        # Rows of one and the same token have one and the same error; they are one sample, not many.
        return rows[np.unique(rows[:, 2], return_index=True)[1]], share

    @property
    def bias(self) -> tuple[float, float, int]:
        """The larger lean in ulp, signed, its score in standard errors, and the number of distinct rows."""
        axis, sign, rows = self.leans
        return (*max((axis, sign), key=lambda pair: (abs(pair[1]) >= BIAS_Z, abs(pair[0]))), rows)

    @property
    def sign_lean(self) -> float:
        """The mean lean along the values' signs, in ulp; zero unless it is real and above what any tensor may."""
        _, (mean, score), rows = self.leans
        return mean if rows >= BIAS_ROWS and score >= BIAS_Z and abs(mean) > self.bias_limit else 0.0

    @property
    def biased(self) -> bool:
        """Whether a lean is real, and more than it may be; or the tensor stands apart from its siblings."""
        if self.siblings is not None and self.siblings.apart:
            return True
        axis, sign, rows = self.leans
        limits = ((axis, self.bias_limit), (sign, self.sign_limit))
        return rows >= BIAS_ROWS and any(s >= BIAS_Z and abs(mean) > limit for (mean, s), limit in limits)

    @property
    def error_class(self) -> ErrorClass:
        """The class of the tensor over all its rows."""
        if not self.rows:
            return "incomparable"
        if self.nonfinite:
            return "nonfinite"
        if self.ratio > self.limit:
            return "exceeds"
        if self.equal == self.elements:
            return "identical"
        return "biased" if self.biased else "rounding"

    @property
    def metrics(self) -> Metrics:
        """Over all rows so far."""
        equal = self.equal / self.elements if self.elements else 1.0
        return Metrics(
            equal, self.ratio, self.relative_l2, self.max_abs, self.max_ulp, self.bias[0], self.nonfinite,
            self.worst, self.siblings,
        )  # fmt: skip


def _worst(errors: RowErrors, row: int, keys: Array, step: Array) -> Worst:
    request, sequence, position = keys[row].tolist()
    values = float(errors.golden[row]), float(errors.candidate[row])
    return Worst(request, sequence, position, int(errors.at[row]), *values, int(step[row]))


def _event(errors: RowErrors, width: int, shown: Array, keys: Array, order: Array, step: Array) -> Event | None:
    """The first call among the rows that are ``shown``, with the metrics of all its differing rows."""
    if not shown.any():
        return None
    first = int(order[shown].min())
    rows = np.flatnonzero(order == first)
    peak = int(rows[errors.ratio[rows].argmax()])
    leans = errors.sign_lean[rows].mean(), errors.axis_lean[rows].mean()
    metrics = Metrics(
        equal=float(errors.equal[rows].sum()) / (len(rows) * width),
        allowance_ratio=float(errors.ratio[rows].max()),
        relative_l2=float(errors.relative_l2[rows].max()),
        max_abs=float(errors.max_abs[rows].max()),
        max_ulp=float(errors.max_ulp[rows].max()),
        bias_ulp=float(max(leans, key=abs)),
        nonfinite=int(errors.nonfinite[rows].sum()),
        worst=_worst(errors, peak, keys, step),
    )
    return Event(first, int(step[peak]), metrics)


def compare_rows(
    tally: Tally, golden: Array, candidate: Array, dtypes: tuple[str, str], tolerance: tuple[float, float],
    magnitude: Callable[[Array], Array], place: Callable[[], tuple[Array, Array, Array]],
) -> None:  # fmt: skip
    """Adds rows to ``tally``: equal ones by count, the others slice by slice with bounded memory.

    Args:
        place: gives the rows' keys, orders and steps (see `Tally.add`), which equal rows do not need.
    """
    width = golden.shape[1]
    different = differing(golden, candidate) if dtypes[0] == dtypes[1] else np.ones(len(golden), bool)
    rows = np.flatnonzero(different)
    tally.add_equal(len(golden) - len(rows), width)
    if not len(rows):
        return
    keys, order, step = place()
    stride = max(1, SLICE // max(width, 1))
    for start in range(0, len(rows), stride):
        part: Array | slice = rows[start : start + stride]
        if len(rows) == len(golden):
            part = slice(start, start + stride)  # no copy
        errors = row_errors(golden[part], candidate[part], *dtypes, tolerance, magnitude, tally.peak)
        tally.add(errors, width, keys[part], order[part], step[part])
