"""The ends of requests as front ends tell them to rings: a named pipe for each ring, in the room of the recording.

    front end ──["cmpl-7-0-3f2a9c1b", "stop", 12]──▶ ROOM/ends-record-rank0 ──▶ writer process (`endings`)

Only a front end knows why a request ended (a text that stops it, a client that hung up), and it knows at once. An
engine tells its workers with the next step, which an idle engine does not have.

Why pipes: a line arrives whole, however many write; nobody waits, since what does not fit is left out; and what
was written is there when whoever wrote it is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["End", "EndsHeard", "EndsTold", "heard_in"]

_NAME = "ends-{}"
_PIPE, _PIPE_SIZE = 1031, 1 << 20  # F_SETPIPE_SZ; 64 KB by default
_WHOLE = 4096  # PIPE_BUF: bytes of a line that are not mixed with others'


class End(NamedTuple):
    """What a front end says.

    Args:
        id: the engine's, as steps name the request.
        reason: ``stop``, ``length``, ``abort`` or another of the engine's.
        tokens: how many it got; None: not known.
    """

    id: str
    reason: str
    tokens: int | None


class EndsHeard:
    """A ring's end of its pipe.

    Args:
        room: of the recording.
        name: of the ring among those of the recording, as ``record-rank0``.

    Raises:
        OSError: the pipe cannot be made.
    """

    def __init__(self, room: Path, name: str) -> None:
        self._path = room / _NAME.format(name)
        self._path.unlink(missing_ok=True)  # of a writer process that was killed
        os.mkfifo(self._path, 0o600)
        # For writing too: a pipe that nobody may write to any more is at its end.
        self.fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.fd, _PIPE, _PIPE_SIZE)
        self._rest = b""

    def read(self) -> list[End]:
        """What was said since."""
        with contextlib.suppress(OSError):  # at last, that there is no more
            while data := os.read(self.fd, 1 << 16):
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [end for end in map(_end, lines) if end is not None]

    def close(self) -> None:
        os.close(self.fd)
        with contextlib.suppress(OSError):
            self._path.unlink()


def heard_in(room: Path | None, name: str) -> EndsHeard | None:
    """A ring's end, or None where there is no room, or no pipe can be made."""
    try:
        return None if room is None else EndsHeard(room, name)
    except OSError:
        return None


def _end(line: bytes) -> End | None:
    try:
        name, reason, tokens = json.loads(line)
    except (ValueError, TypeError):
        return None
    good = isinstance(name, str) and isinstance(reason, str) and (tokens is None or type(tokens) is int)
    return End(name, reason, tokens) if good else None


class EndsTold:
    """A front end's: tells all rings, each of which knows its own requests.

    Args:
        room: of the recording.
    """

    def __init__(self, room: Path) -> None:
        self._room = room
        self._fds: dict[str, int] = {}

    def close(self) -> None:
        """Tells nobody any more."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def tell(self, end: End) -> int:
        """Returns how many rings did not take it."""
        line = json.dumps(end).encode() + b"\n"
        missed = 0
        for path in self._room.glob(_NAME.format("*")):
            try:
                fd = self._fds.get(path.name)
                if fd is None:
                    fd = self._fds[path.name] = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                if len(line) > _WHOLE:
                    raise BlockingIOError
                os.write(fd, line)
            except BlockingIOError:  # it is full
                missed += 1
            except OSError:  # nobody reads it any more
                missed += 1
                if (gone := self._fds.pop(path.name, None)) is not None:
                    os.close(gone)
        return missed
