"""Preallocated memory for one step's copies, and the thread that writes finished steps away.

Copies go to an arena (pinned on CUDA, so that they run asynchronously); at the end of a step the whole
arena is handed over in one piece and another one is taken. Handing over tensor by tensor costs an order of
magnitude more than handing over steps. When the writer lags behind, the engine waits for a free arena: a
trace with holes is worth less than a slower recording.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch

__all__ = ["Arena", "ArenaPool", "HandOff"]

_ALIGN = 64
_FIRST = 8 << 20
ARENAS = 3


class Arena:
    """Grows as needed: copies go to blocks that never move, because earlier copies point into them."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._blocks: list[torch.Tensor] = []
        self._block = 0
        self._used = 0

    def copy(self, x: torch.Tensor) -> memoryview:
        """Copies ``x`` contiguously and returns its bytes, valid once the device has caught up."""
        size = x.numel() * x.element_size()
        room = self._room(size)
        if size:
            target = room.view(x.dtype).view(x.shape)
            target.copy_(x, non_blocking=self._pinned)
        return memoryview(room.numpy()).cast("B")

    def reset(self) -> None:
        """Forgets the copies and keeps the memory; many small blocks become one large one."""
        if len(self._blocks) > 1:
            total = sum(block.numel() for block in self._blocks)
            self._blocks = [self._allocate(total)]
        self._block = self._used = 0

    def _room(self, size: int) -> torch.Tensor:
        padded = -(-size // _ALIGN) * _ALIGN
        while self._block < len(self._blocks):
            block = self._blocks[self._block]
            if self._used + padded <= block.numel():
                start, self._used = self._used, self._used + padded
                return block[start : start + size]
            self._block, self._used = self._block + 1, 0
        self._blocks.append(self._allocate(max(padded, _FIRST, 2 * sum(b.numel() for b in self._blocks))))
        return self._room(size)

    def _allocate(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)


class ArenaPool:
    """A fixed number of arenas; `take` waits until one is free."""

    def __init__(self, pinned: bool, count: int = ARENAS) -> None:
        self._free: queue.SimpleQueue[Arena] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(Arena(pinned))

    def take(self) -> Arena:
        return self._free.get()

    def give(self, arena: Arena) -> None:
        arena.reset()
        self._free.put(arena)


class HandOff:
    """Runs jobs in order on one background thread.

    Args:
        on_error: is told of a job's exception; the thread goes on with the next job.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._on_error = on_error
        self._thread = threading.Thread(target=self._run, name="tracereplay-writer", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        """Waits until every job is done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:
                self._on_error(error)
