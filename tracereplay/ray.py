"""Recording engines in actors of Ray: the runtime environment for that, and what completes the trace.

    with tracereplay.ray.recording("golden.trace", sites=["model.layers.*"]) as recording:
        ray.init(runtime_env=recording.runtime_env({"env_vars": {"NCCL_DEBUG": "WARN"}}))
        train()  # actors build engines and generate
    print(recording.complete)

Each engine writes segments of its own into the one trace, whichever actor it lives in, one after the other or at
the same time. Where several machines have actors, the trace has to be on a file system that they share, under the
same path, and tracereplay in the environment of each.

Nothing here imports Ray: a runtime environment is plain data.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tracereplay.environments.registry import load_engine
from tracereplay.errors import TracereplayError
from tracereplay.launch import elsewhere
from tracereplay.launch.asking import options_of
from tracereplay.launch.process import Launchable
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, TraceDirectory, open_trace

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Chosen", "Recording", "finish", "recording", "runtime_env"]


class Chosen(TypedDict, total=False):
    """What is recorded: options of ``tracereplay record``; several values are given as a list.

    Keys:
        sites, sides, level, tokens, every: which operators, and which of their rows and steps.
        sample, requests, marked: which requests.
        max_steps: of an engine.
        max_bytes: of an engine's rank.
        when_behind: ``drop`` (steps, which is said; the default) or ``block`` (engines).
    """

    sites: str | Iterable[str]
    sides: str | Iterable[str]
    level: str
    tokens: str | None
    every: int
    sample: str | float | None
    requests: str | Iterable[str]
    marked: bool
    max_steps: int | None
    max_bytes: int | None
    when_behind: str


@dataclass
class Recording:
    """A recording of engines that actors start.

    Args:
        path: the trace.
        complete: whether it has ended, and lacks nothing.
    """

    path: Path
    options: Options
    engine: Launchable | None = None
    complete: bool = False

    def runtime_env(self, mine: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The runtime environment for ``ray.init``, for a job or for single actors.

        Args:
            mine: what else it should have. Of its ``env_vars`` all are kept but those that recording needs.
        """
        given = dict(mine or {})
        theirs = given.pop("env_vars", None) or {}
        return {**given, "env_vars": elsewhere.variables(self.path, self.options, theirs, self.engine)}

    @property
    def trace(self) -> Trace:
        """The trace, open for reading."""
        return open_trace(self.path)


_held: dict[Path, TraceDirectory] = {}  # of this process, which shows others that they are being recorded


def runtime_env(
    trace: str | PathLike[str], mine: Mapping[str, Any] | None = None, *, engine: str | None = None,
    **chosen: Unpack[Chosen],
) -> dict[str, Any]:  # fmt: skip
    """Makes a trace, and gives the runtime environment that makes actors record into it; `finish` completes it.

    Args:
        trace: to create.
        mine: see `Recording.runtime_env`.
        engine: a registered engine in whose environment the actors run; by default tracereplay is installed in
            theirs.
        chosen: see `Chosen`.

    Raises:
        UsageError: the trace cannot be created, or what is chosen makes no sense.

    >>> import tempfile
    >>> mine = {"pip": ["x"], "env_vars": {"MINE": "1"}}
    >>> env = runtime_env(f"{tempfile.mkdtemp()}/golden.trace", mine, every=10)
    >>> env["pip"], env["env_vars"]["MINE"], env["env_vars"]["TRACEREPLAY_RECORD"].rpartition("/")[2]
    (['x'], '1', 'golden.trace')
    """
    return _begin(trace, engine, chosen).runtime_env(mine)


@contextlib.contextmanager
def recording(
    trace: str | PathLike[str], *, engine: str | None = None, **chosen: Unpack[Chosen]
) -> Iterator[Recording]:
    """Records the engines of actors that get its runtime environment, until the block ends.

    Leave the block while the actors still run: an engine that is ended before can no longer say that its segment
    lacks nothing, and the trace is not complete then. Nothing is raised for that, nor where no engine was
    recorded: a warning says so, and what follows the block runs.

    Args:
        trace: see `runtime_env`.
        engine: see `runtime_env`.
        chosen: see `Chosen`.

    Raises:
        UsageError: the trace cannot be created, or what is chosen makes no sense.
    """
    begun = _begin(trace, engine, chosen)
    try:
        yield begun
    finally:
        try:
            begun.complete = finish(begun.path)
            words = [] if begun.complete else [f"{begun.path} is not complete.", *elsewhere.lacks(begun.path)]
        except TracereplayError as error:
            words = [str(error)]
        if words:
            warnings.warn(" ".join(words), stacklevel=3)


def finish(trace: str | PathLike[str], timeout: float = elsewhere.PATIENCE) -> bool:
    """Ends the recording of a trace that `runtime_env` made, in whichever process, and completes it.

    Args:
        trace: its path.
        timeout: seconds that engines have to end their segments.

    Returns:
        Whether it is complete: each engine ended its segments itself, and left nothing out.

    Raises:
        UsageError: no engine was recorded; the trace is removed.
        TraceError: there is no trace.
    """
    path = Path(trace).resolve()
    with open_trace(path) as found:
        if found.said_complete:
            return True
    held = _held.pop(path) if path in _held else TraceDirectory.continued(path)
    return elsewhere.finish(held, timeout)


def _begin(trace: str | PathLike[str], engine: str | None, chosen: Chosen) -> Recording:
    given: dict[str, Any] = {"when_behind": "drop", **chosen}
    options = options_of(**given)
    launched = None if engine is None else load_engine(engine)
    path = Path(trace).resolve()
    _held[path] = elsewhere.begin(path, options, sys.argv)
    return Recording(path, options, launched)
