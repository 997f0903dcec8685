"""Orders to the workers of a recording that runs: a file of JSON lines to which only its parent appends.

    {"do": "pause"}   {"do": "resume"}   {"do": "options", "options": {...}}
    {"do": "cut", "trace": PATH}         {"do": "dump", "trace": PATH, "trigger": {...}, "after": N}

``at`` says with which step of an engine an order takes effect: {"record": 120, "record-engine1": 7} or one number;
without it, with the next. All ranks of an engine count the same steps, so that they obey with the same one.

Why a file: a worker that looks for orders with each step pays one system call, and one that starts late reads all
that was ordered before. It lies in memory (`room`), where no disk makes an engine wait.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["ORDERS", "Orders", "give"]

ORDERS = "orders"  # the file's name in the room that parent and workers share


def give(room: Path, order: Mapping[str, Any]) -> None:
    """Appends an order.

    Raises:
        OSError: it cannot be written.
    """
    fd = os.open(room / ORDERS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(order).encode() + b"\n")
    finally:
        os.close(fd)


class Orders:
    """A worker's end.

    Args:
        room: the directory.
        engine: how the worker's engine is called there; see `trace.directory.part_name`.

    Raises:
        OSError: there is no such file.
    """

    def __init__(self, room: Path, engine: str) -> None:
        self._fd = os.open(room / ORDERS, os.O_RDONLY | os.O_CLOEXEC)
        self._engine = engine
        self._read = 0
        self._rest = b""
        self._waiting: deque[dict[str, Any]] = deque()

    def due(self, step: int) -> Iterator[dict[str, Any]]:
        """The orders that take effect with ``step``, in the order in which they were given."""
        if os.fstat(self._fd).st_size != self._read:
            self._read_on()
        while self._waiting and self._at(self._waiting[0]) <= step:
            yield self._waiting.popleft()

    def close(self) -> None:
        os.close(self._fd)

    def _read_on(self) -> None:
        while data := os.pread(self._fd, 1 << 16, self._read):  # a fork shares the file's own position
            self._read += len(data)
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                order = json.loads(line)
                if isinstance(order, dict):
                    self._waiting.append(order)

    def _at(self, order: Mapping[str, Any]) -> int:
        at = order.get("at")
        found = at.get(self._engine) if isinstance(at, dict) else at
        return found if isinstance(found, int) else 0
