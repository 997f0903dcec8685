"""Of a step's rows, those that are recorded: found once for each row map, taken from tensors on their device."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch

from tracereplay.device import Device
from tracereplay.event import RowMap
from tracereplay.recorder.choosing import Choice

__all__ = ["Ints", "Kept", "Selection", "selection_of"]

Ints = npt.NDArray[np.int64]
Tap = tuple[int, str, int]  # slot, side and number
NO_TAP: Tap = (-1, "", 0)


class Kept:
    """The rows of one row map that are recorded.

    Args:
        whole: the row map.
        places: their numbers in it, in ascending order.
        device: where the tensors are.
    """

    def __init__(self, whole: RowMap, places: Ints, device: Device) -> None:
        self.whole, self.places = whole, places
        self.everything = len(places) == len(whole)
        first, behind = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        self._run = (first, behind) if behind - first == len(places) else None
        self._device = device
        self._at: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.places)

    def rows(self) -> RowMap:
        """Their row map, as it is when this is asked for: a verification marks rejected rows in place."""
        return self.whole if self.everything else self.whole[self.places]

    def take(self, x: torch.Tensor, padded: int, turned: bool = False) -> torch.Tensor:
        """Their rows of ``x``; none of a tensor whose rows cannot be told.

        Args:
            x: a tensor with a row for each of the row map's, along dimension 0 or 1, or several in a row.
            padded: how many rows the step's tensors have, padding included.
            turned: whether they are along dimension 1, where both fit.
        """
        if self.everything or not x.dim():
            return x
        axes = axes_of(x, (len(self.whole), padded))
        if axes:
            return self._along(x, axes[-1 if turned else 0])
        if x.shape[0] and x.shape[0] % padded == 0:
            return self._along(x.unflatten(0, (padded, x.shape[0] // padded)), 0).flatten(0, 1)
        return x[:0]

    def _along(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        if self._run is not None:  # a view: nothing is copied, and it is known again where it is an input
            return x.narrow(axis, self._run[0], len(self.places))
        if self._at is None:
            self._at = self._device.upload(torch.from_numpy(self.places.copy()))
        return x.index_select(axis, self._at)


def axes_of(x: torch.Tensor, rows: Collection[int]) -> list[int]:
    """The dimensions along which ``x`` may have so many rows."""
    return [axis for axis, size in enumerate(x.shape[:2]) if size in rows]


class Selection:
    """What is recorded of one step.

    Args:
        choice: which rows are kept of those that belong to a chosen request.
        rows: of the model's forward.
        device: where the tensors are.
        turned: taps whose tensors were seen to have their rows along dimension 1: with three rows, positions of
            shape ``[3, rows]`` could be read both ways.
    """

    def __init__(self, choice: Choice, rows: RowMap, device: Device, turned: set[Tap] | None = None) -> None:
        self._turned = set() if turned is None else turned
        self._range, self._device = choice.tokens, device
        self._known: dict[int, Kept] = {}
        self._padded = 0
        self._step = rows
        self._own = np.flatnonzero(rows[:, 0] >= 0)

    def of(self, rows: RowMap) -> Kept:
        """Which of these rows are kept."""
        found = self._known.get(id(rows))  # of arrays that live as long as this does
        if found is None:
            mask = rows[:, 0] >= 0
            if self._range is not None:
                position = np.where(rows[:, 2] < 0, -1 - rows[:, 2], rows[:, 2])  # of a rejected draft, too
                first, behind = self._range
                mask &= position >= first
                if behind is not None:
                    mask &= position < behind
            found = self._known[id(rows)] = Kept(rows, np.flatnonzero(mask), self._device)
        return found

    def own(self) -> RowMap:
        """The step's own row map: all rows of chosen requests, those too of which operators are not kept."""
        kept = self.of(self._step)
        return kept.rows() if len(kept) == len(self._own) else self._step[self._own]

    def take(self, x: torch.Tensor, rows: RowMap, tap: Tap = NO_TAP) -> torch.Tensor:
        """The rows of ``x`` that are kept, given the rows that it has and which tap's tensor it is."""
        if rows is self._step and not self._padded and x.dim() and x.shape[0] >= len(rows):
            self._padded = x.shape[0]  # the first operator takes what the model is given
        padded = self._padded if rows is self._step and self._padded else len(rows)
        if axes_of(x, (len(rows), padded)) == [1]:
            self._turned.add(tap)
        return self.of(rows).take(x, padded, tap in self._turned)


def selection_of(choice: Choice, rows: RowMap, device: Device, turned: set[Tap]) -> Selection | None:
    """What is recorded of a step with these rows; None: all of it."""
    if choice.tokens is None and (not len(rows) or int(rows[:, 0].min()) >= 0):
        return None
    found = Selection(choice, rows, device, turned)
    return None if found.of(rows).everything else found
