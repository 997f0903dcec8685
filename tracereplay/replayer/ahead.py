"""A step's recorded rows, sent to the device ahead of it in one copy.

The taps that asked for rows in one step are those that will in the next. What a step asks for besides is sent when
it does: in the first step of a pass, everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tracereplay.device import Device

__all__ = ["BITS", "Ahead", "Ask"]

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ALIGN = 64  # bytes; a tensor of any dtype may begin there

Ints = npt.NDArray[np.int64]
Rows = tuple[torch.Tensor, Ints]  # all rows of a tap, and which of them are wanted


class Ask(NamedTuple):
    """A tap that asks for rows.

    Args:
        number: of the input or output.
        inputs: see `recorder.replacement.Replacement.rows`.
    """

    slot: int
    side: str
    number: int
    inputs: int | None


class Ahead:
    """The rows of one step.

    Args:
        device: where they are wanted.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._asked: dict[Ask, None] = {}  # since the last `send`, in order
        self._sent: dict[Ask, Rows] = {}

    def send(self, wanted: Callable[[Ask], Rows | None]) -> None:
        """Forgets the last step's rows, and sends what this one is expected to ask for. The host does not wait.

        Args:
            wanted: finds the rows that a tap will ask for.
        """
        asked, self._asked, self._sent = self._asked, {}, {}
        if not self._device.asynchronous:
            return
        found = [(ask, rows) for ask in asked if (rows := wanted(ask)) is not None and len(rows[1])]
        if not found:
            return
        offsets = np.cumsum([0, *(_size(*rows) + _ALIGN - 1 & -_ALIGN for _, rows in found)]).tolist()
        host = self._device.pinned((offsets[-1],), torch.uint8)
        for (_, (data, places)), offset in zip(found, offsets, strict=False):
            _pick(data, places, _part(host, data, places, offset))
        block = self._device.upload(host)
        for (ask, (data, places)), offset in zip(found, offsets, strict=False):
            self._sent[ask] = _part(block, data, places, offset), places

    def rows(self, ask: Ask, data: torch.Tensor, places: Ints) -> torch.Tensor:
        """The rows ``places`` of ``data`` on the device, in memory that is the caller's.

        Args:
            ask: who asks; a step's second call of an operator may take other rows than what was sent.
        """
        self._asked[ask] = None
        sent = self._sent.pop(ask, None)
        if sent is not None and np.array_equal(sent[1], places):
            return sent[0]
        host = self._device.pinned((len(places), *data.shape[1:]), data.dtype)
        _pick(data, places, host)
        return self._device.upload(host)


def _size(data: torch.Tensor, places: Ints) -> int:
    return len(places) * int(data[0].nbytes)


def _part(block: torch.Tensor, data: torch.Tensor, places: Ints, offset: int) -> torch.Tensor:
    """Memory in ``block`` for these rows."""
    return block[offset : offset + _size(data, places)].view(data.dtype).view(len(places), *data.shape[1:])


def _pick(data: torch.Tensor, places: Ints, out: torch.Tensor) -> None:
    bits = BITS[data.element_size()]
    torch.index_select(data.view(bits), 0, torch.from_numpy(places), out=out.view(bits))
