"""Dtypes by torch's names: their sizes, their names in safetensors, and numpy's equivalents.

One table for both sides; it needs no torch. Names are torch's without the prefix: ``bfloat16``.
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DTYPES", "Dtype", "itemsize", "nbytes", "numpy_dtype"]


class Dtype(NamedTuple):
    """How elements of a dtype are stored.

    Args:
        itemsize: bytes of an element.
        safetensors: its name in a safetensors header; None where that format has none (stored as ``U8``).
        word: bytes of the machine numbers an element is made of: a complex element is two of them.
    """

    itemsize: int
    safetensors: str | None
    word: int


DTYPES: dict[str, Dtype] = {
    "bool": Dtype(1, "BOOL", 1),
    "uint8": Dtype(1, "U8", 1),
    "int8": Dtype(1, "I8", 1),
    "uint16": Dtype(2, "U16", 2),
    "int16": Dtype(2, "I16", 2),
    "uint32": Dtype(4, "U32", 4),
    "int32": Dtype(4, "I32", 4),
    "uint64": Dtype(8, "U64", 8),
    "int64": Dtype(8, "I64", 8),
    "float16": Dtype(2, "F16", 2),
    "bfloat16": Dtype(2, "BF16", 2),
    "float32": Dtype(4, "F32", 4),
    "float64": Dtype(8, "F64", 8),
    "float8_e4m3fn": Dtype(1, "F8_E4M3", 1),
    "float8_e5m2": Dtype(1, "F8_E5M2", 1),
    "float8_e8m0fnu": Dtype(1, "F8_E8M0", 1),
    "float8_e4m3fnuz": Dtype(1, None, 1),
    "float8_e5m2fnuz": Dtype(1, None, 1),
    "float4_e2m1fn_x2": Dtype(1, None, 1),
    "complex32": Dtype(4, None, 2),
    "complex64": Dtype(8, "C64", 4),
    "complex128": Dtype(16, None, 8),
}


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return DTYPES[dtype].itemsize


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Size of a contiguous tensor in bytes."""
    return DTYPES[dtype].itemsize * math.prod(shape)


@cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype in which a tensor's bytes are read.

    Raises:
        ImportError: it is one of ml_dtypes', which is not installed (engines need not have it; tracereplay brings
            it).
    """
    if dtype == "complex32":
        return np.dtype([("real", "<f2"), ("imag", "<f2")])
    if dtype == "float4_e2m1fn_x2":
        return np.dtype(np.uint8)  # two numbers of four bits
    if dtype.startswith(("bfloat", "float8")):
        found: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), dtype))
        return found
    return np.dtype(dtype)
