"""Recording a command of the user's own: ``tracereplay record -o DIR.trace -- COMMAND ...``.

The command runs unchanged, with the plugin on its path. Its requests are not known beforehand: the segments
say which requests started and which tokens they produced.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracereplay.engines.known import DEFAULT, family_named
from tracereplay.engines.variables import GRAPHS, OPTIONS, RECORD_TO
from tracereplay.errors import TracereplayError, UsageError
from tracereplay.launch.child import Child
from tracereplay.launch.making import engine_header
from tracereplay.launch.process import Launchable, guest_environment
from tracereplay.passes import RECORD
from tracereplay.recorder.options import GraphOptions, Options
from tracereplay.storage.checkpoint import model_files, read_checkpoint
from tracereplay.trace import TraceDirectory, open_trace
from tracereplay.trace.directory import CLAIM
from tracereplay.trace.served import is_whole

__all__ = ["NO_ENGINE", "command_environment", "command_header", "find_command", "record_command", "weights_of"]

NO_ENGINE = (
    "The command ended and no engine of {} in it was recorded; does it start one in an environment that "
    "tracereplay can enter? (--engine NAME says which)"
)
_SECRET = ("key", "token", "secret", "password", "credential", "auth")


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
    """Runs ``command`` with recording on, as its parent (`child.Child`).

    Args:
        command: what to run.
        out: trace to create.
        engine: whose environment to run it in; by default the interpreter that the command itself names.
        options: how much is recorded.

    Returns:
        The command's exit code. The trace is complete if every worker closed its segment.

    Raises:
        UsageError: the command is not found, or it generated nothing that could be recorded.
    """
    found = find_command(command[0], engine)
    environment = command_environment(found, engine, out, options)
    directory = TraceDirectory(out, command_header(command, found, engine, options))
    filling = _Filling(directory)
    try:
        with Child([found, *command[1:]], environment, filling.look) as child:
            code = child.wait()
            child.settle(lambda: sum(path.stat().st_size for path in out.glob("*.seg")))
        filling.finish()
    finally:
        directory.let_go()
    return code


def command_header(
    command: Sequence[str], found: str, engine: Launchable | None, options: Options
) -> dict[str, Any]:
    """What the manifest says of the run before it begins; see `record_command`."""
    return {
        "tracereplay": version("tracereplay"), "kind": "recording", "level": options.level, "notes": [],
        "command": _without_secrets(command), "engine": engine_header(engine or _Interpreter(_interpreter(found))),
    }  # fmt: skip


def command_environment(found: str, engine: Launchable | None, out: Path, options: Options) -> dict[str, str]:
    """The environment in which ``found`` is recorded to ``out``."""
    return {
        **guest_environment(engine or _Interpreter(_interpreter(found))),
        RECORD_TO: str(out.resolve()),
        OPTIONS: json.dumps(options.as_dict()),
        GRAPHS: json.dumps(GraphOptions("nothing", options.sites, options.sides).as_dict()),
    }


def weights_of(model: Path) -> dict[str, Any]:
    """The digests of a model's ``weights``, of its ``tensors`` and ``files``; empty if they cannot be read."""
    try:
        found = read_checkpoint(model) if model.is_dir() else None
    except (TracereplayError, OSError):
        found = None
    if found is None or found.digest is None:
        return {}
    return {"weights": found.digest, "tensors": found.tensors, "files": model_files(model)}


def find_command(name: str, engine: Launchable | None) -> str:
    """The program; that of the engine's environment comes first.

    Raises:
        UsageError: there is none.
    """
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


class _Filling:
    """Fills a trace's manifest while the command runs, so that it is useful whenever this process dies."""

    def __init__(self, directory: TraceDirectory) -> None:
        self._directory = directory
        self._thread: threading.Thread | None = None
        self._said = False
        self._checkpoint: dict[str, Any] = {}

    def look(self) -> None:
        """Fills in engine, model and settings once an engine has begun its segment, and the weights' digests once
        they are read."""
        try:
            if self._thread is None:
                self._begin()
            elif not self._said and not self._thread.is_alive():
                self._said = True
                self._write()
        except (TracereplayError, OSError):
            pass  # a segment may have just begun; the command goes on in any case

    def _begin(self) -> None:
        trace = open_trace(self._directory.path)
        if RECORD not in trace.passes or not all(trace.part(key).meta for key in trace.parts_of(RECORD)):
            return
        self._write()
        model = Path(trace.raw_run["workload"]["model"])
        self._thread = threading.Thread(target=self._read, args=(model,), daemon=True)
        self._thread.start()

    def _read(self, model: Path) -> None:
        self._checkpoint = weights_of(model)

    def _write(self) -> None:
        """Writes the manifest without prompts, which may be very many and are in the segments."""
        trace = open_trace(self._directory.path)
        run = {**trace.raw_run, "workload": {**trace.raw_run["workload"], "prompts": []}}
        self._fill(run)
        self._directory.update_run(**run)

    def _fill(self, run: dict[str, Any]) -> None:
        if self._checkpoint:
            run["workload"]["weights"] = self._checkpoint["weights"]
            run["checkpoint"] = self._checkpoint["tensors"]
            run["model_files"] = self._checkpoint["files"]

    def finish(self) -> None:
        """Completes the manifest when everything has ended; marks the trace complete if nothing is missing.

        Raises:
            UsageError: nothing was recorded.
        """
        trace = open_trace(self._directory.path)
        if RECORD not in trace.passes:
            shutil.rmtree(self._directory.path)
            raise UsageError(NO_ENGINE.format(family_named(DEFAULT).title))
        if self._thread is None:
            self._begin()
        if self._thread is not None:
            self._thread.join()
        trace = open_trace(self._directory.path)
        run = {**trace.raw_run, "workload": dict(trace.raw_run["workload"])}
        self._fill(run)
        self._directory.update_run(**run)
        for claim in self._directory.path.glob(CLAIM.format("*")):
            claim.unlink(missing_ok=True)
        if is_whole(trace):
            self._directory.complete()
