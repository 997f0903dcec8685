"""Memory for one step's copies, shared with the writer process.

Copies go to an arena (page-locked on CUDA, so that they run beside the computation); at the end of a step the
arena is handed over by its number, and another one is taken. Its pages are allocated once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from itertools import accumulate
from operator import mul
from typing import Any

import torch

__all__ = ["Arena"]

_ALIGN = 64
_COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})
_memmove = ctypes.memmove
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
SIZE = 32 << 20  # bytes of a new arena; pages that are not touched take no memory


class Arena:
    """One piece of shared memory.

    Args:
        number: by which the writer knows it.
        stream: the CUDA stream on which copies run; None on the CPU.
    """

    def __init__(self, number: int, stream: torch.cuda.Stream | None) -> None:
        self.number = number
        self.fd = os.memfd_create(f"tracereplay-{number}", os.MFD_CLOEXEC)
        self.size = self.used = self._address = 0
        self._stream = stream
        self._map(SIZE)

    def fits(self, size: int) -> bool:
        """Whether ``size`` more bytes have room."""
        return self.used + size <= self.size

    def grow(self, size: int) -> None:
        """Makes room for ``size`` bytes; only while the arena is empty."""
        if size > self.size:
            self._map(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def copy(self, x: torch.Tensor, size: int) -> int:
        """Copies ``x`` contiguously and returns where its bytes begin. On CUDA they are there once the stream is.

        Args:
            x: any tensor; ``size`` bytes must fit.
            size: of its elements.
        """
        offset = self.used
        self.used = offset + (size + _ALIGN - 1 & -_ALIGN)
        if self._stream is not None and x.is_cuda and size:
            self._copy_aside(x, offset, size)
        elif _plain(x):
            _memmove(self._address + offset, x.data_ptr(), size)
        else:
            self._target(x, offset, size).copy_(x)
        return offset

    def holds(self, x: torch.Tensor, offset: int, size: int) -> bool:
        """Whether ``x`` is certain to have the bytes that were copied to ``offset`` (False: it is not known)."""
        return self._stream is None and _plain(x) and not _memcmp(self._address + offset, x.data_ptr(), size)

    def bytes(self, offset: int, size: int) -> memoryview:
        """What was copied."""
        return memoryview(self._memory)[offset : offset + size]

    def _copy_aside(self, x: torch.Tensor, offset: int, size: int) -> None:
        """Copies on the side stream, from a clone: the engine may write ``x`` again before the copy has run."""
        assert self._stream is not None
        clone = x.clone(memory_format=torch.contiguous_format)
        self._stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._stream):
            self._target(clone, offset, size).copy_(clone, non_blocking=True)
        clone.record_stream(self._stream)

    def _target(self, x: torch.Tensor, offset: int, size: int) -> torch.Tensor:
        typed = self._typed.get(x.dtype)
        if typed is None:
            typed = self._typed[x.dtype] = self._tensor.view(x.dtype)
        strides = tuple(accumulate(reversed(x.shape[1:]), mul, initial=1))[::-1]
        return typed.as_strided(x.shape, strides, offset // x.element_size())

    def _map(self, size: int) -> None:
        if self._stream is not None and self.size:
            _runtime().cudaHostUnregister(self._address)
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)
        self._tensor = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._typed: dict[torch.dtype, torch.Tensor] = {}
        self._address = self._tensor.data_ptr()
        self.size = size
        if self._stream is not None:
            # Where it cannot be page-locked, copies are slower and right all the same.
            _runtime().cudaHostRegister(self._address, size, 0)


def _plain(x: torch.Tensor) -> bool:
    """Whether the memory of ``x`` holds its elements one after the other, as they are."""
    return x.is_contiguous() and not x.is_neg() and (x.dtype not in _COMPLEX or not x.is_conj())


def _runtime() -> Any:
    return torch.cuda.cudart()
