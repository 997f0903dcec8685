"""How the toy's versions round. Values are float64 that fit the dtype exactly."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.dtypes import numpy_dtype

__all__ = ["Array", "Numerics", "Rounding", "epsilon"]

Array: TypeAlias = npt.NDArray[Any]
Rounding: TypeAlias = Literal["once", "twice", "truncate"]


class Numerics:
    """The arithmetic of one "engine version".

    Args:
        dtype: what operators' results are rounded to.
        rounding: see `runs.record`.
    """

    def __init__(self, dtype: str, rounding: Rounding) -> None:
        self.dtype, self.rounding = dtype, rounding
        self.stored = numpy_dtype(dtype)

    def nearest(self, x: Array) -> Array:
        """To the nearest value of the dtype, kept as float64."""
        return np.asarray(x).astype(self.stored).astype(np.float64)

    def rounded(self, x: Array) -> Array:
        """To a value of the dtype, kept as float64: the nearest, or the next towards zero."""
        near = self.nearest(x)
        if self.rounding != "truncate":
            return near
        lower = np.nextafter(near.astype(self.stored), self.stored.type(0)).astype(np.float64)
        return np.where(np.abs(near) > np.abs(x), lower, near)

    def between(self, x: Array) -> Array:
        """An intermediate result: rounded by the version that rounds twice."""
        return self.rounded(x) if self.rounding == "twice" else x


def epsilon(dtype: np.dtype[Any]) -> float:
    """Distance from 1 to the next number."""
    if dtype.name == "bfloat16":
        return 2.0**-7
    return float(np.finfo(dtype).eps)
