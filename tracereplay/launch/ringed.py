"""Recording a command into a ring: ``tracereplay record --ring 256MB -o DIR -- COMMAND ...``.

DIR then holds a trace for each trigger that fired: ``000001.trace`` and so on, which the writers make. What they
cannot know, and need not be asked for while an engine dies, is filled in here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracereplay.engines.known import DEFAULT, family_named
from tracereplay.errors import TracereplayError, UsageError
from tracereplay.launch.child import Child
from tracereplay.launch.command import NO_ENGINE, command_environment, command_header, find_command, weights_of
from tracereplay.launch.process import Launchable
from tracereplay.recorder.flight import RUN
from tracereplay.recorder.options import Options
from tracereplay.storage.files import LocalFile
from tracereplay.trace import SegmentReader, open_trace
from tracereplay.trace.directory import CLAIM, MANIFEST, locked, refuse_taken, replace_manifest
from tracereplay.trace.manifest import MAX_MANIFEST, read_manifest
from tracereplay.trace.served import is_whole

__all__ = ["refusals", "ring_command", "ring_traces"]


def ring_command(
    command: Sequence[str], out: Path, *, engine: Launchable | None = None, options: Options = Options()
) -> int:
    """Runs ``command`` with a flight recorder, as its parent.

    Args:
        command: what to run.
        out: folder to create, for the traces.
        engine: whose environment to run it in; by default the interpreter that the command itself names.
        options: how much is recorded; has a ring.

    Returns:
        The command's exit code.

    Raises:
        UsageError: the command is not found, ``out`` is taken, or no engine in it could be recorded.
    """
    found = find_command(command[0], engine)
    header = command_header(command, found, engine, options)
    refuse_taken(out)
    try:
        out.mkdir(parents=True)
        with os.fdopen(os.open(out / RUN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(header, file)
    except OSError as error:
        raise UsageError(f"{out} cannot be created: {error.strerror}.") from error
    finishing = _Finishing(out)
    try:
        environment = command_environment(found, engine, out, options)
        with Child([found, *command[1:]], environment, finishing.look) as child:
            code = child.wait()
            child.settle(lambda: sum(path.stat().st_size for path in out.glob("*/*.seg")))
        finishing.finish()
    finally:
        claims = list(out.glob(CLAIM.format("*")))
        for path in (out / RUN, *claims):
            path.unlink(missing_ok=True)
    if not claims:
        shutil.rmtree(out)
        raise UsageError(NO_ENGINE.format(family_named(DEFAULT).title))
    return code


def refusals(folder: Path) -> list[str]:
    """Why engines could not be recorded, in sentences; their workers leave a segment without steps each."""
    found: list[str] = []
    for path in sorted(folder.glob("*.seg")):
        with contextlib.suppress(TracereplayError, OSError), contextlib.closing(LocalFile(path)) as file:
            found.append(str(SegmentReader(file).meta.get("refused")))
    return list(dict.fromkeys(found))


def ring_traces(folder: Path) -> list[Path]:
    """The traces in a folder that `ring_command` made, in the order in which they were made."""
    return sorted(path for path in folder.glob("*.trace") if (path / MANIFEST).exists())


class _Finishing:
    """Completes the manifests of traces whose segments are closed, while the command runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: set[Path] = set()
        self._weights: dict[str, dict[str, Any]] = {}
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begins to complete what is there, beside whatever the parent does."""
        if (self._thread is None or not self._thread.is_alive()) and self._waiting():
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Completes what is there."""
        if self._thread is not None:
            self._thread.join()
        self._work()

    def _waiting(self) -> list[Path]:
        found = [path for path in ring_traces(self._folder) if path not in self._done]
        return [path for path in found if not locked(path)]

    def _work(self) -> None:
        for path in self._waiting():
            with contextlib.suppress(TracereplayError, OSError):  # one that is damaged says so when it is opened
                self._complete(path)
            self._done.add(path)

    def _complete(self, path: Path) -> None:
        with open_trace(path) as trace:
            run = {**trace.raw_run, "workload": dict(trace.raw_run["workload"])}
            model = str(run["workload"]["model"])
            if model not in self._weights:
                self._weights[model] = weights_of(Path(model))
            known = self._weights[model]
            if known:
                run["workload"]["weights"] = known["weights"]
                run |= {"checkpoint": known["tensors"], "model_files": known["files"]}
            manifest = read_manifest((path / MANIFEST).read_bytes()[: MAX_MANIFEST + 1], str(path / MANIFEST))
            state = "complete" if is_whole(trace) else "incomplete"
        replace_manifest(path, {**manifest, "run": run, "state": state})
