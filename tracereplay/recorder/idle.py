"""Hands finished steps over while the engine idles.

A step whose copies are still running is handed over when the next one ends. When the engine idles there is no next
one, and an engine killed then would lose finished steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["IdleThread"]

PAUSE = 0.05  # seconds; while the engine has work, its own thread hands over sooner


class IdleThread:
    """A thread that sleeps until woken.

    Args:
        work: called from time to time after `wake`, until it returns False. Must not raise.
    """

    def __init__(self, work: Callable[[], bool]) -> None:
        self._work = work
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracereplay-idle", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Starts calling ``work``."""
        self._woken.set()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._woken.set()
        if threading.current_thread() is not self._thread:  # in which an engine may be collected as garbage
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._woken.wait()
            if self._stopped.wait(PAUSE):
                return
            self._woken.clear()
            if self._stopped.is_set():  # `stop` may have come between, and what woke would be forgotten
                return
            if self._work():
                self._woken.set()
