"""Feeding within CUDA graphs: which rows are taken from a second area, by masks, and what lies there in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tracereplay.device import Device
from tracereplay.event import RowMap, Site
from tracereplay.recorder.arena import Area, place_in
from tracereplay.recorder.frames import Frame, Tapped
from tracereplay.recorder.graph_memory import GraphMemory
from tracereplay.recorder.replacement import Replacement

__all__ = ["CancelledError", "GraphFeeding"]

CancelledError = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""An output without its own error: from the actual one, the injected pass's and golden's."""


class GraphFeeding:
    """What graphs are given.

    Args:
        memory: areas and masks.
        device: where they lie.
        cancelled: how an own error is cancelled.
        sites: all operators of the model.
    """

    def __init__(
        self, memory: GraphMemory, device: Device, cancelled: CancelledError, sites: Sequence[Site]
    ) -> None:
        self._memory, self._device, self._cancelled = memory, device, cancelled
        # The only input of a norm may stand for the sum of golden's two.
        self._norms = frozenset(site.slot for site in sites if site.role == "norm")
        self.unfed = 0  # tensors for which no mask was left
        self.fed: set[Tapped] = set()  # in the step that is being recorded
        self._dirty = False  # whether a mask may be set

    # -- capturing --------------------------------------------------------------------------------------

    def captured(self, frame: Frame, tapped: Tapped, x: torch.Tensor) -> tuple[Tapped, torch.Tensor | None]:
        """Has the graph that is being captured take rows for ``x``, which an output is written over with.

        Returns:
            What the tap does, and what an operator is to take in place of an input; None: ``x`` itself.
        """
        per_row = tapped.side != "after" and tapped.per_row == 1
        if not self._memory.masks or not per_row or not x.is_floating_point() or not len(x):
            return tapped, None
        summed = tapped.side == "in" and tapped.inputs == 1 and tapped.slot in self._norms
        mask, sum_mask = self._next_mask(frame), self._next_mask(frame) if summed else -1
        if mask < 0 or (summed and sum_mask < 0):
            return tapped, None
        tapped = tapped._replace(mask=mask, summed=sum_mask)
        given = self._chosen(frame, tapped, x)
        if tapped.side == "out":
            x.copy_(given)
        return tapped, given

    def _next_mask(self, frame: Frame) -> int:
        """Where a mask for the frame's rows begins; -1: there is no room left."""
        if frame.masks + frame.rows > self._memory.masks[0].numel():
            self.unfed += 1
            return -1
        frame.masks += frame.rows
        return frame.masks - frame.rows

    def _chosen(self, frame: Frame, tapped: Tapped, x: torch.Tensor) -> torch.Tensor:
        """``x`` with the rows that a replay is given, in memory of its own."""
        golden = place_in(self._memory.areas[1].views, x, tapped.staged.offset)
        if tapped.summed >= 0:
            # The caller keeps x, which golden's operator hands on as a sum (see `session.Session.arrived`).
            x.copy_(torch.where(self._mask(0, frame, tapped.summed, x), golden, x))
        given = torch.where(self._mask(0, frame, tapped.mask, x), golden, x)
        if len(self._memory.areas) > 2:
            injected = place_in(self._memory.areas[2].views, x, tapped.staged.offset)
            without = self._cancelled(x, injected, golden)
            given = torch.where(self._mask(1, frame, tapped.mask, x), without, given)
        if given.stride() == x.stride():
            return given
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(given)

    def _mask(self, which: int, frame: Frame, offset: int, x: torch.Tensor) -> torch.Tensor:
        return self._memory.masks[which][offset : offset + frame.rows].view(-1, *[1] * (x.dim() - 1))

    # -- replaying --------------------------------------------------------------------------------------

    def send(
        self, frame: Frame, replacement: Replacement | None, rows_of: Callable[[int], tuple[RowMap, RowMap]]
    ) -> None:
        """Gathers a step's rows in page-locked memory, and sends them ahead of its graphs in one copy an area.

        Args:
            frame: whose graphs will be replayed.
            replacement: has the rows; None: nothing is fed.
            rows_of: rows of the inputs and of the outputs of a slot's calls.
        """
        self.fed.clear()
        if replacement is None or not self._memory.masks:
            self.nothing()
            return
        device, count = self._device, 1 if replacement.feeds else 2
        hosts = [Area(device.pinned((frame.used,), torch.uint8)) for _ in range(count)]
        masks = [device.pinned((frame.masks,), torch.bool).zero_() for _ in self._memory.masks]
        which = masks[0 if replacement.feeds else -1].numpy()
        for tapped in frame.taps:
            if tapped.mask < 0:
                continue
            like = torch.empty(tapped.staged.shape, dtype=getattr(torch, tapped.staged.dtype), device="meta")
            views = [place_in(host.views, like, tapped.staged.offset) for host in hosts]
            rows = rows_of(tapped.slot)[tapped.side == "out"]
            known = replacement.lay_in(tapped.slot, tapped.side, tapped.number, rows, views, tapped.inputs)
            if known is None:
                continue
            self.fed.add(tapped)
            which[tapped.mask : tapped.mask + len(known)] = known
            if tapped.summed >= 0 and len(replacement.stands_for(tapped.slot, tapped.number, tapped.inputs)) > 1:
                which[tapped.summed : tapped.summed + len(known)] = known
        for area, host in zip(self._memory.areas[1:], hosts, strict=False):
            device.fill(area.memory[: frame.used], host.memory)
        for mask, values in zip(self._memory.masks, masks, strict=True):
            device.fill(mask[: frame.masks], values)
        self._dirty = True

    def nothing(self, *, after_failure: bool = False) -> None:
        """Clears the masks.

        Args:
            after_failure: some may be set, whatever is known.
        """
        self.fed.clear()
        if self._dirty or after_failure:
            for mask in self._memory.masks:
                mask.zero_()
            self._dirty = False
