"""Finished steps on their way to the writer: handed over in order, once their bytes have arrived."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from tracereplay.recorder.arena import Arena
from tracereplay.recorder.idle import IdleThread
from tracereplay.recorder.step import PendingStep
from tracereplay.recorder.writer_client import WriterClient

__all__ = ["Handover"]


class Handover:
    """The steps of one pass that are finished and not the writer's yet, oldest first.

    Whoever touches them, or the writer, holds the lock: the engine's thread, and the one that hands over while the
    engine idles.

    Args:
        writer: who gets them.
        in_flight: steps whose bytes may still be on their way when the next one begins.
        idle: whether bytes arrive late at all, so that somebody must look after them while the engine idles.
        failed: is told of errors.
    """

    def __init__(
        self, writer: WriterClient, in_flight: int, *, idle: bool, failed: Callable[[BaseException], None]
    ) -> None:
        self._writer, self._in_flight, self._failed = writer, in_flight, failed
        self._waiting: deque[PendingStep] = deque()
        self._lock = threading.RLock()
        self._idle = IdleThread(self._hand_over_arrived) if idle else None

    @property
    def waiting(self) -> int:
        """How many steps are not handed over yet."""
        return len(self._waiting)

    def take(self, *, wait: bool) -> Arena | None:
        """An empty arena; None if there is none and ``wait`` is not set.

        Raises:
            WriterGone: there will be none.
        """
        with self._lock:
            self._hand_over(self._in_flight)
            if wait and self._writer.starved():
                self._hand_over(0)  # the writer cannot give back what it was not given
            return self._writer.take(wait=wait)

    def add(self, step: PendingStep) -> None:
        """The step is finished."""
        with self._lock:
            step.close()
            self._waiting.append(step)
            self._hand_over(self._in_flight)
            if self._waiting and self._idle is not None:
                self._idle.wake()

    def drain(self) -> None:
        """Hands over all of them; waits for their bytes."""
        self._hand_over(0)

    def give_up(self, step: PendingStep) -> None:
        """The step that is under way will not be whole."""
        with self._lock:
            self._hand_over(0)  # the writer would take what is given up for theirs
            step.give_up(self._writer)

    def close(self) -> None:
        """Hands over what is left, and forgets it if that fails."""
        if self._idle is not None:
            self._idle.stop()
        try:
            self._hand_over(0)
        finally:
            self._waiting.clear()

    def _hand_over(self, leave: int) -> None:
        """Hands over the steps whose bytes have arrived, and waits for those beyond ``leave``."""
        with self._lock:
            while self._waiting and (len(self._waiting) > leave or self._waiting[0].arrived()):
                self._waiting.popleft().hand_over(self._writer)

    def _hand_over_arrived(self) -> bool:
        """What the idle thread does; whether steps are left."""
        # A step that is larger than all arenas is handed over in pieces; nothing may come between them, and
        # nothing does: all steps before it were handed over first.
        try:
            with self._lock:
                self._hand_over(len(self._waiting))
        except Exception as error:
            self._failed(error)
        return bool(self._waiting)
