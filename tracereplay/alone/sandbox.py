"""A child process in the candidate's environment that executes recorded calls, and may crash.

Executing a recorded call is executing a stranger's choice of function on a stranger's data. Whatever happens to
the child (a signal, no answer, no memory) is an `Outcome`; the next request gets a new child.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tracereplay.alone.child.wire import LARGEST, Channel, Closed, TooLarge
from tracereplay.engines.family import Alone
from tracereplay.engines.known import family_named
from tracereplay.engines.variables import ENABLED
from tracereplay.errors import EngineFailed, Unsupported
from tracereplay.interpreter import SAFE, module_command
from tracereplay.launch.process import LAST_LINES, Launchable, guest_environment
from tracereplay.trace.sealed import IDENTITY

__all__ = ["KERNEL", "OPERATOR", "Limits", "Outcome", "Sandbox", "Status", "alone_of"]

KERNEL, OPERATOR = "kernel", "operator"  # names of handlers

Status: TypeAlias = Literal["done", "not replayable", "failed", "crashed", "timed out", "out of memory"]

_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|CREDENTIALS?|_KEY)$")  # at the end of a variable's name
# Compiling is slow, starts compilers, and is not what is asked: each call runs as it would without a compiler.
_ALONE = {"TORCHDYNAMO_DISABLE": "1", "TORCH_COMPILE_DISABLE": "1"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use.

    Args:
        memory: bytes that it may use in addition to what it has once its handlers are ready.
        seconds: of wall-clock time for each request.
        start_seconds: until its handlers are ready (importing an engine from a cold disk takes a minute).
        largest: bytes of the tensors of one request, and of one answer.
        restarts: how often a dead child is replaced.
    """

    memory: int = 4 << 30
    seconds: float = 60.0
    start_seconds: float = 300.0
    largest: int = LARGEST
    restarts: int = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a request.

    Args:
        status: ``done``, or what went wrong.
        reason: in words, ``crashed: signal 11 (SIGSEGV)``; empty if done.
        outputs: what the handler returned: plain data and `TensorBytes`; None if it did not return.
    """

    status: Status
    reason: str = ""
    outputs: Any = None


class Sandbox:
    """Executes requests one at a time; a context manager.

    Args:
        engine: whose interpreter and environment the child has.
        handlers: names of handlers and their modules, which the child imports when it starts; by default that for
            kernels, and the engine's family's for operators.
        setup: for each handler what its ``prepare`` is given.
        limits: what the child may use.

    Attributes:
        info: each handler's description of itself.

    Raises:
        EngineFailed: the first child does not become ready.
    """

    def __init__(
        self, engine: Launchable, *, handlers: Mapping[str, str] | None = None,
        setup: Mapping[str, Any] | None = None, limits: Limits = Limits(),
    ) -> None:  # fmt: skip
        self._engine, self._limits = engine, limits
        self._begin = {
            "handlers": _handlers(engine) if handlers is None else dict(handlers), "setup": dict(setup or {}),
            "memory": limits.memory, "largest": limits.largest,
        }  # fmt: skip
        self._environment = _environment(engine)
        self._log = tempfile.TemporaryFile(prefix="tracereplay-sandbox-")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._starts = 0
        self.info: Mapping[str, Any] = {}
        outcome = self._start()
        if outcome.status != "done":
            lines = self.last_lines()
            self.close()
            message = f"No call can be run in isolation under the engine {engine.name!r}: {outcome.reason}"
            raise EngineFailed(f"{message}; its last lines were:", lines)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def starts(self) -> int:
        """How many children were started."""
        return self._starts

    @property
    def restarts(self) -> int:
        """How many children were started after the first."""
        return max(0, self._starts - 1)

    def run(self, handler: str, request: Any, seconds: float | None = None) -> Outcome:
        """Has a handler execute a request.

        Args:
            handler: its name.
            request: plain data and `TensorBytes`.
            seconds: of wall-clock time, if not the sandbox's.

        Returns:
            The outcome; nothing that the child does is raised here.
        """
        if self._process is None:
            if self.restarts >= self._limits.restarts:
                return Outcome(
                    "failed", f"failed: not run, since {self.restarts} child processes have already ended"
                )
            started = self._start()
            if started.status != "done":
                return started
        return self._exchange({"handler": handler, "request": request}, seconds or self._limits.seconds)

    def last_lines(self) -> str:
        """The end of what the children printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 20000))
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        self._log.seek(0, os.SEEK_END)
        return "\n".join(lines[-LAST_LINES:])

    def close(self) -> None:
        """Ends the child and whatever it started."""
        self._end()
        self._log.close()

    def _start(self) -> Outcome:
        self._starts += 1
        mine, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                module_command(str(self._engine.python), "tracereplay.alone.child", str(theirs.fileno())),
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        self._socket = mine
        outcome = self._exchange(self._begin, self._limits.start_seconds)
        if outcome.status == "done":
            self.info = outcome.outputs
        else:
            self._end()
        return outcome

    def _exchange(self, message: Any, seconds: float) -> Outcome:
        assert self._socket is not None
        channel = Channel(self._socket, self._limits.largest)
        deadline = time.monotonic() + seconds
        try:
            channel.send(message, deadline)
        except TooLarge as error:
            return Outcome("failed", f"failed: {error}")
        except TimeoutError:
            return self._timed_out(seconds)
        except Closed:
            return self._crashed()
        try:
            answer = channel.receive(deadline)
            return _outcome(answer)
        except TimeoutError:
            return self._timed_out(seconds)
        except Closed:
            return self._crashed()
        except (TooLarge, KeyError, TypeError) as error:
            self._end()
            return Outcome("failed", f"failed: {error}")

    def _timed_out(self, seconds: float) -> Outcome:
        self._end()
        return Outcome("timed out", f"timed out after {seconds:g} s")

    def _crashed(self) -> Outcome:
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        code = process.returncode
        self._end()
        if code is None:
            return Outcome("crashed", "crashed: it closed its socket and went on")
        if code >= 0:
            return Outcome("crashed", f"crashed: exit code {code}")
        hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        return Outcome("crashed", f"crashed: signal {-code} ({signal.Signals(-code).name}){hint}")

    def _end(self) -> None:
        process, self._process = self._process, None
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def alone_of(engine: Launchable) -> Alone:
    """How calls of the engine's family are run in isolation.

    Raises:
        Unsupported: they are not.
    """
    family = family_named(engine.family)
    if family.alone is None:
        raise Unsupported(f"Single calls of {family.title} cannot be run in isolation; leave out --mode isolated.")
    return family.alone


def _handlers(engine: Launchable) -> dict[str, str]:
    return {KERNEL: "tracereplay.alone.child.kernels", OPERATOR: alone_of(engine).operators}


def _environment(engine: Launchable) -> dict[str, str]:
    """An engine's environment without the plugin, which has nothing to do here, and without secrets."""
    found = {**guest_environment(engine), **SAFE}
    found.pop(ENABLED)
    found.pop(IDENTITY, None)
    return {name: value for name, value in found.items() if not _SECRET.search(name)} | _ALONE


def _outcome(answer: Mapping[str, Any]) -> Outcome:
    status: Status = answer["status"]
    if status == "done":
        return Outcome("done", "", answer["outputs"])
    reason = answer["reason"]
    return Outcome(status, reason if status == "out of memory" else f"{status}: {reason}")
