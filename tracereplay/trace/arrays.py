"""Values as an operator saw them: with their strides, and sharing memory where they shared it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tracereplay.dtypes import itemsize, nbytes
from tracereplay.errors import DamagedTrace
from tracereplay.event import Value

__all__ = ["restore"]

Array = npt.NDArray[Any]

MAX_EXTENT = 4 << 30  # bytes between the first and the last element that are restored
# Why less for small tensors: a megabyte of zeros, one on each page of memory, would take four gigabytes.
SPREAD = (96 << 20, 64)  # bytes apart in any case, and for each byte that they have
_ALIGN = 16


def restore(values: Sequence[Value]) -> list[Array]:
    """The arrays of ``values``, in memory of their own.

    What is not an element of any value (the gaps between rows of a slice) is zero.

    Args:
        values: of one moment: a call's inputs, or its outputs.

    Raises:
        DamagedTrace: they lie so far apart that nobody can have had them.
    """
    found: list[Array | None] = [None] * len(values)
    together: dict[int, list[int]] = {}
    for i, value in enumerate(values):
        together.setdefault(value.storage if value.storage >= 0 else -1 - i, []).append(i)
    for members in together.values():
        first = min(_first(values[i]) for i in members) // _ALIGN * _ALIGN
        extent = max(_end(values[i]) for i in members) - first
        size = sum(nbytes(values[i].dtype, values[i].shape) for i in members)
        limit = min(MAX_EXTENT, SPREAD[0] + SPREAD[1] * size)
        if extent > limit:
            raise DamagedTrace(
                f"Tensors of {size} bytes that share memory are {extent} bytes apart; the limit is {limit}."
            )
        memory = np.zeros(extent + _ALIGN, np.uint8)
        for i in members:
            found[i] = _laid(values[i], memory, first)
    return [array for array in found if array is not None]


def _first(value: Value) -> int:
    return value.start * itemsize(value.dtype)


def _end(value: Value) -> int:
    if 0 in value.shape:
        return _first(value)
    last = sum((n - 1) * s for n, s in zip(value.shape, value.strides, strict=True))
    return _first(value) + (last + 1) * itemsize(value.dtype)


def _laid(value: Value, memory: Array, first: int) -> Array:
    contiguous = value.numpy()
    width = contiguous.itemsize
    begin = _first(value) - first
    if not contiguous.size:
        return contiguous
    elements = memory[begin : begin + (len(memory) - begin) // width * width].view(contiguous.dtype)
    array = np.lib.stride_tricks.as_strided(elements, value.shape, tuple(s * width for s in value.strides))
    array[...] = contiguous
    return array
