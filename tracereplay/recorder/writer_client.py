"""The engine's side of the writer process: provides empty arenas and hands over finished steps.

The engine waits for the writer only when the writer has all arenas, and at the end.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.event import Site
from tracereplay.recorder.arena import Arena
from tracereplay.recorder.live import Moved
from tracereplay.recorder.options import Options
from tracereplay.recorder.protocol import StepMessage, send
from tracereplay.recorder.triggers import Ended, Fired
from tracereplay.recorder.writer_handle import WriterGone, WriterHandle
from tracereplay.trace import codec, records
from tracereplay.trace.sealed import opened_for

__all__ = ["WriterClient"]


class WriterClient:
    """One pass of a writer process: opens a segment.

    Args:
        handle: of the process, which is ready.
        path: of the segment; must not exist.
        meta: plain data about this process.
        codec_id: how chunks are stored.
        max_bytes: of the segment.
        recipients: see `SegmentWriter`.
        withhold: see `Options`.
        live: whether `cut` may be called.
        ring: keeps steps in memory as these options say, and makes no segment; None: writes it.
        room: where a ring finds its parent's orders; None: there is no parent.

    Raises:
        WriterGone: the process has exited.
    """

    def __init__(
        self, handle: WriterHandle, path: Path, meta: Mapping[str, Any], *,
        codec_id: int = codec.PLANES, max_bytes: int | None = None, recipients: Sequence[str] = (),
        withhold: str | None = None, live: bool = False, ring: Options | None = None, room: Path | None = None,
    ) -> None:  # fmt: skip
        self._handle, self._to, self._inbox = handle, handle.to, handle.inbox
        self.arenas = handle.arenas
        self._free = list(self.arenas)
        self.errors: dict[str, int] = {}
        self.spent = False
        self.steps = self.size = 0
        self._closed = self.gone = False
        self._cuts = 0  # of which the writer has not said yet that it has made them
        self._before = 0  # bytes of earlier segments
        handle.begin()
        self.pid = handle.pid
        self.dumped: list[str] = []  # traces that were made of the ring
        fds = [arena.fd for arena in self.arenas]
        # The writer process has read nothing: for whom to seal what is made of a sealed trace, this one knows.
        known = list(recipients or opened_for())
        if ring is not None:
            self._send("ring", str(path), dict(meta), ring.as_dict(), fds, None if room is None else str(room))
        else:
            self._send("open", str(path), dict(meta), codec_id, max_bytes, fds, known, withhold, live)
        while not (self.size or self.errors):
            self._wait()

    def sites(self, sites: Iterable[Site]) -> None:
        """See `SegmentWriter.sites`."""
        self._send("sites", [records.write_site(site) for site in sites])

    def take(self, *, wait: bool, patience: float | None = None) -> Arena | None:
        """An empty arena; None if there is none and ``wait`` is not set, or after ``patience`` seconds.

        Raises:
            WriterGone: the writer has exited.
        """
        self.poll()
        until = None if patience is None else time.monotonic() + patience
        while not self._free:
            if not wait or not self._says(until):
                return None
            self._wait()
        arena = self._free.pop()
        arena.begin()
        return arena

    def starved(self) -> bool:
        """Whether every arena is in use, by the writer or by a step that was not handed over."""
        self.poll()
        return not self._free

    def give_back(self, arenas: Iterable[Arena]) -> None:
        """Takes back arenas of a step that was not handed over."""
        for arena in arenas:
            arena.drop()  # a copy still running must not overwrite the next step
            self._free.append(arena)

    def hand(self, arena: Arena, tensors: list[tuple[Any, ...]], asides: list[tuple[int, int]]) -> None:
        """Hands an arena over with `Descriptor`s; it is freed when its step is written, or by `release`.

        Waits for its copies to complete.
        """
        arena.wait()
        self._send("tensors", arena.number, arena.size, tensors, asides)

    def release(self) -> None:
        """Frees the arenas of the step in progress. Later views of tensors in them are stored as copies."""
        self._send("release")

    def step(self, message: StepMessage) -> None:
        """Completes the step whose arenas were handed over."""
        self._send("step", *message)

    def discard(self) -> None:
        """Abandons the step whose arenas were handed over."""
        self._send("discard")

    def ended(self, ends: Iterable[Ended]) -> None:
        """Tells a ring of sequences that have ended."""
        self._send("ended", [list(end) for end in ends])

    def fired(self, fired: Fired) -> None:
        """Tells a ring what the writer cannot see itself."""
        self._send("fired", *fired)

    def dump(self, trace: Path, trigger: Mapping[str, Any], after: int) -> None:
        """See `flight.FlightRecorder.dump`."""
        self._send("dump", str(trace), dict(trigger), after)

    def poll(self) -> None:
        """Handles the writer's messages received so far."""
        while select.select([self._inbox.fd], [], [], 0)[0]:
            self._wait()

    def cut(
        self, summary: Mapping[str, Any], path: Path, meta: Mapping[str, Any], *, whole: bool, moved: Moved,
        number: int,
    ) -> None:  # fmt: skip
        """Ends the segment and begins another; the writer does it in its turn, and nobody waits.

        Args:
            summary, whole: see `close`.
            path, meta: of the next segment.
            moved: the requests that go on in it.
            number: of its first step.
        """
        self._send("cut", dict(summary), whole, str(path), dict(meta), [list(m) for m in moved], number)
        self._cuts += 1
        self.errors, self.spent = {}, False

    @property
    def written(self) -> int:
        """Bytes of all segments so far."""
        return self._before + self.size

    @property
    def of_last(self) -> int:
        """Bytes of the last segment so far; the writer may not have begun it."""
        return 0 if self._cuts else self.size

    def close(self, summary: Mapping[str, Any], *, whole: bool, patience: float | None = None) -> None:
        """Waits until everything is written and the segment is closed.

        Args:
            summary: for the end mark.
            whole: whether to write one.
            patience: seconds that the writer may be silent; then it is left to itself.
        """
        with contextlib.suppress(WriterGone):
            self._send("close", dict(summary), whole)
            while not self._closed and self._says(None if patience is None else time.monotonic() + patience):
                self._wait()
        if self._closed:
            self._handle.end()
        else:
            self._handle.close()

    def _send(self, *message: Any) -> None:
        try:
            send(self._to, list(message))
        except OSError as error:
            raise WriterGone(self._gone()) from error

    def _says(self, until: float | None) -> bool:
        """Whether the writer says something until then."""
        return until is None or bool(select.select([self._inbox.fd], [], [], max(0, until - time.monotonic()))[0])

    def _wait(self) -> None:
        """Waits for the writer's next message and handles it."""
        message = self._inbox.next()
        if message is None:
            raise WriterGone(self._gone())
        kind, *rest = message
        if kind == "free":
            self._free.append(self.arenas[rest[0]])
        elif kind == "wrote":
            self.steps, self.size = rest
        elif kind == "dumped":
            self.dumped.append(rest[0])
        elif kind == "spent":
            self.spent = not self._cuts
        elif kind == "failed" and not self._cuts:  # else of a segment that was ended
            self.errors[rest[0]] = self.errors.get(rest[0], 0) + 1
        elif kind == "cut":
            self._cuts -= 1
            self._before += rest[0]
            self.size = 0
        elif kind == "closed":
            self._closed = True

    def _gone(self) -> str:
        self.gone = True
        text = "the writer process ended prematurely"
        self.errors[text] = self.errors.get(text, 0) + 1
        return text
