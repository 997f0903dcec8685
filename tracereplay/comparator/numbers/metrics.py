"""How rows of two tables differ: numbers for each row, which `tally` collects.

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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.numbers.dtypes import Array, coarser, eps, is_float, smallest, widen

__all__ = ["Floats", "RowErrors", "differing", "lean_score", "normal_deviate", "row_errors", "trimmed_rms"]

Floats = npt.NDArray[np.float64]

TRIM_AT = 4.0  # times the RMS
TRIM_ROUNDS = 3
TOGETHER = 0.4
TOGETHER_WIDTH = 32  # elements; fewer do not average out
LEAN_CLIP = 2.0  # ulp


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


def differing(golden: Array, candidate: Array) -> npt.NDArray[np.bool_]:
    """Which rows differ in any bit, ``[rows]``; both ``[rows, width]`` of one dtype."""
    same = _bits_equal(golden, candidate)
    if same.all():
        return np.zeros(len(same), bool)
    found: npt.NDArray[np.bool_] = np.any(~same, axis=1)
    return found
