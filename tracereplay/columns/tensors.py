"""One tensor of one call, as rows: over all ranks that hold a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.dtypes import itemsize
from tracereplay.errors import DamagedTrace
from tracereplay.event import Layout, Value, ValueSide
from tracereplay.trace.shards import join

__all__ = ["LANE", "Array", "Ints", "TableKey", "Tensor", "as_rows", "edges"]

Array: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]

# A row's number is its finder number plus LANE times its lane: a site that is called twice in a step with
# the same rows has two lanes, and its first calls are compared with first calls.
LANE = 1 << 40

# Inputs come before outputs; what was written in place is an output.
_SIDES: Mapping[ValueSide, int] = {"in": 0, "out": 1, "written": 2}


@dataclass(frozen=True, slots=True)
class TableKey:
    """Which tensor of which operator."""

    site: str
    side: ValueSide
    index: int

    @property
    def rank(self) -> tuple[int, int]:
        """Order among the tensors of one call."""
        return _SIDES[self.side], self.index


@dataclass(frozen=True, slots=True)
class Tensor:
    """One call's tensor, over all ranks that hold a part of it.

    Args:
        values: one for each rank where ``layout`` is given, else rank 0's.
        layout: how the ranks' parts are joined.
        axis: the dimension of the rows, 0 or 1 (positions of multimodal rotary embeddings are ``[3, rows]``).
    """

    values: tuple[Value, ...]
    layout: Layout | None
    axis: int

    @property
    def dtype(self) -> str:
        return self.values[0].dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Sizes of one row, all ranks together."""
        shape = list(self.values[0].shape)
        if self.layout is not None:
            if not -len(shape) <= self.layout.dim < len(shape) or not sum(self.layout.parts):
                raise DamagedTrace(f"A tensor of shape {tuple(shape)} cannot be cut as {self.layout} says.")
            shape[self.layout.dim] = _whole_size(self.layout, shape[self.layout.dim], len(self.values))
        return tuple(shape[: self.axis] + shape[self.axis + 1 :])

    @property
    def width(self) -> int:
        """Elements of one row."""
        return int(np.prod(self.row_shape, dtype=np.int64))

    @property
    def tail(self) -> tuple[int, ...]:
        """Sizes that decide the width: of one rank's part, without the rows."""
        shape = self.values[0].shape
        return shape[1:] if self.axis == 0 else (*shape[:1], *shape[2:])

    def load(self, *, bits: bool = False) -> Array:
        """The tensor in its storage dtype, ``[rows, width]``; see `whole`."""
        return as_rows(self.whole(bits=bits), self.axis)

    def whole(self, *, bits: bool = False) -> Array:
        """The tensor in its own shape, all ranks' parts joined.

        Args:
            bits: as integers of the size of its elements.
        """
        pieces = [_bits(value) if bits else value.numpy() for value in self.values]
        try:
            return pieces[0] if self.layout is None else join(pieces, self.layout)
        except (ValueError, IndexError) as error:
            raise DamagedTrace(f"The ranks' parts of a tensor do not fit together: {error}.") from error


def edges(*columns: Ints) -> list[int]:
    """Where runs of equal items begin, and where the last one ends; of columns in parallel, at least one item."""
    cut = np.zeros(len(columns[0]) - 1, bool)
    for column in columns:
        cut |= column[1:] != column[:-1]
    return [0, *(np.flatnonzero(cut) + 1).tolist(), len(columns[0])]


def as_rows(x: Array, axis: int) -> Array:
    """A tensor as ``[rows, width]``; the rows are along ``axis``."""
    x = np.moveaxis(x, axis, 0) if axis else x
    return x.reshape(x.shape[0], -1) if x.ndim != 1 else x.reshape(-1, 1)


def _whole_size(layout: Layout, size: int, ranks: int) -> int:
    unit = size // sum(layout.parts)
    pairs = zip(layout.parts, layout.copies, strict=True)
    return sum(unit * part * -(-ranks // copies) for part, copies in pairs)


def _bits(value: Value) -> Array:
    return np.frombuffer(value.load(), np.dtype(f"i{itemsize(value.dtype)}")).reshape(value.shape)
