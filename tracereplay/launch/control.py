"""The socket by which a running recording is asked and told things: one line of JSON there, one back.

Only the recording's owner may connect: the file's mode says so, and the peer's user id is checked too.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tracereplay.errors import NothingRuns, TracereplayError, UsageError
from tracereplay.launch.collection import SOCKET

__all__ = ["ControlSocket", "Handler", "ask", "check_socket"]

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]

LONGEST_PATH = 107  # bytes that the address of a UNIX socket has room for
LONGEST_LINE = 1 << 20
PATIENCE = 10.0  # seconds
_PEER = struct.Struct("3i")  # process, user and group
CODES = {2: UsageError, 4: NothingRuns}


def check_socket(folder: Path) -> None:
    """Raises UsageError if a recording in ``folder`` cannot have a socket there, before anything starts."""
    path = os.fsencode(folder.absolute() / SOCKET)
    if len(path) > LONGEST_PATH:
        raise UsageError(
            f"{os.fsdecode(path)} is too long for a socket: {len(path)} bytes, and {LONGEST_PATH} are possible. "
            "Give a shorter path, or --no-control to record without."
        )


class ControlSocket:
    """The recording's end; serves each connection in a thread.

    Args:
        folder: in which the socket is made.
        handle: answers a message, and raises TracereplayError for what cannot be done.

    Raises:
        UsageError: the socket cannot be made, or somebody serves it.
    """

    def __init__(self, folder: Path, handle: Handler) -> None:
        self.path = folder.absolute() / SOCKET
        if self.path.exists():
            if _serves(self.path):
                raise UsageError(
                    f"{folder} is being recorded into; give another directory, or end that recording."
                )
            self.path.unlink()  # left behind by a recording that was killed
        before = os.umask(0o177)
        try:
            with _address(self.path) as address:
                self._server = _Server(address, _Connection)
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be made: {error.strerror}. Give another directory, or --no-control to record "
                "without."
            ) from error
        finally:
            os.umask(before)
        self._server.handle_message = handle
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), daemon=True)

    def serve(self) -> None:
        """Begins answering."""
        self._thread.start()

    def close(self) -> None:
        """Ends it and removes the file."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The address of a socket, short enough: a trace that replaces another is made under a longer name."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield os.fspath(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    handle_message: Handler

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the peer is this process's user, or root, whom nothing stops."""
        _, user, _ = _PEER.unpack(request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return user in (os.geteuid(), 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that hangs up is no error of ours, and the command's output is not for tracebacks."""


class _Connection(socketserver.StreamRequestHandler):
    timeout = PATIENCE

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        answer: Mapping[str, Any]
        line = self.rfile.readline(LONGEST_LINE)
        try:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise UsageError("The message is no object.")
            answer = {"ok": self.server.handle_message(message)}
        except TracereplayError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except ValueError:
            answer = {"error": "The message is not JSON.", "exit_code": 2}
        except Exception as error:
            answer = {"error": f"The recording could not answer: {type(error).__name__}: {error}", "exit_code": 4}
        with contextlib.suppress(OSError):
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def _serves(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as peer, _address(path) as address:
        peer.settimeout(1)
        try:
            peer.connect(address)
        except PermissionError:
            return True
        except OSError:
            return False
    return True


def ask(trace: Path, message: Mapping[str, Any]) -> dict[str, Any]:
    """Asks the recording that writes to ``trace``: its directory, its collection, or a trace of the collection.

    Raises:
        NothingRuns: there is none.
        UsageError: it is somebody else's, or refuses.
    """
    try:
        path = next((p for p in _places(trace) if p.exists()), None)
        there = "" if trace.exists() else ", which does not exist"
    except PermissionError:
        raise UsageError(
            f"{trace} is another user's; only its owner may control what is recorded there."
        ) from None
    if path is None:
        raise NothingRuns(f"Nothing is being recorded into {trace}{there}.")
    line = _exchange(path, trace, json.dumps(message).encode() + b"\n")
    try:
        answer = json.loads(line)
    except ValueError:
        raise NothingRuns(f"The recording into {trace} ended before it answered.") from None
    if "error" in answer:
        raise CODES.get(answer.get("exit_code"), TracereplayError)(str(answer["error"]))
    found: dict[str, Any] = answer["ok"]
    return found


def _places(trace: Path) -> Iterator[Path]:
    """Where the socket may be, the likeliest first."""
    trace = trace.absolute()
    yield trace / SOCKET
    yield trace.parent / SOCKET  # of the collection
    if trace.parent.is_dir():  # of a trace that will replace this one
        yield from sorted(trace.parent.glob(f".{glob.escape(trace.name)}.*/{SOCKET}"))


def _exchange(path: Path, trace: Path, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as peer, _address(path) as address:
        peer.settimeout(PATIENCE)
        try:
            peer.connect(address)
            peer.sendall(line)
            with peer.makefile("rb") as lines:
                return lines.readline()
        except PermissionError:
            raise UsageError(
                f"The recording into {trace} is another user's; only its owner may control it."
            ) from None
        except (ConnectionRefusedError, FileNotFoundError):
            raise NothingRuns(
                f"Nothing is being recorded into {trace}; its {path.name} is that of a recording that was killed."
            ) from None
        except TimeoutError:
            raise NothingRuns(f"The recording into {trace} does not answer; is its process stopped?") from None
        except ConnectionError:
            return b""
