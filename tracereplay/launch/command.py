"""Recording a command of the user's own: ``tracereplay record -o DIR.trace -- COMMAND ...``.

The command runs unchanged, with the plugin on its path. Its requests are not known beforehand: the segments
say which requests started and which tokens they produced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.engines.known import DEFAULT, family_named
from tracereplay.errors import UsageError
from tracereplay.launch.asking import How
from tracereplay.launch.capture import Capture
from tracereplay.launch.child import Child
from tracereplay.launch.making import engine_header
from tracereplay.launch.process import Launchable, guest_environment
from tracereplay.recorder.options import Options
from tracereplay.trace.directory import CLAIM
from tracereplay.trace.sealed import IDENTITY

__all__ = ["record_command", "record_traces"]

NO_ENGINE = (
    "The command ended and no engine of {} in it was recorded; does it start one in an environment that "
    "tracereplay can enter? (--engine NAME says which)"
)


class _Interpreter:
    """An unregistered engine, known only by its interpreter."""

    name = "command"
    env: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}
    family = DEFAULT

    def __init__(self, python: Path) -> None:
        self.python = python


def record_command(
    command: Sequence[str], out: Path, *, engine: Launchable | None = None, options: Options = Options()
) -> int:
    """`record_traces` into one trace; returns the command's exit code."""
    return record_traces(command, out, engine=engine, options=options)[0]


def record_traces(
    command: Sequence[str], out: Path, *, engine: Launchable | None = None, options: Options = Options(),
    how: How = How(),
) -> tuple[int, list[tuple[Path, bool]]]:  # fmt: skip
    """Runs ``command`` with recording on, as its parent (`child.Child`).

    Args:
        command: what to run.
        out: trace to create, or the directory of a collection.
        engine: whose environment to run it in; by default the interpreter that the command itself names.
        options: how much is recorded.
        how: into which traces, and who may control it.

    Returns:
        The command's exit code, and the traces, each with whether it is complete: every worker closed its segment.

    Raises:
        UsageError: the command is not found, or it generated nothing that could be recorded.
    """
    out = out.resolve()  # workers name traces by this path, too
    found = _find(command[0], engine)
    launched = engine or _Interpreter(_interpreter(found))
    made = Capture(out, command, engine_header(launched), options, how)
    traces, room, recording = made.traces, made.room, made.recording
    environment = {**guest_environment(launched), **made.variables}
    environment.pop(IDENTITY, None)  # what is recorded has no use for what opens traces
    before = signal.signal(signal.SIGUSR2, lambda number, frame: recording.signalled())
    try:
        with Child([found, *command[1:]], environment, memory=room.memory) as child:
            recording.told_to_end = lambda: child.told_to_end
            recording.start()
            code = child.wait()
            child.settle(lambda: _written(out))
            served = any(room.path.glob(CLAIM.format("*")))  # the room goes with the child's shared memory
            recording.stop()
        traces.finish()
    finally:
        recording.stop()
        signal.signal(signal.SIGUSR2, before)
        room.remove()
        traces.let_go()
    if not (traces.finished or (how.ring and served)):
        traces.clear()
        raise UsageError(NO_ENGINE.format(family_named(DEFAULT).title))
    return code, traces.finished


def _written(out: Path) -> int:
    """Bytes of all segments; traces are removed meanwhile."""
    total = 0
    for path in out.glob("**/*.seg"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _find(name: str, engine: Launchable | None) -> str:
    beside = None if engine is None else shutil.which(name, path=str(engine.python.parent))
    found = beside or shutil.which(name)
    if found is None:
        raise UsageError(f"The command {name!r} was not found; give a program on PATH, or its whole path.")
    return found


def _interpreter(program: str) -> Path:
    """The Python that runs ``program``: itself, or that of its shebang line."""
    if Path(program).name.startswith("python"):
        return Path(program)
    with open(program, "rb") as file:
        first = file.readline(512)
    if first.startswith(b"#!") and b"python" in first:
        return Path(os.fsdecode(first[2:].split()[0]))
    return Path(sys.executable)
