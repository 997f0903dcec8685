"""The writer process as the engine holds it: started once, it serves one pass after the other.

    starting ─▶ ready ─▶ serving ─▶ ready ... ─▶ closed
                            └──▶ closed, if it was lost in a pass; the next pass starts another

Starting it takes longer than opening and closing a recording, so it is started beside whatever else the engine
does, and stays until the engine exits.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys

from tracereplay.device import Device
from tracereplay.interpreter import module_command
from tracereplay.recorder.arena import Arena, Staging
from tracereplay.recorder.protocol import Inbox

__all__ = ["ARENAS", "WriterGone", "WriterHandle"]

ARENAS = 4
_PIPE = 1031  # F_SETPIPE_SZ
_PIPE_SIZE = 1 << 20


class WriterGone(Exception):
    """The writer process exited unexpectedly."""


class WriterHandle:
    """Starts a writer process, and does not wait for it.

    The public attributes: ``arenas`` (memory shared with it), ``to`` (file descriptor of the pipe to it),
    ``inbox`` (its messages) and ``pid`` (0 until it has started).

    Args:
        device: where the tensors come from.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, device: Device) -> None:
        self._staging = Staging(device) if device.asynchronous else None
        self._serving = self._closed = False
        self.pid = 0
        self.arenas = [Arena(i, device, self._staging) for i in range(ARENAS)]
        theirs_in, self.to = os.pipe()
        mine, theirs_out = os.pipe()
        self.inbox = Inbox(mine)
        _widen(self.to)
        try:
            # In its own session, and not a descendant of the engine: signals to the engine from a terminal or its
            # parent must not stop the writer before it has written what was handed over.
            self._starter = subprocess.Popen(
                module_command(sys.executable, "tracereplay.recorder.detached", str(theirs_in), str(theirs_out)),
                pass_fds=[theirs_in, theirs_out, *(arena.fd for arena in self.arenas)],
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    @property
    def ready(self) -> bool:
        """Whether it can begin a pass; waits until a process that is starting has started."""
        if self._serving or self._closed:
            return False
        if self.pid == 0:
            return self._greeted()
        # Between passes it says nothing; what can be read is the end of the pipe.
        return not select.select([self.inbox.fd], [], [], 0)[0]

    def begin(self) -> None:
        """Begins a pass.

        Raises:
            WriterGone: the process has exited.
        """
        self._serving = True
        if self.pid == 0 and not self._greeted():
            raise WriterGone("the writer process ended while it started")

    def end(self) -> None:
        """Ends a pass: the process has written everything. Memory beyond that of an empty recording is freed."""
        for arena in self.arenas:
            arena.shrink()
        if self._staging is not None:
            self._staging.clear()
        self._serving = False

    def close(self) -> None:
        """Lets go of the process, which exits once it has written what it was given, and frees the arenas."""
        if self._closed:
            return
        self._closed = True
        os.close(self.to)
        os.close(self.inbox.fd)
        self._starter.wait()
        for arena in self.arenas:
            arena.close()

    def __del__(self) -> None:
        try:  # noqa: SIM105  (at the interpreter's end even contextlib is gone)
            self.close()
        except Exception:  # that, or it was not started
            pass

    def _greeted(self) -> bool:
        self._starter.wait()  # it exits at once; its child is the writer
        message = self.inbox.next()
        if message is not None:
            self.pid = int(message[1])
        return message is not None


def _widen(fd: int) -> None:
    """Enlarges a pipe: a step's message has tens of kilobytes, and a pipe holds 64 by default."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _PIPE, _PIPE_SIZE)
