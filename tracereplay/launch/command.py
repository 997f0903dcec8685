"""Recording a command of the user's own: ``tracereplay record -o DIR.trace -- COMMAND ...``.

The command runs unchanged, with the plugin on its path. Its requests are not known beforehand: the segments
say which requests started and which tokens they produced.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracereplay.engines.known import DEFAULT, family_named
from tracereplay.engines.variables import CONTROL, GRAPHS, OPTIONS, RECORD_TO, SOCKET
from tracereplay.errors import UsageError
from tracereplay.launch.budget import Budget
from tracereplay.launch.child import Child
from tracereplay.launch.collection import Traces, check_collection
from tracereplay.launch.making import engine_header
from tracereplay.launch.process import Launchable, guest_environment
from tracereplay.launch.recording import Recording
from tracereplay.launch.room import Room
from tracereplay.recorder.flight import RUN
from tracereplay.recorder.options import GraphOptions, Options
from tracereplay.trace.directory import CLAIM
from tracereplay.trace.sealed import IDENTITY, own_recipient
from tracereplay.trace.withheld import Withheld

__all__ = ["How", "record_command", "record_traces"]

NO_ENGINE = (
    "The command ended and no engine of {} in it was recorded; does it start one in an environment that "
    "tracereplay can enter? (--engine NAME says which)"
)
_SECRET = ("key", "token", "secret", "password", "credential", "auth")


@dataclass(frozen=True)
class How:
    """How a command's recording is cut into traces, and controlled.

    Args:
        collection: whether ``out`` is a directory of numbered traces.
        ring: whether these hold what triggers find worth it, and nothing else is recorded.
        budget: of a collection.
        control: whether there is a socket by which it is controlled.
        paused: whether it begins with a pause.
    """

    collection: bool = False
    ring: bool = False
    budget: Budget = field(default_factory=Budget)
    control: bool = True
    paused: bool = False


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
    said = _without_secrets(command)
    header = {
        "tracereplay": version("tracereplay"), "kind": "recording", "level": options.level,
        "command": said, "engine": engine_header(launched),
    }  # fmt: skip
    if options.withhold is not None:
        said = [command[0], "..."]
        header |= {"withheld": Withheld(options.withhold).said(), "command": said}
    recipients = options.recipients
    if recipients:
        options = replace(options, recipients=(*recipients, own_recipient()))
    if how.collection:
        check_collection(out)
    traces = Traces(out, header, options, collection=how.collection, ring=how.ring, recipients=recipients)
    room = Room()
    if how.ring:  # for traces that are made when nobody is left to ask
        told = {"notes": options.told(), **options.header()}
        (room.path / RUN).write_text(json.dumps({**header, **told}))
    try:
        recording = Recording(traces, room, options, how.budget, said, control=how.control, paused=how.paused)
    except BaseException:
        traces.discard()
        room.remove()
        raise
    graphs = GraphOptions("nothing", options.sites, options.sides, withhold=options.withhold is not None)
    environment = {
        **guest_environment(launched),
        RECORD_TO: str(traces.current),
        OPTIONS: json.dumps(options.as_dict()),
        GRAPHS: json.dumps(graphs.as_dict()),
        CONTROL: str(room.path),
        **({} if recording.socket is None else {SOCKET: str(recording.socket.path)}),
    }
    environment.pop(IDENTITY, None)  # what is recorded has no use for what opens traces
    before = signal.signal(signal.SIGUSR2, lambda number, frame: recording.signalled())
    try:
        with Child([found, *command[1:]], environment, memory=room.memory) as child:
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


def _without_secrets(command: Sequence[str]) -> list[str]:
    """The command line without secrets: ``--api-key ...``."""
    said: list[str] = []
    hide = False
    for word in command:
        name, equals, _ = word.partition("=")
        secret = any(part in name.lower() for part in _SECRET) and (equals or name.startswith("-"))
        said.append("..." if hide else f"{name}=..." if secret and equals else word)
        hide = bool(secret) and not equals and not hide
    return said
