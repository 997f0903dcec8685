"""Which tensors a graph need not stage, since they lie in the staging area already.

Most inputs of operators are what an earlier operator returned. In a capture no values can be compared, so two
things must agree before a copy is left out:

- *Nothing has written to that memory since.* `hooks.writes` tells what schemas declare, and what Triton kernels
  were given; what was staged of that is forgotten, and everything is where it cannot be told.
- *A warm-up has shown it.* Engines run a forward of as many rows before they capture it. There the device can be
  waited for, and bytes are compared: what differs, though nothing said that it was written to, is always copied.

    warm-up ──compared──▶ Rehearsals ──same?──▶ capture: stage, or refer to what is staged
                          StagedTensors ◀──written, unknown── hooks.writes
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import torch

from tracereplay.recorder.protocol import Descriptor

__all__ = ["NthTap", "Rehearsals", "Staged", "StagedTensors"]

NthTap = tuple[int, str, int, int]  # slot, side and number, and how often that was passed before in one forward


class Staged(NamedTuple):
    """A tensor in the staging area, and the tap that staged it."""

    place: Descriptor
    tap: NthTap


class _Storage(NamedTuple):
    """What was staged of one storage."""

    number: int  # see `frames.Frame.storage`
    end: int  # address
    tensors: dict[tuple[object, ...], Staged]


class StagedTensors:
    """Those of one forward that nothing has written to since, as far as anybody says (`hooks.writes.Writes`)."""

    def __init__(self) -> None:
        self._starts: list[int] = []  # addresses of the storages, which do not overlap, in order
        self._storages: dict[int, _Storage] = {}
        self.within = 0

    def find(self, x: torch.Tensor, place: Descriptor) -> Staged | None:
        """What was staged of the same memory.

        Args:
            place: of ``x``, but for its offset.
        """
        found = None if self.within else self._storages.get(x.untyped_storage().data_ptr())
        return found.tensors.get(_key(place)) if found is not None and found.number == place.storage else None

    def add(self, x: torch.Tensor, staged: Staged) -> None:
        """``x`` was staged."""
        memory, place = x.untyped_storage(), staged.place
        if self.within or not place.size:
            return
        start, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes()
        known = self._storages.get(start)
        if known is None or (known.number, known.end) != (place.storage, end):
            self._drop(start, end)  # that memory was somebody else's before, or has another name
            known = self._storages[start] = _Storage(place.storage, end, {})
            self._starts.insert(bisect_left(self._starts, start), start)
        known.tensors[_key(place)] = staged

    def written(self, x: torch.Tensor) -> None:
        """Something may have been written to the memory of ``x``."""
        memory = x.untyped_storage()
        self._drop(memory.data_ptr(), memory.data_ptr() + memory.nbytes())

    def unknown(self) -> None:
        """Something may have been written to any memory."""
        self._starts.clear()
        self._storages.clear()

    def _drop(self, start: int, end: int) -> None:
        first = bisect_left(self._starts, start)
        if first and self._storages[self._starts[first - 1]].end > start:
            first -= 1
        last = bisect_left(self._starts, end)
        for at in self._starts[first:last]:
            del self._storages[at]
        del self._starts[first:last]


def _key(place: Descriptor) -> tuple[object, ...]:
    return place.dtype, place.shape, place.strides, place.start


class Rehearsals:
    """What warm-ups have shown: which taps see the same bytes in the same memory."""

    def __init__(self) -> None:
        self._first: dict[int, dict[NthTap, NthTap]] = {}  # by rows: for each tap, the one that staged its bytes
        self._changed: set[NthTap] = set()

    def keep(self, rows: int, first: dict[NthTap, NthTap], changed: set[NthTap]) -> None:
        """Takes in one warm-up.

        Args:
            rows: of the forward.
            first: for each tap, the one that staged its bytes: itself, or an earlier one.
            changed: those that saw other bytes than an earlier one, where nothing said that these had changed.
        """
        self._first[rows] = first
        self._changed |= changed

    def same(self, rows: int, tap: NthTap, earlier: NthTap) -> bool:
        """Whether ``tap`` saw what ``earlier`` did in a forward of so many rows; False if there was none."""
        first = self._first.get(rows, {})
        return tap in first and tap not in self._changed and first[tap] == first.get(earlier)
