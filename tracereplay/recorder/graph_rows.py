"""Of what graphs have staged, the rows that are recorded: gathered on the device, a launch for each width.

A step's one copy would take all rows of the staging area to the host. Where few are kept, they are gathered behind
what else the step copies, and only that goes there. The area's tensors begin at multiples of 64 bytes, so that it
can be seen as rows of any width, which overlap; an index select takes the wanted ones of all taps together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from tracereplay.device import Device
from tracereplay.recorder.arena import ALIGN
from tracereplay.recorder.frames import Tapped
from tracereplay.recorder.protocol import Descriptor
from tracereplay.recorder.selection import Ints, Kept
from tracereplay.recorder.step import PendingStep

__all__ = ["Wanted", "gather"]

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


class Wanted(NamedTuple):
    """What is recorded of one tap.

    Args:
        tapped: what it does.
        kept: which rows of the model.
    """

    tapped: Tapped
    kept: Kept

    @property
    def key(self) -> tuple[int, int, int]:
        """The same for those whose bytes are the same."""
        return self.tapped.staged.offset, self.tapped.staged.size, id(self.kept)


def gather(
    step: PendingStep, memory: torch.Tensor, rows: int, wanted: Sequence[Wanted], device: Device
) -> dict[tuple[int, int, int], int]:
    """Adds the wanted rows to the step; returns the number of each tensor in it, by `Wanted.key`.

    Args:
        step: under way.
        memory: the staging area.
        rows: of the graph, padding included.
        wanted: of taps that have staged their tensors.
        device: where the area is.
    """
    found: dict[tuple[int, int, int], int] = {}
    widths: dict[int, dict[tuple[int, int, int], Wanted]] = {}
    for one in wanted:
        staged = one.tapped.staged
        if one.tapped.per_row and staged.size:
            widths.setdefault(staged.size // rows, {}).setdefault(one.key, one)
        elif one.key not in found:  # whose rows cannot be told
            found[one.key] = step.place(staged._replace(shape=(0, *staged.shape[1:]), offset=0, size=0))
    for width, taps in widths.items():
        starts = [one.tapped.staged.offset + one.kept.places * width for one in taps.values()]
        offset = step.block(_rows(memory, width, np.concatenate(starts), device))
        for key, one in taps.items():
            descriptor = _descriptor(one, offset, width)
            found[key] = step.place(descriptor)
            offset += descriptor.size
    return found


def _rows(memory: torch.Tensor, width: int, starts: Ints, device: Device) -> torch.Tensor:
    """Pieces of ``width`` bytes of the memory that begin at ``starts``."""
    unit = math.gcd(ALIGN, width)
    word = math.gcd(unit, 8)
    count = (memory.numel() - width) // unit + 1
    view = memory.view(_WORDS[word]).as_strided((count, width // word), (unit // word, 1))
    return view.index_select(0, device.upload(torch.from_numpy(starts // unit)))


def _descriptor(one: Wanted, offset: int, width: int) -> Descriptor:
    staged, count = one.tapped.staged, len(one.kept)
    shape = (count * one.tapped.per_row, *staged.shape[1:])
    return staged._replace(shape=shape, offset=offset, size=count * width)
