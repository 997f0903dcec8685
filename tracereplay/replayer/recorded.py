"""The recorded tensors of one tap, read window by window as a generation goes on.

Golden's steps are read in windows of a few megabytes (`columns.store`), of which the last ones are kept. A
candidate may compose its batches otherwise: then a step's rows come from several windows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tracereplay.columns.column import Pattern, TensorColumn
from tracereplay.columns.store import Columns
from tracereplay.columns.tensors import Tensor
from tracereplay.event import Layout
from tracereplay.trace import shards

__all__ = ["Added", "Found", "Ints", "Nothing", "Recorded", "Tap", "Unit", "Wanted", "Windows", "wanted_rows"]

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[np.generic]
Found = tuple[torch.Tensor, Ints]  # rows of a tap, and for each wanted row its index in them (-1: none)
Unit = tuple[int, int]  # a window, and which of a tap's tensors in each of its steps


class Wanted(NamedTuple):
    """Rows of a step, where a pattern has them. The arrays run in parallel, one item for each known row.

    Args:
        total: rows, known and unknown.
        known: places of the known ones.
        units: those that they are in.
        unit: index into ``units``.
        step: place in the window.
        at: row of the tensor.
    """

    total: int
    known: Ints
    units: Sequence[Unit]
    unit: Ints
    step: Ints
    at: Ints


def wanted_rows(columns: Columns, pattern: Pattern, rows: Ints) -> Wanted:
    """Where rows are.

    Args:
        columns, pattern: of the pass, and of the tap.
        rows: for each row its index in the pattern, -1 where it has none; ``int64 [rows]``.
    """
    known = np.flatnonzero(rows >= 0)
    tensors, at = pattern.tensor[rows[known]], pattern.at[rows[known]]
    steps, occurrence = pattern.steps[tensors], pattern.occurrence[tensors]
    window = columns.blocks[1][steps]
    pairs = list(zip(window.tolist(), occurrence.tolist(), strict=True))
    units = list(dict.fromkeys(pairs))
    places = {unit: i for i, unit in enumerate(units)}
    unit = np.array([places[pair] for pair in pairs], np.int64)
    return Wanted(len(rows), known, units, unit, steps - columns.windows[window], at)


class Part(NamedTuple):
    """A tap's tensors in all steps of a unit.

    Args:
        data: in host memory, ``[steps * rows, ...]``.
        rows: of a step, padding included.
    """

    data: torch.Tensor
    rows: int


class Tap(Protocol):
    """What a tap is given."""

    @property
    def pattern(self) -> Pattern:
        """Where its rows are."""

    def find(self, wanted: Wanted) -> Found | None:
        """Rows in which the wanted ones are, and where."""


class Windows:
    """What was read of the last windows.

    Args:
        kept: how many are kept.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._read: OrderedDict[int, dict[tuple[int, int], Part]] = OrderedDict()

    def get(self, tap: Windowed, unit: Unit) -> Part:
        """A tap's tensors in a unit."""
        window, occurrence = unit
        read = self._read.get(window)
        if read is None:
            read = self._read[window] = {}
            if len(self._read) > self._kept:
                self._read.popitem(last=False)
        else:
            self._read.move_to_end(window)
        found = read.get((id(tap), occurrence))
        if found is None:
            found = read[id(tap), occurrence] = tap.read(unit)
        return found


class Windowed(ABC):
    """A tap whose tensors are kept by window.

    Args:
        windows: keeps them.
    """

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    @abstractmethod
    def read(self, unit: Unit) -> Part:
        """Its tensors in all steps of a unit."""

    def find(self, wanted: Wanted) -> Found | None:
        """See `Tap`."""
        if not wanted.units:
            return None
        parts = [self.windows.get(self, unit) for unit in wanted.units]
        if len({(part.data.dtype, part.data.shape[1:]) for part in parts}) > 1:
            return None
        rows = np.array([part.rows for part in parts])[wanted.unit]
        places = np.full(wanted.total, -1, np.int64)
        if len(parts) == 1:
            places[wanted.known] = wanted.step * rows + wanted.at
            return parts[0].data, places
        at = (wanted.step * rows + wanted.at).tolist()
        picked = torch.stack([parts[unit].data[i] for unit, i in zip(wanted.unit.tolist(), at, strict=True)])
        places[wanted.known] = np.arange(len(picked))
        return picked, places


class Recorded(Windowed):
    """A tensor of an operator's, as golden recorded it.

    Args:
        column: its tensors.
        layout: how this rank's is cut out of it; None if it is not cut.
        shard: this rank, and how many there are.
        windows: keeps what was read.
    """

    def __init__(
        self, column: TensorColumn, layout: Layout | None, shard: tuple[int, int], windows: Windows
    ) -> None:  # fmt: skip
        super().__init__(windows)
        self._column, self._layout, self._shard = column, layout, shard

    @property
    def pattern(self) -> Pattern:
        """See `Tap`."""
        return self._column.pattern

    @property
    def tails(self) -> set[tuple[int, ...]]:
        """Shapes of a row, of all its tensors as golden's ranks have them."""
        return {tensor.row_shape for tensor in self._column.kinds}

    def read(self, unit: Unit) -> Part:
        """See `Windowed`."""
        window, occurrence = unit
        columns = self._column.columns
        start, stop = columns.windows[window : window + 2].tolist()
        tensor: Tensor = self._column.occurrences[int(columns.kind_of[start])][occurrence].tensor
        array = None if self._layout is not None else columns.stacks.whole(window, tensor)
        if array is None:
            array = np.stack([self._one(columns, tensor, step) for step in range(start, stop)])
        elif not array.flags.writeable:  # a view with strides of its own
            array = array.copy()
        read = torch.from_numpy(array).view(getattr(torch, tensor.dtype))
        return Part(read.flatten(0, 1), read.shape[1])

    def _one(self, columns: Columns, tensor: Tensor, step: int) -> Array:
        columns.cursor.step = step
        whole = tensor.whole(bits=True)
        return whole if self._layout is None else shards.cut(whole, self._layout, *self._shard)


class Added(Windowed):
    """What two taps add up to, rounded once.

    Args:
        x, residual: taps of the same calls.
        windows: keeps what was read.
    """

    def __init__(self, x: Recorded, residual: Recorded, windows: Windows) -> None:
        super().__init__(windows)
        self._x, self._residual = x, residual

    @property
    def pattern(self) -> Pattern:
        """See `Tap`."""
        return self._x.pattern

    def read(self, unit: Unit) -> Part:
        """See `Windowed`."""
        (one, rows), (other, _) = (self.windows.get(tap, unit) for tap in (self._x, self._residual))
        return Part((one.double() + other.double()).to(one.dtype), rows)


@dataclass(eq=False)
class Nothing:
    """A negative zero for each row of another tap: added to anything, it changes no bit of it."""

    like: Tap

    @property
    def pattern(self) -> Pattern:
        """See `Tap`."""
        return self.like.pattern

    def find(self, wanted: Wanted) -> Found | None:
        """See `Tap`."""
        found = self.like.find(wanted)
        return None if found is None else (torch.full_like(found[0][:1], -0.0), np.minimum(found[1], 0))
