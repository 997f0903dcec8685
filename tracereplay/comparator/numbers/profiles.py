"""The error profile of a tensor, and the signature of its lean: what siblings are compared by.

    tensor ──Tally──▶ Profile ──signature_of──▶ truncation | factor

A lean of a quarter of an ulp can be a rounding convention or a fault, and its size does not tell which: a cast
that truncates half of the values leans by that much, and so does a factor of 1.0014. **How it depends on the
mantissa** does. A cast drops the same part of an ulp at every mantissa; a factor adds twice as many ulp to 1.99 as
to 1.
The growth (`numbers.metrics`) is zero for the one and the lean itself for the other.

*Why is half an ulp of the lean left out?* A fused operator rounds its intermediate results too, and truncates
these as well. An intermediate result that is too small by a part of its own ulp makes the final one too small by
a factor. So where everything truncates, half an ulp comes from the last cast, and what is above it grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tracereplay.comparator.numbers.dtypes import eps
from tracereplay.comparator.numbers.metrics import Floats
from tracereplay.comparator.numbers.tally import BIAS_Z, Tally
from tracereplay.verdict.measures import Measure, Signature

__all__ = ["CAST_ULP", "MEASURES", "Mean", "Profile", "pooled", "profile_of", "signature_of"]

CAST_ULP = 0.5  # what one cast that truncates leans by
GROWS = 2 / 3  # of what one cast leans by: from here on its growth is a factor's
MEASURES: tuple[Measure, ...] = ("bias_ulp", "differing", "relative_l2")


class Mean(NamedTuple):
    """A mean over rows, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Means over the rows of a tensor, rows that are equal included.

    Args:
        bias_ulp: lean along the values' signs.
        differing: share of elements that are not bitwise equal.
        relative_l2: of a row, in eps of the dtype.
        growth: of the lean with the mantissa, in ulp.
    """

    bias_ulp: Mean
    differing: Mean
    relative_l2: Mean
    growth: Mean

    def __getitem__(self, measure: Measure) -> Mean:
        return {
            "bias_ulp": self.bias_ulp, "differing": self.differing, "relative_l2": self.relative_l2,
        }[measure]  # fmt: skip


def profile_of(tally: Tally, dtype: str) -> Profile:
    """The profile of what was tallied of a tensor of a float ``dtype``."""
    rows, share = tally.samples
    _, lean, l2, growth, differing = (_mean(column, share) for column in rows.T)
    return Profile(lean, differing, Mean(l2.value / eps(dtype), l2.error / eps(dtype)), growth)


def _mean(rows: Floats, share: float) -> Mean:
    """Over all rows, of which a ``share`` differs: the others are zero, for certain."""
    if not len(rows):
        return Mean(0.0, 0.0)
    error = float(rows.std(ddof=1)) / math.sqrt(len(rows)) if len(rows) > 1 else math.inf
    return Mean(share * float(rows.mean()), share * error)


def pooled(profiles: Sequence[Profile]) -> Profile:
    """The mean of several, as if they were one tensor's."""
    columns = zip(*((p.bias_ulp, p.differing, p.relative_l2, p.growth) for p in profiles), strict=True)
    return Profile(*map(_pool, columns))


def _pool(means: Sequence[Mean]) -> Mean:
    return Mean(sum(m.value for m in means) / len(means), math.hypot(*(m.error for m in means)) / len(means))


def signature_of(profile: Profile) -> Signature:
    """Whether the lean is a cast's or a factor's; a cast's unless that can be told from chance."""
    lean = abs(profile.bias_ulp.value)
    growth = math.copysign(1.0, profile.bias_ulp.value) * profile.growth.value - max(lean - CAST_ULP, 0.0)
    grows = growth > GROWS * min(lean, CAST_ULP) and growth > BIAS_Z * profile.growth.error
    return "factor" if grows else "truncation"
