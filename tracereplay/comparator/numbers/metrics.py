"""How two tables of rows differ: numbers for each row, collected in one `Tally` per tensor.

Everything is vectorized over rows, and only rows that differ in any bit are examined closely.

**Trimmed RMS** of a golden row: the RMS; then three times again without the elements that exceed four times
the last one. On values without outliers it is the RMS; a few channels a thousand times larger do not move it.

**Ratio** of a row: its largest error over that element's allowance, divided by the **peak** that a single element
may reach (1, or more where an operator is a network of its own); or, where that is more, the RMS of all these
quotients over 0.4. The second finds what all elements share, such as a scale that is 3 % off, which no single
element shows clearly in bfloat16: honest roundings are independent, and their quotients have an RMS between 0.05
and 0.2 (TOLERANCES.md). Why quotients and not errors: one outlier channel would outweigh the row.

**Lean** of a row, in units of the last place (ulp): the mean of ``(candidate - golden) / ulp``, each clipped
to +-2, once along the axis and once along the sign of the values. The ulp is that of the larger of the two
values and the sign that of their sum, so that exchanging the two sides only turns the sign: what two honest
roundings differ by leans nowhere. Clipping keeps a cancelled element near zero, hundreds of its own ulp off,
from outweighing all others. From the lean along the axis is taken what the one along the signs brings with it
where most values have one sign (its mean sign times it), so that truncation leans along the signs alone.

**Growth** of a row, in ulp: how much of its lean along the signs grows with the mantissa, the slope of the errors
over the mantissas (1 to 2) times the mean mantissa. A factor is off by more ulp where the mantissa is larger, in
proportion, so that its growth is its lean; a cast that truncates drops half an ulp at every mantissa, and its
growth is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.numbers.dtypes import Array, coarser, eps, is_float, smallest, widen
from tracereplay.verdict.measures import BEYOND, ErrorClass, Metrics, Siblings, Worst

__all__ = [
    "BIAS_ROWS", "BIAS_ULP", "BIAS_Z", "SIGN_ULP", "Event", "Floats", "RowErrors", "Tally", "compare_rows",
    "differing", "lean_score", "normal_deviate", "onset_of", "row_errors", "trimmed_rms",
]  # fmt: skip

Floats = npt.NDArray[np.float64]

TRIM_AT = 4.0  # times the RMS
TRIM_ROUNDS = 3
TOGETHER = 0.4
TOGETHER_WIDTH = 32  # elements; fewer do not average out
LEAN_CLIP = 2.0  # ulp

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
class RowErrors:
    """Errors of the rows that differ, in parallel arrays ``[rows]``.

    Args:
        ratio: of errors to allowances; infinite where a value is not finite on one side only.
        at: the element with the largest error for its allowance.
        golden, candidate: the values there.
        max_abs, max_ulp, relative_l2: as in `Metrics`.
        axis_lean, sign_lean: mean clipped error in ulp, along the axis and along the sign.
        growth: of the lean along the signs with the mantissa, in ulp.
        nonfinite: elements that are finite on one side only, or not finite and not the same.
        equal: elements that are bitwise equal.
    """

    ratio: Floats
    at: npt.NDArray[np.int64]
    golden: Floats
    candidate: Floats
    max_abs: Floats
    max_ulp: Floats
    relative_l2: Floats
    axis_lean: Floats
    sign_lean: Floats
    growth: Floats
    nonfinite: npt.NDArray[np.int64]
    equal: npt.NDArray[np.int64]


def trimmed_rms(x: Array) -> Floats:
    """Of each row's magnitudes ``[rows, width]`` (not negative), ``[rows]``."""
    squares = np.square(x, dtype=np.float64)
    return _trimmed(squares, squares.mean(axis=1))


def _trimmed(squares: Floats, mean: Floats) -> Floats:
    """The trimmed RMS of rows, given their squares and the means of these."""
    mean = mean.copy()
    rows = np.arange(len(mean))  # those with an outlier
    for _ in range(TRIM_ROUNDS):
        limit = TRIM_AT**2 * mean[rows]
        outliers = squares.max(axis=1) > limit
        if not outliers.any():
            break
        if not outliers.all():
            rows, squares, limit = rows[outliers], squares[outliers], limit[outliers]
        kept = squares <= limit[:, None]
        mean[rows] = np.where(kept, squares, 0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    root: Floats = np.sqrt(mean)
    return root


def row_errors(
    golden: Array,
    candidate: Array,
    golden_dtype: str,
    candidate_dtype: str,
    tolerance: tuple[float, float],
    magnitude: Callable[[Array], Array] = np.abs,
    peak: float = 1.0,
) -> RowErrors:
    """Compares rows that differ.

    Args:
        golden, candidate: ``[rows, width]`` in storage dtype.
        golden_dtype, candidate_dtype: torch's names; both float, or both not.
        tolerance: factors ``(a, b)``; see `verdict.Tolerance`.
        magnitude: of golden's elements, as the allowance takes it.
        peak: how many times its allowance a single element may be off; at least 1.
    """
    same = _bits_equal(golden, candidate) if golden_dtype == candidate_dtype else golden == candidate
    equal = same.sum(axis=1)
    if not is_float(golden_dtype):
        return _exact_errors(golden, candidate, same, equal)
    unit = coarser(golden_dtype, candidate_dtype)
    g, c = widen(golden, golden_dtype), widen(candidate, candidate_dtype)
    wide = np.result_type(g, c)
    g, c, broken = _finite(g.astype(wide, copy=False), c.astype(wide, copy=False), same)
    plain = magnitude is np.abs
    size, other = magnitude(g), magnitude(c)
    squares = np.square(size, dtype=np.float64)
    rms = _trimmed(squares, squares.mean(axis=1))
    norms = np.sqrt((squares if plain else np.square(g, dtype=np.float64)).sum(axis=1))
    del squares
    a, b = tolerance
    difference = c - g
    error = np.abs(difference)
    allowance = eps(unit) * (a * size + (b * rms)[:, None].astype(wide)) + a * smallest(unit)
    if allowance.min(initial=1) > 0:
        ratio = error / allowance
    else:
        ratio = np.divide(error, allowance, out=np.where(error > 0, np.inf, 0).astype(wide), where=allowance > 0)
    if broken.any():
        ratio[broken] = np.inf
    at = ratio.argmax(axis=1)
    rows = np.arange(len(at))
    larger = np.maximum(size, other)
    counted = difference / _ulp(larger, unit)
    ulps = counted if plain else difference / _ulp(np.maximum(np.abs(g), np.abs(c)), unit)
    clipped = np.clip(counted, -LEAN_CLIP, LEAN_CLIP)
    signs = np.sign(g + c)
    along = clipped * signs
    sign_lean = along.mean(axis=1, dtype=np.float64)
    return RowErrors(
        ratio=np.maximum(ratio[rows, at].astype(np.float64) / _peak(ratio, peak), _together(ratio)),
        at=at,
        golden=_values(golden, golden_dtype, rows, at),
        candidate=_values(candidate, candidate_dtype, rows, at),
        max_abs=error.max(axis=1).astype(np.float64),
        max_ulp=np.maximum(ulps.max(axis=1), -ulps.min(axis=1)).astype(np.float64),
        relative_l2=_norm_ratio(error, norms),
        axis_lean=clipped.mean(axis=1, dtype=np.float64) - sign_lean * signs.mean(axis=1, dtype=np.float64),
        sign_lean=sign_lean,
        growth=_growth(along, larger),
        nonfinite=broken.sum(axis=1),
        equal=equal,
    )


def _peak(ratio: Array, peak: float) -> float:
    """What single elements may reach: 1 in a row too short for all to be judged together."""
    return peak if ratio.shape[1] >= TOGETHER_WIDTH else 1.0


def _together(ratio: Array) -> Floats:
    """The RMS of each row's quotients over what it may be, ``[rows]``."""
    if ratio.shape[1] < TOGETHER_WIDTH:
        return np.zeros(len(ratio))
    found: Floats = np.sqrt(np.square(ratio, dtype=np.float64).mean(axis=1)) / TOGETHER
    return found


def _values(x: Array, dtype: str, rows: Array, at: Array) -> Floats:
    return widen(x[rows, at], dtype).astype(np.float64)


def _bits_equal(golden: Array, candidate: Array) -> Array:
    """Elementwise equality of the bits: two NaNs are equal, 0 and -0 are not."""
    bits = np.dtype(f"u{golden.dtype.itemsize}")
    same: Array = np.ascontiguousarray(golden).view(bits) == np.ascontiguousarray(candidate).view(bits)
    return same


def _finite(g: Array, c: Array, same: Array) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Both with zeros where either is not finite, and where such elements differ."""
    with np.errstate(invalid="ignore", over="ignore"):
        top = np.maximum(np.abs(g).max(initial=0), np.abs(c).max(initial=0))  # NaN if there is one
    if np.isfinite(top):
        return g, c, np.zeros(g.shape, bool)
    bad = ~(np.isfinite(g) & np.isfinite(c))
    agree = same | (np.isnan(g) & np.isnan(c)) | (g == c)
    return np.where(bad, 0, g), np.where(bad, 0, c), bad & ~agree


def _norm_ratio(above: Array, under: Floats) -> Floats:
    """L2 norm of each row, summed in float64, over another norm of it, ``[rows]``."""
    over = np.sqrt(np.square(above, dtype=np.float64).sum(axis=1))
    ratio: Floats = np.divide(over, under, out=np.where(over > 0, np.inf, 0.0), where=under > 0)
    return ratio


def _ulp(size: Array, dtype: str) -> Array:
    """Distance to the next number of ``dtype`` above each magnitude."""
    floor = max(smallest(dtype), 1e-44) if size.dtype == np.float32 else smallest(dtype)
    ulp: Array = np.maximum(_power(size) * size.dtype.type(eps(dtype)), size.dtype.type(floor))
    return ulp


def _power(size: Array) -> Array:
    """The power of two at or below each magnitude; of zero, and of what is subnormal, any below it."""
    if size.dtype == np.float32:
        power: Array = (np.ascontiguousarray(size).view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    else:
        power = np.ldexp(1.0, np.frexp(size)[1] - 1)
    return power


def _mantissa(size: Array) -> Array:
    """From 1 to 2, of each magnitude above zero."""
    if size.dtype == np.float32:
        bits = np.ascontiguousarray(size).view(np.uint32) & np.uint32(0x007FFFFF)
        mantissa: Array = (bits | np.uint32(0x3F800000)).view(np.float32)
    else:
        mantissa = 2 * np.frexp(size)[0]
    return mantissa


def _growth(along: Array, size: Array) -> Floats:
    """How much of each row's lean grows with the mantissa, in ulp, ``[rows]``; see the module.

    Args:
        along: errors in ulp along the values' signs, ``[rows, width]``.
        size: magnitudes. Zeros have no mantissa: they dilute the growth as they do the lean.
    """
    middle = size.dtype.type(1.5)
    if size.min(initial=1) > 0:
        above, count = _mantissa(size) - middle, np.full(len(size), size.shape[1])
    else:
        there = size > 0
        above, count = (_mantissa(size) - middle) * there, np.maximum(there.sum(axis=1), 1)
    mean = above.sum(axis=1, dtype=np.float64) / count
    squares = np.einsum("ij,ij->i", above, above) - count * mean**2
    products = np.einsum("ij,ij->i", along, above) - along.sum(axis=1, dtype=np.float64) * mean
    enough = squares > 1e-6 * count  # all of a row's mantissas may be the same
    grown = products * (mean + middle) * count / size.shape[1]
    growth: Floats = np.divide(grown, squares, out=np.zeros(len(size)), where=enough)
    return growth


def _exact_errors(golden: Array, candidate: Array, same: Array, equal: Array) -> RowErrors:
    """Errors of integers and booleans: any difference is beyond every allowance."""
    at = (~same).argmax(axis=1)
    rows = np.arange(len(at))
    g, c = (x[rows, at].astype(np.float64) for x in (golden, candidate))
    differs = np.where(equal < golden.shape[1], np.inf, 0.0)
    zero, none = np.zeros(len(at)), np.zeros(len(at), np.int64)
    apart = np.abs(golden.astype(np.float64) - candidate.astype(np.float64)).max(axis=1)
    return RowErrors(differs, at, g, c, apart, zero, zero, zero, zero, zero, none, equal)


def lean_score(leans: Floats) -> tuple[float, float]:
    """Mean lean of the rows and how many standard errors it is from zero, as a normal deviate.

    Rows are the samples, since elements of a row share errors (one reciprocal root, one softmax sum).
    """
    count = len(leans)
    if count < 2:
        return float(leans.mean()) if count else 0.0, 0.0
    mean, error = float(leans.mean()), float(leans.std(ddof=1)) / math.sqrt(count)
    return mean, math.inf if error == 0.0 else normal_deviate(mean / error, count - 1)


def normal_deviate(t: float, n: int) -> float:
    """The normal deviate that is as rare as a t statistic with n degrees of freedom, without its sign.

    It is Wallace's approximation (1959), good to 0.1 where it matters.
    """
    deviate: float = (8 * n + 1) / (8 * n + 3) * math.sqrt(n * math.log1p(t * t / n))
    return deviate


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


def differing(golden: Array, candidate: Array) -> npt.NDArray[np.bool_]:
    """Which rows differ in any bit, ``[rows]``; both ``[rows, width]`` of one dtype."""
    found: npt.NDArray[np.bool_] = np.any(~_bits_equal(golden, candidate), axis=1)
    return found


def compare_rows(
    tally: Tally, golden: Array, candidate: Array, dtypes: tuple[str, str], tolerance: tuple[float, float],
    magnitude: Callable[[Array], Array], keys: Array, order: Array, step: Array,
) -> None:  # fmt: skip
    """Adds rows to ``tally``: equal ones by count, the others slice by slice with bounded memory."""
    width = golden.shape[1]
    different = differing(golden, candidate) if dtypes[0] == dtypes[1] else np.ones(len(golden), bool)
    tally.add_equal(int((~different).sum()), width)
    rows = np.flatnonzero(different)
    stride = max(1, SLICE // max(width, 1))
    for start in range(0, len(rows), stride):
        part: Array | slice = rows[start : start + stride]
        if len(rows) == len(golden):
            part = slice(start, start + stride)  # no copy
        errors = row_errors(golden[part], candidate[part], *dtypes, tolerance, magnitude, tally.peak)
        tally.add(errors, width, keys[part], order[part], step[part])
