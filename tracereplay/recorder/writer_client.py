"""The engine's side of the writer process: provides empty arenas and hands over finished steps.

The engine waits for the writer only when the writer has all arenas, and at the end.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracereplay.event import Site
from tracereplay.recorder.arena import Arena
from tracereplay.recorder.options import Options
from tracereplay.recorder.protocol import StepMessage, send
from tracereplay.recorder.triggers import Ended, Fired
from tracereplay.recorder.writer_handle import WriterGone, WriterHandle
from tracereplay.trace import codec, records

__all__ = ["WriterClient"]


class WriterClient:
    """One pass of a writer process: opens a segment.

    Args:
        handle: of the process, which is ready.
        path: of the segment; must not exist.
        meta: plain data about this process.
        codec_id: how chunks are stored.
        max_bytes: of the segment.
        ring: keeps steps in memory as these options say, and makes no segment; None: writes it.

    Raises:
        WriterGone: the process has exited.
    """

    def __init__(
        self, handle: WriterHandle, path: Path, meta: Mapping[str, Any], *,
        codec_id: int = codec.PLANES, max_bytes: int | None = None, ring: Options | None = None,
    ) -> None:  # fmt: skip
        self._handle, self._to, self._inbox = handle, handle.to, handle.inbox
        self.arenas = handle.arenas
        self._free = list(self.arenas)
        self.errors: dict[str, int] = {}
        self.spent = False
        self.steps = self.size = 0
        self._closed = False
        handle.begin()
        self.pid = handle.pid
        self.dumped: list[str] = []  # traces that were made of the ring
        fds = [arena.fd for arena in self.arenas]
        if ring is not None:
            self._send("ring", str(path), dict(meta), ring.as_dict(), fds)
        else:
            self._send("open", str(path), dict(meta), codec_id, max_bytes, fds)
        while not (self.size or self.errors):
            self._wait()

    def sites(self, sites: Iterable[Site]) -> None:
        """See `SegmentWriter.sites`."""
        self._send("sites", [records.write_site(site) for site in sites])

    def take(self, *, wait: bool) -> Arena | None:
        """An empty arena; None if there is none and ``wait`` is not set.

        Raises:
            WriterGone: the writer has exited.
        """
        self.poll()
        while not self._free:
            if not wait:
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

    def close(self, summary: Mapping[str, Any], *, whole: bool) -> None:
        """Waits until everything is written and the segment is closed.

        Args:
            summary: for the end mark.
            whole: whether to write one.
        """
        with contextlib.suppress(WriterGone):
            self._send("close", dict(summary), whole)
            while not self._closed:
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
            self.spent = True
        elif kind == "failed":
            self.errors[rest[0]] = self.errors.get(rest[0], 0) + 1
        elif kind == "closed":
            self._closed = True

    def _gone(self) -> str:
        text = "the writer process ended prematurely"
        self.errors[text] = self.errors.get(text, 0) + 1
        return text
