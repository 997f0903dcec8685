"""The engine's side of the writer process: provides empty arenas and hands over finished steps.

The engine waits for the writer only when the writer has all arenas, and at the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracereplay.device import Device
from tracereplay.event import Site
from tracereplay.interpreter import module_command
from tracereplay.recorder.arena import Arena, Staging
from tracereplay.recorder.protocol import Inbox, StepMessage, send
from tracereplay.trace import codec, records

__all__ = ["ARENAS", "WriterClient", "WriterGone"]

ARENAS = 4
_PIPE = 1031  # F_SETPIPE_SZ
_PIPE_SIZE = 1 << 20


class WriterGone(Exception):
    """The writer process exited unexpectedly."""


class WriterClient:
    """Starts a writer process for one segment.

    Args:
        path: of the segment; must not exist.
        meta: plain data about this process.
        device: where the tensors come from.
        codec_id: how chunks are stored.
        max_bytes: of the segment.

    Raises:
        OSError: the process cannot be started, or the segment cannot be created.
    """

    def __init__(
        self, path: Path, meta: Mapping[str, Any], device: Device, *,
        codec_id: int = codec.PLANES, max_bytes: int | None = None,
    ) -> None:  # fmt: skip
        staging = Staging(device) if device.asynchronous else None
        self.arenas = [Arena(i, device, staging) for i in range(ARENAS)]
        self._free = list(self.arenas)
        self.errors: dict[str, int] = {}
        self.spent = False
        self.steps = self.size = self.pid = 0
        self._closed = False
        theirs_in, self._to = os.pipe()
        mine, theirs_out = os.pipe()
        self._inbox = Inbox(mine)
        fds = [arena.fd for arena in self.arenas]
        _widen(self._to)
        try:
            # In its own session, and not a descendant of the engine: signals to the engine from a terminal or its
            # parent must not stop the writer before it has written what was handed over.
            subprocess.run(
                module_command(sys.executable, "tracereplay.recorder.detached", str(theirs_in), str(theirs_out)),
                pass_fds=[theirs_in, theirs_out, *fds], stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._send("open", str(path), dict(meta), codec_id, max_bytes, fds)
        while not self.pid or not (self.size or self.errors):
            self._wait()  # for "here", or for the reason why it failed

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
        os.close(self._to)
        while self._inbox.next() is not None:
            pass  # it closes its end of the pipe by exiting
        os.close(self._inbox.fd)
        for arena in self.arenas:
            arena.close()

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
        if kind == "here":
            self.pid = rest[0]
        elif kind == "free":
            self._free.append(self.arenas[rest[0]])
        elif kind == "wrote":
            self.steps, self.size = rest
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


def _widen(fd: int) -> None:
    """Enlarges a pipe: a step's message has tens of kilobytes, and a pipe holds 64 by default."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _PIPE, _PIPE_SIZE)
