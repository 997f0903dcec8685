"""Memory for one step's copies, shared with the writer process.

On the CPU tensors are copied straight into an arena. On an asynchronous device they are copied
into a staging area there, one after the other, and the used part of the area goes to the arena in one copy at
the end of the step. Offsets in the area are offsets in the arena. At the end of a step the arena is handed over by
its number, and another one is taken. Its pages are allocated once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from itertools import accumulate
from operator import mul

import torch

from tracereplay.device import DONE, Device, Mark

__all__ = ["ALIGN", "BEHIND", "Area", "Arena", "Staging", "aligned", "place_in"]

ALIGN = 64
_COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})
_memmove = ctypes.memmove
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
SIZE = 32 << 20  # bytes of a new arena; untouched pages take no memory
BEHIND = 64 << 20  # bytes behind what graphs wrote, for what runs outside of them in the same step
AREAS = 2  # one is filled while the other is on its way to the host


class Area:
    """A block of device memory.

    Args:
        memory: its bytes, ``uint8``.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory
        self.views = {torch.uint8: memory}
        self.mark: Mark = DONE  # of the last copy out of it


class Staging:
    """The staging areas of one recording, taken in turn.

    Args:
        device: where they lie.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._areas: list[Area] = []
        self._turn = 0

    def clear(self) -> None:
        """Frees the areas, whose copies are complete."""
        self._areas.clear()
        self._turn = 0

    def take(self, size: int) -> Area:
        """An area of at least ``size`` bytes; the device fills it after copying out its previous contents."""
        turn, self._turn = self._turn, (self._turn + 1) % AREAS
        with torch.inference_mode(False):
            if turn == len(self._areas):
                self._areas.append(Area(self._device.area(size)))
            area = self._areas[turn]
            if area.memory.numel() < size:
                area = self._areas[turn] = Area(self._device.area(size))
        self._device.hold(area.mark)
        return area


class Arena:
    """One piece of shared memory.

    Args:
        number: identifies it to the writer.
        device: where the tensors come from.
        staging: its areas; None where tensors are copied straight from the device.
    """

    def __init__(self, number: int, device: Device, staging: Staging | None) -> None:
        self.number = number
        self.fd = os.memfd_create(f"tracereplay-{number}", os.MFD_CLOEXEC)
        self.size = self.room = self.used = self._address = 0
        self.trouble: str | None = None
        self._device = device
        self._staging = staging
        self._area: Area | None = None
        self._mark: Mark = DONE
        self._map(SIZE)

    def begin(self) -> None:
        """Starts filling it from the beginning."""
        self.used = 0
        self.room = self.size if self._staging is None else min(self.size, SIZE)
        self._mark = DONE
        self._area = None

    def adopt(self, area: Area, used: int) -> None:
        """Fills the empty arena from ``area``, whose first ``used`` bytes somebody else writes.

        What is copied from now on comes behind them, as far as the area has `BEHIND` bytes for it.
        """
        self._resize(min(aligned(used) + BEHIND, area.memory.numel()))
        self._area = area
        self.used = aligned(used)
        self.room = min(self.size, area.memory.numel())

    def fits(self, size: int) -> bool:
        """Whether there is room for ``size`` more bytes."""
        return self.used + size <= self.room

    def grow(self, size: int) -> None:
        """Makes room for ``size`` bytes; only while the arena is empty."""
        self._resize(size)
        self.room = max(self.room, size)

    def copy(self, x: torch.Tensor, address: int, size: int) -> int:
        """Copies ``x`` contiguously and returns where its bytes will begin; they are there after `flush`.

        Args:
            x: any tensor; ``size`` bytes must fit.
            address: of its first element.
            size: of its elements.
        """
        offset = self.used
        self.used = offset + aligned(size)
        area = self._area
        if area is None and self._staging is not None:
            area = self._area = self._staging.take(self.room)
        if area is not None:
            if size:
                place_in(area.views, x, offset).copy_(x)
        elif _plain(x):
            _memmove(self._address + offset, address, size)
        else:
            place_in(self._views, x, offset).copy_(x)
        return offset

    def holds(self, x: torch.Tensor, address: int, offset: int, size: int) -> bool:
        """Whether ``x`` is certain to have the bytes that were copied to ``offset`` (False: unknown).

        Never waits for a device. ``address`` is that of its first element.
        """
        return self._staging is None and _plain(x) and not _memcmp(self._address + offset, address, size)

    def changed(self, x: torch.Tensor, offset: int, size: int) -> bool:
        """Whether ``x``, copied to ``offset`` since `begin`, has changed. Waits for the device."""
        now = x.detach().contiguous().flatten().view(torch.uint8)
        return not torch.equal(now, self._piece(offset, size).to(now.device))

    def differ(self, one: tuple[int, int], other: tuple[int, int]) -> bool:
        """Whether two pieces (offset and size), copied since `begin`, differ. Waits for the device."""
        return not torch.equal(self._piece(*one), self._piece(*other))

    def flush(self) -> None:
        """Starts copying staged bytes to the arena; `arrived` tells when they are there."""
        area, self._area = self._area, None
        if area is not None and self.used:
            self._mark = area.mark = self._device.copy_out(area.memory[: self.used], self._tensor[: self.used])

    def drop(self) -> None:
        """Forgets what was staged, and waits for a copy that is under way."""
        self._area = None
        self.wait()

    def arrived(self) -> bool:
        """Whether the bytes are there."""
        return self._mark.reached()

    def wait(self) -> None:
        """Waits until the bytes are there."""
        self._mark.wait()

    def shrink(self) -> None:
        """Gives back the memory by which it has grown."""
        self.wait()
        if self.size > SIZE:
            self._device.unlock(self._address)
            self._map(SIZE)

    def close(self) -> None:
        """Unmaps the memory; the writer may still have it mapped."""
        self.wait()
        self._device.unlock(self._address)
        os.close(self.fd)

    def _piece(self, offset: int, size: int) -> torch.Tensor:
        """Bytes copied since `begin`: in the staging area, or in the arena."""
        memory = self._tensor if self._area is None else self._area.memory
        return memory[offset : offset + size]

    def _resize(self, size: int) -> None:
        if size > self.size:
            self._device.unlock(self._address)
            self._map(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def _map(self, size: int) -> None:
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)
        with torch.inference_mode(False):  # an engine computes in that mode, and a step may end outside of it
            self._tensor = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._views = {torch.uint8: self._tensor}
        self._address = self._tensor.data_ptr()
        self.size = size
        self.trouble = self._device.lock(self._address, size)


def aligned(size: int) -> int:
    """``size`` bytes, rounded up to where a tensor of any dtype may begin."""
    return size + ALIGN - 1 & -ALIGN


def place_in(views: dict[torch.dtype, torch.Tensor], x: torch.Tensor, offset: int) -> torch.Tensor:
    """Memory in the shape of ``x``, contiguous.

    Args:
        views: of a block, by dtype; ``uint8`` is there, others are added.
        x: gives shape and dtype.
        offset: where in the block it begins, in bytes; a multiple of the size of an element.
    """
    typed = views.get(x.dtype)
    if typed is None:
        typed = views[x.dtype] = views[torch.uint8].view(x.dtype)
    strides = tuple(accumulate(reversed(x.shape[1:]), mul, initial=1))[::-1] if x.shape else ()
    return typed.as_strided(x.shape, strides, offset // x.element_size())


def _plain(x: torch.Tensor) -> bool:
    """Whether the memory of ``x`` is its elements in order, neither conjugated nor negated."""
    return x.is_contiguous() and not x.is_neg() and (x.dtype not in _COMPLEX or not x.is_conj())
