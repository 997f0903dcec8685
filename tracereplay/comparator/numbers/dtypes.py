"""Dtypes by torch's names: their eps, and their values as float32 or float64."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "coarser", "eps", "is_float", "smallest", "widen"]

Array: TypeAlias = npt.NDArray[Any]

# torch.finfo(dtype).eps: the distance from 1 to the next number; and the smallest number above zero.
_EPS = {
    "float64": (2.0**-52, 2.0**-1074),
    "float32": (2.0**-23, 2.0**-149),
    "float16": (2.0**-10, 2.0**-24),
    "bfloat16": (2.0**-7, 2.0**-133),
    "float8_e4m3fn": (2.0**-3, 2.0**-9),
    "float8_e4m3fnuz": (2.0**-3, 2.0**-10),
    "float8_e5m2": (2.0**-2, 2.0**-16),
    "float8_e5m2fnuz": (2.0**-2, 2.0**-17),
    "float8_e8m0fnu": (1.0, 2.0**-127),
}


def is_float(dtype: str) -> bool:
    """Whether values of ``dtype`` are rounded, and so are judged by a tolerance."""
    return dtype in _EPS


def eps(dtype: str) -> float:
    """Distance from 1 to the next number."""
    return _EPS[dtype][0]


def smallest(dtype: str) -> float:
    """The smallest number above zero, subnormal ones included."""
    return _EPS[dtype][1]


def coarser(a: str, b: str) -> str:
    """The one with the larger eps: what is known of a value that passed through both."""
    return a if eps(a) >= eps(b) else b


def widen(x: Array, dtype: str) -> Array:
    """The values as float32, or as float64 where they need it.

    Why not ``astype`` for bfloat16: it is the upper half of a float32, and shifting is several times faster.
    """
    if dtype == "bfloat16":
        return (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype in ("float32", "float64"):
        return x
    return x.astype(np.float32)
