"""Memory on the device for what CUDA graphs stage, and for what they are given: measured, then taken once."""

from __future__ import annotations

import torch

from tracereplay.device import Device
from tracereplay.recorder.arena import BEHIND, Area, aligned
from tracereplay.recorder.options import GraphOptions

__all__ = ["GraphMemory", "Meter", "Tap"]

Tap = tuple[int, str, int]  # slot, side and number


class Meter:
    """What the taps see of one run of the model's forward.

    Args:
        rows: how many the model was given.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.per_row: dict[Tap, int] = {}
        self._by_row = self._fixed = self._float_taps = self._count = self.largest = 0

    def see(self, tap: Tap, x: torch.Tensor) -> None:
        by_row = bool(x.dim()) and x.shape[0] > 0 and x.shape[0] % self.rows == 0
        self.per_row[tap] = x.shape[0] // self.rows if by_row else 0
        size = -(-x.nbytes // self.rows) if by_row else x.nbytes
        self._count += 1
        self._float_taps += 2 * by_row * x.is_floating_point()
        self._by_row += size * by_row
        self._fixed += size * (not by_row)
        self.largest = max(self.largest, size)

    def size(self, rows: int) -> int:
        """Bytes of the staging area for so many rows."""
        return self._by_row * rows + self._fixed + aligned(1) * self._count

    def masks(self, rows: int) -> int:
        """Bytes of the masks for so many rows."""
        return self._float_taps * rows


class GraphMemory:
    """The areas of one engine's graphs.

    Args:
        device: where they lie.
        options: how many there are, and how large they may be together.
        largest: rows of the largest graph.
    """

    def __init__(self, device: Device, options: GraphOptions, largest: int) -> None:
        self._device, self._options, self._largest = device, options, largest
        self.areas: list[Area] = []  # staging, golden, injected, as far as `options.feeds` needs them
        self.masks: list[torch.Tensor] = []  # bool: which rows are fed, which are cancelled
        self.capacity = 0  # bytes of each area for the largest frame
        self.needed = 0  # bytes that would hold the largest graph
        self.per_row: dict[Tap, int] = {}  # how many rows of a tap's tensor each row of the model has; 0: none
        self.refusal: str | None = None  # why nothing can be recorded

    def holds(self, rows: int) -> bool:
        """Whether it was taken, and for graphs of so many rows."""
        return bool(self.areas) and rows <= self._largest

    def take(self, meter: Meter) -> None:
        """Takes the memory; engines measure what is left for their cache after the forward that was metered."""
        try:
            with torch.inference_mode(False):
                self._allocate(meter)
        except Exception as error:
            self.areas, self.masks = [], []
            self.refusal = (
                f"The memory for recording inside CUDA graphs, {self._options.memory} bytes "
                f"(TRACEREPLAY_GRAPH_MEMORY), could not be had: {error}"
            )

    def _allocate(self, meter: Meter) -> None:
        self.per_row = meter.per_row
        self.needed = meter.size(self._largest)
        areas = self._options.areas
        most = self._options.memory // areas
        if most < meter.largest + aligned(1):
            self.refusal = (
                f"The memory for recording inside CUDA graphs, {self._options.memory} bytes for "
                f"{areas} {'area' if areas == 1 else 'areas'}, "
                f"does not hold one row of the largest tensor ({meter.largest} bytes in each); give more of it "
                "(TRACEREPLAY_GRAPH_MEMORY=4G), or set enforce_eager=true."
            )
            most = aligned(1)
        self.capacity = aligned(min(self.needed, most))
        room = aligned(max(0, min(BEHIND, most - self.capacity)))
        self.areas = [Area(self._device.area(self.capacity + room))]
        self.areas += [Area(self._device.area(self.capacity)) for _ in range(areas - 1)]
        count = max(meter.masks(self._largest), 1)
        self.masks = [self._device.area(count).view(torch.bool).zero_() for _ in range(areas - 1)]

    def said(self, rows: int, operators: int) -> str:
        """That so many operators of graphs of so many rows had no place."""
        return (
            f"Of graphs of {rows} rows, {operators} operators are not recorded: the memory for recording inside "
            f"CUDA graphs, {self._options.memory} bytes, is too small; {self.needed * self._options.areas} would "
            "do (TRACEREPLAY_GRAPH_MEMORY)."
        )
