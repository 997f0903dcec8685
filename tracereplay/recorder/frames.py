"""Where graphs stage their tensors: a frame for each run of the model's forward, a region for each graph in it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tracereplay.recorder.graph_memory import Tap
from tracereplay.recorder.protocol import Descriptor
from tracereplay.recorder.staged import NthTap, StagedTensors

__all__ = ["Frame", "Region", "Tapped"]

_STORAGES = 1 << 40  # numbers of a graph's storages begin here; those of a step's other tensors are small


class Tapped(NamedTuple):
    """What one tap does in every replay.

    Args:
        side: ``in``, ``out``, or ``after`` for an input as the call left it.
        number: of the input or output.
        staged: where its tensor lies in the staging area, in the shape that the graph has.
        inputs: how many tensors the call takes; None if it is not known.
        mask: where its rows' masks begin; -1: it is never fed.
        summed: where those of an input begin that is written over with golden's sum, too; -1: none.
        per_row: how many of its rows each row of the model has; 0: it is not divided by rows.
    """

    slot: int
    side: str
    number: int
    staged: Descriptor
    inputs: int | None
    mask: int
    summed: int
    per_row: int


class Frame:
    """One run of the model's forward during which graphs are captured, or which warms up for that.

    Args:
        rows: how many the model was given, padding included.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.used = self.masks = 0  # of the areas
        self.taps: list[Tapped] = []
        self.missing: set[int] = set()  # slots for which the area was too small
        self.staged = StagedTensors()
        self._calls: dict[Tap, int] = {}
        self._storages: dict[int, int] = {}
        self._weak: list[int] = []

    def nth(self, tap: Tap) -> NthTap:
        """That tap, and how often it was passed in this forward before."""
        count = self._calls.get(tap, 0)
        self._calls[tap] = count + 1
        return (*tap, count)

    def storage(self, x: torch.Tensor) -> int:
        """The number of the storage of ``x``; equal numbers mean the same storage, until `close`."""
        storage = x.untyped_storage()
        number = self._storages.get(storage._cdata)
        if number is None:
            number = self._storages[storage._cdata] = _STORAGES + len(self._storages)
            self._weak.append(storage._weak_ref())  # keeps its record from being reused, not its memory
        return number

    def close(self) -> None:
        """The forward has returned."""
        for reference in self._weak:
            torch.UntypedStorage._free_weak_ref(reference)
        self._weak.clear()
        self._storages.clear()
        self.staged.unknown()


class Region:
    """What one graph does in a frame."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.taps: list[Tapped] = []
