"""A tensor of many steps as one array: the chunks of a window's steps, one above the other.

Steps of one kind put the same tensors at the same bytes of their chunks. So one look at their headers finds a
tensor in all of them, and what numpy does it does for all of them at once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tracereplay.columns.kinds import FormValue
from tracereplay.columns.tensors import Array, Tensor
from tracereplay.dtypes import itemsize, nbytes, numpy_dtype
from tracereplay.trace.chunk import Entry
from tracereplay.trace.codec import DELTA, ROWS

if TYPE_CHECKING:
    from tracereplay.columns.store import Columns

__all__ = ["Stacks", "plain", "same_bytes"]

KEPT = 1024  # windows of which it is remembered whether their chunks are alike
_ALIGN = 64

Place = tuple[int, int, int]  # window, rank, chunk counted from the step's first

Stack = tuple[npt.NDArray[np.uint8], list[Entry]]  # [steps, bytes of a chunk], and where its tensors lie


class Stacks:
    """Chunks of a pass, stacked; the last ones are kept.

    Args:
        columns: of the pass.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._stacks: OrderedDict[tuple[int, int, int], Stack | None] = OrderedDict()
        self._held = 0
        self._room = columns.held
        self._gone: OrderedDict[tuple[int, int, int], None] = OrderedDict()
        self._alike: OrderedDict[tuple[Place, Stacks, Place], bool] = OrderedDict()

    def tensor(self, window: int, tensor: Tensor) -> Array | None:
        """A tensor in all steps of a window in its storage dtype, ``[steps, rows, width]``; see `whole`."""
        whole = self.whole(window, tensor)
        if whole is None:
            return None
        if tensor.axis:
            whole = np.moveaxis(whole, 1 + tensor.axis, 1)
        return whole.reshape(*whole.shape[:2], -1) if whole.ndim > 2 else whole.reshape(*whole.shape, 1)

    def whole(self, window: int, tensor: Tensor) -> Array | None:
        """A tensor in all steps of a window, ``[steps, ...]``.

        None where it is put together of several, or does not lie alike in all steps: it is read step by step then.
        """
        value = plain(tensor)
        if value is None:
            return None
        located = value.located
        stack = self._stack(window, value.rank, located.chunk)
        if stack is None or located.tensor >= len(stack[1]):
            return None
        entry = stack[1][located.tensor]
        size = itemsize(value.dtype)
        dtype = np.dtype(f"i{size}") if self._columns.bits else numpy_dtype(value.dtype)
        shape = tuple(value.shape)
        if not located.strided:
            if nbytes(value.dtype, shape) != entry.end - entry.start or located.skip:
                return None
            whole: Array = stack[0][:, entry.start : entry.end].view(dtype).reshape(len(stack[0]), *shape)
        else:
            begin = entry.start + located.skip
            extent = (1 + sum((n - 1) * s for n, s in zip(shape, located.strides, strict=True))) * size
            if begin + extent > entry.end or nbytes(value.dtype, shape) > entry.end - entry.start or begin % size:
                return None
            flat = stack[0][:, begin : begin + extent].view(dtype)
            whole = np.lib.stride_tricks.as_strided(
                flat, (len(flat), *shape), (flat.strides[0], *(s * size for s in located.strides)), writeable=False
            )
        return whole

    def let_go(self) -> None:
        """Forgets what was read."""
        self._stacks.clear()
        self._alike.clear()
        self._gone.clear()
        self._held = 0

    def alike(self, mine: Place, other: Stacks, theirs: Place) -> bool:
        """Whether a chunk of all steps of a window is stored as another pass's, byte for byte."""
        key = (mine, other, theirs)
        if key not in self._alike:
            self._alike[key] = same_bytes(self.frames(*mine), other.frames(*theirs))
            while len(self._alike) > KEPT:
                self._alike.popitem(last=False)
        return self._alike[key]

    def frames(self, window: int, rank: int, chunk: int) -> list[tuple[Any, int]]:
        """Segments and numbers of a chunk of each of a window's steps."""
        start, stop = self._columns.windows[window : window + 2].tolist()
        firsts = self._columns.first_chunks(start, stop, rank)
        return [(self._columns.segments[rank], first + chunk) for first in firsts]

    def _stack(self, window: int, rank: int, chunk: int) -> Stack | None:
        key = (window, rank, chunk)
        if key in self._stacks:
            self._stacks.move_to_end(key)
            return self._stacks[key]
        if key in self._gone:
            # It was let go of too early: where the other pass has its rows in other steps, more windows are in use
            # at once.
            self._room = min(self._room + self._columns.held // 2, self._columns.most)
        stack = self._stacks[key] = self._read(self.frames(window, rank, chunk))
        self._held += 0 if stack is None else stack[0].nbytes
        while self._held > self._room and len(self._stacks) > 1:
            gone, let = self._stacks.popitem(last=False)
            self._held -= 0 if let is None else let[0].nbytes
            self._gone[gone] = None
            if len(self._gone) > KEPT:
                self._gone.popitem(last=False)
        return stack

    def _read(self, frames: list[tuple[Any, int]]) -> Stack | None:
        stacked: npt.NDArray[np.uint8] | None = None
        entries: list[Entry] = []
        for i, (reader, number) in enumerate(frames):
            data, found = reader.read_chunk(number)
            if stacked is None:
                pitch = -(-len(data) // _ALIGN) * _ALIGN
                if pitch * len(frames) > self._columns.held:
                    return None
                stacked, entries = np.empty((len(frames), pitch), np.uint8), found
                size = len(data)
            elif len(data) != size or (found is not entries and found != entries):
                return None
            stacked[i, :size] = np.frombuffer(data, np.uint8)
        return None if stacked is None else (stacked, entries)


def plain(tensor: Tensor) -> FormValue | None:
    """The value that a tensor is, where that lies in one chunk of its own step; None if it is not one such."""
    value = tensor.values[0]
    if type(tensor) is not Tensor or tensor.layout is not None or not isinstance(value, FormValue):
        return None
    located = value.located
    if located.chunk < 0 or located.pieces != 1 or not value.shape or 0 in value.shape:
        return None
    return value


def same_bytes(mine: list[tuple[Any, int]], theirs: list[tuple[Any, int]]) -> bool:
    """Whether chunks are stored alike, byte for byte, so that nothing in them differs. They are not decoded."""
    if len(mine) != len(theirs):
        return False
    for (reader, number), (other, second) in zip(mine, theirs, strict=True):
        frame, payload = reader.chunk_frame(number)
        if frame.codec in (DELTA, ROWS):  # what they say depends on another trace
            return False
        again, stored = other.chunk_frame(second)
        if again.codec != frame.codec or again.size != frame.size or payload != stored:
            return False
    return True
