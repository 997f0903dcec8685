"""Recording engines that a user's own Python builds, in this process or in processes of theirs.

    with recording("golden.trace") as r:  ─▶ variables in os.environ, plugin ─▶ vllm.LLM(...) ─▶ workers record
                                              ▲ room, control (`capture`)                            │
    end of the block ─▶ a file says that it is over ─▶ workers end their segments between two steps ─┘ ─▶ r.trace

This runs in the engine's environment, so it imports neither what prints nor what builds environments.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import tracereplay
from tracereplay.engines.family import Family, Own
from tracereplay.engines.known import FAMILIES
from tracereplay.engines.variables import ARGUMENTS, ENABLED, ENDED, RECORD_TO
from tracereplay.errors import TracereplayError, UsageError
from tracereplay.launch.asking import How, how_of, options_of
from tracereplay.launch.capture import Capture
from tracereplay.launch.collection import refusals
from tracereplay.launch.control import check_socket
from tracereplay.launch.home import home
from tracereplay.launch.overlay import declare
from tracereplay.recorder import triggers
from tracereplay.recorder.options import OPERATOR, Options
from tracereplay.recorder.status import ENDED as STOPPED
from tracereplay.recorder.status import read_status
from tracereplay.storage.atomic import local_path
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.directory import CLAIM, locked
from tracereplay.trace.place import Place

__all__ = ["OwnRecording", "recording"]

PATIENCE = 120.0  # seconds that engines have to end their segments: each does between two steps
AFTER_AN_ERROR = 10.0  # and where an exception left the block, maybe out of the middle of a step
_GUEST = "guest"  # a folder in the room, by which processes find the plugin
_OVER = "over"  # a file in the room: the recording has ended
LOOK = 0.02
LATE = (
    "An engine of {} was built in this process before the recording began, and cannot be recorded any more; enter "
    "tracereplay.recording first, and build the engine within it."
)
NONE = (
    "Nothing was recorded, since no engine of {} was built within the recording; enter tracereplay.recording "
    "first, and build the engine within it."
)
TWICE = (
    "This process is being recorded into {} already; end that recording first, or leave out "
    "`tracereplay record --` before the command."
)


def recording(
    out: str | os.PathLike[str], *, sites: str | Iterable[str] = (), sides: str | Iterable[str] = "in,out",
    level: str = OPERATOR, check_writes: bool = True, tokens: str | None = None, every: int = 1,
    sample: str | float | None = None, requests: str | Iterable[str] = (), marked: bool = False,
    ring: str | None = None, trigger: str | Iterable[str] | None = None, trigger_every: str | float = "60s",
    trigger_most: int = triggers.MOST, trigger_after: int = Options.trigger_after, rotate: str | None = None,
    keep: str | int | None = None, leave_free: str | None = None, resume_when_room: bool = False,
    max_steps: int | None = None, max_bytes: int | None = None, when_behind: str = "block",
    withhold: str | None = None, withhold_key: str | os.PathLike[str] | None = None,
    encrypt_to: str | Iterable[str] = (), keep_fields: str | Iterable[str] = (), paused: bool = False,
    control: bool = True, force: bool = False,
) -> OwnRecording:  # fmt: skip
    """Records what engines generate that are built within the ``with`` block, whether in this process or another.

    ::

        with tracereplay.recording("golden.trace", sites="*.mlp.*", sides="out") as recording:
            llm = vllm.LLM(...)
            llm.generate(...)
        print(recording.trace.complete)

    Enter it before an engine is built: operators are tapped when a model is loaded. vLLM may have been imported.
    The trace is complete when the block ends, whether engines live on or not; what they do then is not recorded.
    The same with the toy engine, which is a library, too:

    >>> from tracereplay.engines.toy.library import LLM
    >>> with tracereplay.recording("mine.trace", sites="*.mlp.*", sides="out") as recording:
    ...     tokens = LLM("model").generate(["Hello", [5, 6, 7]], max_tokens=4)
    >>> recording.trace.complete, len(recording.trace.run.prompts)
    (True, 2)

    Args:
        out: trace to write; with ``rotate`` or ``ring``, the folder of traces.
        force: replace a trace at ``out``, as soon as the new one is complete.
        sites, sides, level, check_writes, tokens, every: which operators, and which of their rows and steps.
        sample, requests, marked: which requests.
        ring, trigger, trigger_every, trigger_most, trigger_after: a flight recorder, and what makes traces of it.
        rotate, keep, leave_free, resume_when_room: several traces, and how much of the disk they may take.
        max_steps, max_bytes, when_behind: how much is recorded, and what happens if the disk cannot keep up.
        withhold, withhold_key, encrypt_to, keep_fields: what a trace may tell, and whom.
        paused: record nothing until `OwnRecording.resume`.
        control: make control.sock, by which ``tracereplay status`` and others reach the recording.

    All of these are the options of ``tracereplay record``; several values are given as a list.

    Raises:
        UsageError: one of them makes no sense, or something is at ``out``. When the block begins: an engine was
            built before, or another recording is under way. When it ends: no engine was built.
    """
    path = local_path(out)
    options = options_of(
        when_behind=when_behind, level=level, check_writes=check_writes, max_steps=max_steps, max_bytes=max_bytes,
        keep_fields=keep_fields, sample=sample, requests=requests, marked=marked, sites=sites, sides=sides,
        tokens=tokens, every=every, ring=ring, trigger=trigger, trigger_every=trigger_every,
        trigger_most=trigger_most, trigger_after=trigger_after, encrypt_to=encrypt_to, withhold=withhold,
        withhold_key=withhold_key,
    )  # fmt: skip
    how = how_of(
        rotate, keep, leave_free, resume_when_room=resume_when_room, paused=paused, control=control,
        ring=ring is not None,
    )  # fmt: skip
    return OwnRecording(path, options, how, force=force)


class OwnRecording:
    """A recording of what this process builds and runs; made by `recording`, and entered once.

    >>> from tracereplay.engines.toy.library import LLM
    >>> with tracereplay.recording("parts.trace") as recording:
    ...     llm = LLM("model")
    ...     recording.pause()
    ...     _ = llm.generate(["left out"], max_tokens=2)
    ...     recording.resume()
    ...     _ = llm.generate(["recorded"], max_tokens=2)
    >>> bytes(recording.trace.run.prompts[0].token_ids)
    b'recorded'
    >>> del llm
    """

    def __init__(self, out: Path, options: Options, how: How, *, force: bool = False) -> None:
        if how.collection and force:
            raise UsageError(f"--force replaces a trace, and {out} is a directory of traces, which is continued.")
        if how.control:
            check_socket(out)
        self._out, self._options, self._how = out.resolve(), options, how
        self._place = None if how.collection else Place(self._out, force=force)
        self._capture: Capture | None = None
        self._left = contextlib.ExitStack()
        self._made: tuple[tuple[Path, bool], ...] = ()

    def __enter__(self) -> OwnRecording:
        _refuse_late()
        command = [Path(sys.executable).name, *sys.argv]
        made = Capture(self.path, command, {"name": "python"}, self._options, self._how)
        with contextlib.ExitStack() as opened:
            opened.callback(self._let_go, made)
            opened.enter_context(_variables(made))
            for _, own in _owns():
                own.begin()
                opened.callback(own.end)
            made.recording.start()
            self._capture, self._left = made, opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        made, self._capture = self._capture, None
        if made is None:
            return
        with self._left:
            (made.room.path / _OVER).touch()
            patience = PATIENCE if kind is None else AFTER_AN_ERROR
            idle = _wait_for(made, patience)
            made.recording.stop()
            served = any(made.room.path.glob(CLAIM.format("*")))
        self._made = tuple(made.traces.finished)
        if not (self._made or (self._how.ring and served)):
            made.traces.clear()
            if kind is None:
                raise UsageError(NONE.format(_titles()))
        self._put()
        for lack in self._lacks(None if idle else patience):
            warnings.warn(lack, stacklevel=2)

    @staticmethod
    def _let_go(made: Capture) -> None:
        made.recording.stop()
        made.traces.finish()
        made.room.remove()
        made.traces.let_go()

    # -- while it runs ----------------------------------------------------------------------------------

    def pause(self) -> None:
        """Records no step that begins from now on; one of several ranks obeys some steps later, all alike."""
        self._running().recording.pause()

    def resume(self) -> None:
        """Records again; also what was begun with ``paused``."""
        self._running().recording.resume()

    def trigger(self, why: str = "") -> Path:
        """Makes a trace of the ring, or begins the next one of a collection; returns where it is.

        Raises:
            UsageError: it is a single trace.
        """
        return Path(self._running().recording.trigger("asked", detail=why[:1000])["trace"])

    def status(self) -> dict[str, Any]:
        """How it goes: what ``tracereplay status --json`` says."""
        return self._running().recording.status()

    def _running(self) -> Capture:
        if self._capture is None:
            raise UsageError(f"The recording into {self._out} is not under way; do this within its with block.")
        return self._capture

    # -- afterwards -------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where the trace is, or the folder of traces."""
        return self._out if self._place is None else self._place.path

    @property
    def traces(self) -> tuple[Path, ...]:
        """The finished traces, in order."""
        return tuple(path for path, _ in self._made)

    @property
    def trace(self) -> Trace:
        """The trace, opened; of several the last.

        Raises:
            UsageError: the recording has not ended, or has made none.
        """
        if self._capture is not None:
            raise UsageError(f"The recording into {self._out} is still under way; read it after its with block.")
        if not self._made:
            raise UsageError(f"The recording into {self._out} has made no trace.")
        return open_trace(self._made[-1][0])

    def _put(self) -> None:
        """Moves a trace to where it replaces another, if it is complete."""
        place = self._place
        if place is None or not self._made:
            if place is not None:
                place.clear()
            return
        (path, complete), *_ = self._made
        if place.replaces and not complete:
            warnings.warn(
                f"The new trace is incomplete: it stays at {path}, and {self._out} is unchanged.", stacklevel=3
            )
            return
        place.put()
        self._made = ((place.path, complete),)

    def _lacks(self, waited: float | None) -> Iterator[str]:
        """What a user must know of what was recorded, in sentences."""
        if waited is not None:
            yield f"An engine did not end its part of {self._out} within {waited:.0f} s: it is within a step."
        if self._how.ring:
            yield from (f"The engine was not recorded. {why}" for why in refusals(self._out))
        for path, complete in self._made:
            if not complete:
                with contextlib.suppress(TracereplayError, OSError), open_trace(path) as trace:
                    yield " ".join([f"{path} is incomplete.", *trace.run.notes])


def _owns() -> list[tuple[Family, Own]]:
    """What families need in this process that can be recorded there."""
    found = [(family, family.own) for family in FAMILIES.values()]
    return [(family, import_module(own)) for family, own in found if own is not None]


def _titles() -> str:
    return " or ".join(family.title for family, _ in _owns())


def _refuse_late() -> None:
    """Raises UsageError if an engine is there already, or is recorded otherwise."""
    if under_way := os.environ.get(RECORD_TO):
        raise UsageError(TWICE.format(under_way))
    for family, own in _owns():
        if own.is_built():
            raise UsageError(LATE.format(family.title))


def _wait_for(made: Capture, seconds: float) -> bool:
    """Waits until every engine has ended its segments; returns whether that came to be."""
    until = time.monotonic() + seconds
    while _writes(made):
        if time.monotonic() > until:
            return False
        time.sleep(LOOK)
    return True


def _writes(made: Capture) -> bool:
    ranks = read_status(made.room.path)
    if any(rank.alive() and rank.counters.state != STOPPED for rank in ranks):
        return True
    return any(map(locked, made.traces.path.glob("**/*.seg")))


@contextlib.contextmanager
def _variables(made: Capture) -> Iterator[None]:
    """The environment of engines that are recorded; afterwards it is as it was."""
    found: dict[str, str] = {ENABLED: "1", ENDED: str(made.room.path / _OVER), **made.variables}
    for family, own in _owns():
        found.update(family.taps_environment(os.environ, home() / "compiled"))
        if family.entry_points is not None and not own.is_declared():
            found["PYTHONPATH"] = _declared(made.room.path, family.entry_points)
    before = {name: os.environ.get(name) for name in (*found, ARGUMENTS)}
    os.environ.update(found)
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if entry != str(made.room.path / _GUEST)]
        _restore(before)


def _declared(room: Path, entry_points: str) -> str:
    """Makes a folder in ``room`` by which new processes find tracereplay's plugin, where it is not installed.

    Returns:
        ``PYTHONPATH`` with it.
    """
    folder = room / _GUEST
    folder.mkdir()
    declare(folder, Path(tracereplay.__file__).resolve().parent, entry_points)
    sys.path.append(str(folder))  # which multiprocessing hands on
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(folder)]))


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
