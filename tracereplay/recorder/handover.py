"""Hands finished steps to the writer, in order, once their copies are complete."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from tracereplay.recorder.arena import Arena
from tracereplay.recorder.idle import IdleThread
from tracereplay.recorder.step import PendingStep
from tracereplay.recorder.writer_client import WriterClient

__all__ = ["Handover"]


class _Said(NamedTuple):
    """Something that the writer is told between two steps."""

    say: Callable[[], None]

    def arrived(self) -> bool:
        return True

    def hand_over(self, writer: WriterClient) -> None:
        self.say()


class Handover:
    """The finished steps of one pass that are not handed over yet, oldest first.

    A lock guards them and the writer, which both the engine's thread and the idle thread use.

    Args:
        writer: receives them.
        in_flight: steps whose copies may still be running when the next one begins.
        idle: whether copies are asynchronous, so that a thread must finish them while the engine idles.
        failed: called with errors.
    """

    def __init__(
        self, writer: WriterClient, in_flight: int, *, idle: bool, failed: Callable[[BaseException], None]
    ) -> None:
        self._writer, self._in_flight, self._failed = writer, in_flight, failed
        self._waiting: deque[PendingStep | _Said] = deque()
        self._lock = threading.RLock()
        self._idle = IdleThread(self._hand_over_arrived) if idle else None

    @property
    def waiting(self) -> int:
        """How many steps are not handed over yet."""
        return sum(isinstance(one, PendingStep) for one in self._waiting)

    def take(self, *, wait: bool, patience: float | None = None) -> Arena | None:
        """An empty arena; None if there is none and ``wait`` is not set, or after ``patience`` seconds.

        Raises:
            WriterGone: there will be none.
        """
        with self._lock:
            self._hand_over(self._in_flight)
            if wait and self._writer.starved():
                self._hand_over(0)  # the writer can only free arenas that it has
            return self._writer.take(wait=wait, patience=patience)

    def add(self, step: PendingStep) -> None:
        """Adds a finished step."""
        with self._lock:
            try:
                step.close()
            except BaseException:
                self.give_up(step)  # its arenas would be missing, and the engine would wait for them
                raise
            self._waiting.append(step)
            self._hand_over(self._in_flight)
            if self._waiting and self._idle is not None:
                self._idle.wake()

    def drain(self, *, wait: bool) -> bool:
        """Hands over all steps, or only those whose copies are complete; returns whether none remains."""
        with self._lock:
            self._hand_over(0 if wait else len(self._waiting))
            return not self._waiting

    def give_up(self, step: PendingStep) -> None:
        """Abandons the step in progress."""
        with self._lock:
            self._hand_over(0)  # otherwise `discard` would discard theirs
            step.give_up(self._writer)

    def between_steps(self, say: Callable[[], None]) -> None:
        """Calls ``say``, which tells the writer something, when the steps that are finished are handed over."""
        with self._lock:
            self._waiting.append(_Said(say))
            self._hand_over(len(self._waiting))
            if self._waiting and self._idle is not None:
                self._idle.wake()

    def close(self) -> None:
        """Hands over the remaining steps, and drops them if that fails."""
        if self._idle is not None:
            self._idle.stop()
        try:
            self._hand_over(0)
        finally:
            self._waiting.clear()

    def _hand_over(self, leave: int) -> None:
        """Hands over the steps whose copies are complete, and waits until at most ``leave`` remain."""
        with self._lock:
            while self._waiting and (self.waiting > leave or self._waiting[0].arrived()):
                self._waiting.popleft().hand_over(self._writer)

    def _hand_over_arrived(self) -> bool:
        """The idle thread's work; returns whether steps remain."""
        # A step larger than an arena is handed over in pieces, which must not be interleaved with other steps.
        # They are not: all previous steps were handed over before its first piece.
        try:
            with self._lock:
                self._hand_over(len(self._waiting))
        except Exception as error:
            self._failed(error)
        return bool(self._waiting)
