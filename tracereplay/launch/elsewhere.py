"""Recording engines that somebody else starts: actors of a cluster, jobs of a scheduler.

    begin ─▶ variables, for their processes ─▶ each engine writes segments of its own ─▶ finish

Nobody is their parent here. The trace's folder is all that both sides share, maybe on several machines: engines
take their numbers in it, and end when they see the file there that says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tracereplay.engines.known import DEFAULT, family_named
from tracereplay.engines.variables import ENABLED, ENDED, GRAPHS, OPTIONS, RECORD_TO
from tracereplay.errors import TraceError, UsageError
from tracereplay.launch.capture import without_secrets
from tracereplay.launch.filling import Checkpoints, Filling
from tracereplay.launch.home import home
from tracereplay.launch.overlay import overlay_for
from tracereplay.launch.process import Launchable
from tracereplay.launch.release import our_version
from tracereplay.passes import RECORD
from tracereplay.recorder.options import GraphOptions, Options
from tracereplay.trace import TraceDirectory, open_trace
from tracereplay.trace.directory import ENDED as ENDED_FILE
from tracereplay.trace.directory import locked

__all__ = ["PATIENCE", "begin", "finish", "lacks", "variables"]

PATIENCE = 120.0  # seconds that engines have to end their segments; another machine may see a file that late
QUIET = 5.0  # seconds in which nobody writes to a segment that has no end, where locks say nothing
LOOK = 0.1
_JOINED = ("PYTHONPATH", "LD_PRELOAD")  # ours come first, and what was there stays

NOBODY = (
    "No engine of {} was recorded into {}: an engine is if its process has the variables that were made for this "
    "trace, an environment with tracereplay, and this folder under the same path."
)
REFUSED = "{}: the engine was not recorded. {}"
GONE = (
    "{}: its engine was ended before the recording was; finish a recording while its engines still run, so that "
    "each can say that it lacks nothing."
)
DROPPED = "{}: {} steps were left out, because the disk could not keep up; when_behind='block' waits for it."
OTHERWISE = "Some of its engines or of their ranks are missing, or their steps differ."


def begin(trace: Path, options: Options, command: Sequence[str]) -> TraceDirectory:
    """Makes the trace into which engines are recorded.

    Args:
        trace: to create.
        options: how much is recorded.
        command: by which the program that starts the engines was called; words that look like secrets are left
            out.

    Raises:
        UsageError: it cannot be created.
    """
    if os.path.lexists(trace):
        raise UsageError(f"{trace} already exists; give another path, or remove it first.")
    header = {
        "tracereplay": our_version(), "kind": "recording", "level": options.level,
        "command": without_secrets(command), "engine": {"name": "command", "family": DEFAULT},
    }  # fmt: skip
    return TraceDirectory(trace.resolve(), {**header, "notes": options.told(), **options.header()})


def variables(
    trace: Path, options: Options, theirs: Mapping[str, str], engine: Launchable | None = None
) -> dict[str, str]:
    """The environment variables of processes whose engines are recorded.

    Args:
        trace: see `begin`.
        options: see `begin`.
        theirs: what is set there anyhow; ours come first.
        engine: in whose environment they run, if tracereplay is not installed there.
    """
    family = family_named(DEFAULT if engine is None else engine.family)
    graphs = GraphOptions("nothing", options.sites, options.sides, options.level)
    path = trace.resolve()
    ours = {
        ENABLED: "1", RECORD_TO: str(path), ENDED: str(path / ENDED_FILE), OPTIONS: json.dumps(options.as_dict()),
        GRAPHS: json.dumps(graphs.as_dict()),
        **family.taps_environment({**os.environ, **theirs}, home() / "compiled"),
    }  # fmt: skip
    if engine is None:
        return {**theirs, **ours}
    first = {name: value for name, value in engine.env.items() if name in _JOINED}
    if family.entry_points is not None:
        first["PYTHONPATH"] = str(overlay_for(engine.python, family.entry_points))
    joined = {name: f"{value}:{theirs.get(name, f'${{{name}}}')}" for name, value in first.items()}
    return {**engine.env, **theirs, **ours, **joined}


def finish(directory: TraceDirectory, seconds: float = PATIENCE) -> bool:
    """Ends the recording, waits until engines have ended their segments, and completes the trace.

    Args:
        directory: of the trace.
        seconds: to wait at most. An engine ends between two steps.

    Returns:
        Whether it is complete; `lacks` says why it is not.

    Raises:
        UsageError: no engine was recorded; the trace is removed.
    """
    path = directory.path
    try:
        (path / ENDED_FILE).touch(mode=0o600)
    except OSError as error:
        raise UsageError(f"The recording {path} cannot be ended there: {error.strerror}.") from error
    end = time.monotonic() + seconds
    written = _Written(path)
    while written.goes_on() and time.monotonic() < end:
        time.sleep(LOOK)
    if not Filling(directory, Checkpoints()).finish():
        raise UsageError(NOBODY.format(family_named(DEFAULT).title, path))
    return directory.state == "complete"


def lacks(path: Path) -> list[str]:
    """Why a trace that was finished is not complete, in sentences."""
    with open_trace(path) as trace:
        parts = [trace.part(key) for key in trace.parts_of(RECORD)]
        why = {part.name: part.meta.get("refused") for part in parts}
        refused = [REFUSED.format(name, said) for name, said in why.items() if said]
        gone = [GONE.format(p.name) for p in parts if not p.complete and not why[p.name]]
        left = [DROPPED.format(p.name, n) for p in parts if (n := (p.summary or {}).get("dropped"))]
    return [*refused, *gone, *left] or [OTHERWISE]


class _Written:
    """Whether anybody writes to a trace's segments."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[Path, tuple[int, float]] = {}  # of those without an end: bytes, and since when
        self._ended: set[Path] = set()

    def goes_on(self) -> bool:
        return any(self._writes(segment) for segment in self._path.glob("*.seg"))

    def _writes(self, segment: Path) -> bool:
        if segment in self._ended:
            return False
        if locked(segment):
            return True
        size, now = segment.stat().st_size, time.monotonic()
        if self._sizes.get(segment, (-1, 0.0))[0] != size:
            self._sizes[segment] = size, now
            with contextlib.suppress(TraceError, OSError):
                self._note_ends()
        return segment not in self._ended and now - self._sizes[segment][1] < QUIET

    def _note_ends(self) -> None:
        with open_trace(self._path) as trace:
            parts = [trace.part(key) for key in trace.parts_of(RECORD)]
            self._ended |= {self._path / part.name for part in parts if part.summary is not None}
