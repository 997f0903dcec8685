"""Writing beside an event loop: at once as long as the disk takes it, and without waiting when it does not.

    do ─▶ thread ─▶ disk        usually done before `do` returns
     └── after `PATIENCE`: `do` returns at once; what it is given waits for its turn, `MOST` of it

A front end answers all of its clients in one thread, which a disk that hangs must not stop. What was written is to
be there nonetheless when the process is killed a moment later.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

__all__ = ["Aside"]

PATIENCE = 0.1  # seconds; waited once, and again when the disk has caught up
MOST = 10_000  # things that wait to be done


class _Task(NamedTuple):
    what: Callable[[], None]
    done: threading.Event


class Aside:
    """One thread, which begins with the first thing that it is given, in a fork too."""

    def __init__(self) -> None:
        self._pid = 0
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._behind = False

    def do(self, what: Callable[[], None]) -> bool:
        """Does something, after all that was given before; must not raise.

        Returns:
            Whether it is done, or will be; else too much waits already.
        """
        if self._pid != os.getpid():
            self._pid, self._tasks, self._behind = os.getpid(), SimpleQueue(), False
            threading.Thread(target=self._run, args=(self._tasks,), name="tracereplay-aside", daemon=True).start()
        if self._behind and self._tasks.qsize() >= MOST:
            return False
        task = _Task(what, threading.Event())
        self._tasks.put(task)
        if not self._behind and not task.done.wait(PATIENCE):
            self._behind = True
        return True

    def close(self) -> None:
        """Ends the thread when it has done what it was given; nobody waits for longer than in `do`."""
        if self._pid == os.getpid():
            self.do(lambda: None)
            self._tasks.put(None)
        self._pid = 0

    def _run(self, tasks: SimpleQueue[_Task | None]) -> None:
        while (task := tasks.get()) is not None:
            task.what()
            task.done.set()
            if tasks.empty() and tasks is self._tasks:
                self._behind = False
