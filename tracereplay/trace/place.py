"""Where a new trace is written, without losing what exists there.

    nothing at OUT            it is made at OUT
    --force, and a trace      it is made as .OUT.partial-XXXXXXXX beside it, and renamed when it is complete
    anything else             refused

What is replaced is certain to be a trace of this tool (a manifest that passes its checksum, the segments that it
names and no other file), is not being recorded and is not read by the command itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from tracereplay.errors import NotATrace, TraceError, UsageError
from tracereplay.storage.atomic import beside
from tracereplay.trace.bundled import is_bundle
from tracereplay.trace.directory import (
    CLAIM,
    ENDED,
    MANIFEST,
    SEGMENT,
    WEIGHTS,
    live_part,
    made_here,
    refuse_taken,
)
from tracereplay.trace.frames import MAGIC
from tracereplay.trace.open import Trace, open_trace
from tracereplay.trace.requests import NAME as REQUESTS

__all__ = ["Place", "in_use", "new_trace", "passing_trace", "remove_trace"]


class Place:
    """Where a new trace is written, and where it ends up.

    Args:
        out: where it goes.
        force: replace an existing trace.
        inputs: paths that the command reads, which are never replaced.

    The public attributes: ``path``, where the new trace is at the moment, and ``replaces``, whether a trace is
    there that stays until `put`.

    Raises:
        UsageError: something at ``out`` must not be replaced.
    """

    def __init__(self, out: Path, *, force: bool = False, inputs: Iterable[Path] = ()) -> None:
        self.out = self.path = out
        self.replaces = os.path.lexists(out)
        self._inputs = tuple(inputs)
        if self.replaces:
            if not force:
                refuse_taken(out)
            _refuse_others(out, self._inputs)
            self.path = beside(Path(os.path.abspath(out)))

    def put(self) -> None:
        """Moves the new trace to where it goes; the one that it replaces is deleted.

        Raises:
            UsageError: what is there must stay after all, or cannot be renamed. The new trace stays at ``path``.
        """
        if self.path == self.out:
            return
        try:
            self._swap()
        except OSError as error:
            raise UsageError(
                f"{self.out} cannot be replaced: {error.strerror}. The new trace is {self.path}."
            ) from error
        except UsageError as error:
            raise UsageError(f"{error} The new trace is {self.path}.") from error
        self.path = self.out

    def _swap(self) -> None:
        if not os.path.lexists(self.out):
            os.rename(self.path, self.out)
            return
        _refuse_others(self.out, self._inputs)  # minutes have passed
        if not self.out.is_dir() and not self.path.is_dir():
            os.replace(self.path, self.out)
            return
        old = beside(self.path.with_name(self.out.name), "replaced")
        os.rename(self.out, old)
        try:
            os.rename(self.path, self.out)
        except OSError:
            os.rename(old, self.out)
            raise
        with suppress(OSError):  # what came to be in there is not ours to delete
            _delete(old)

    def clear(self) -> bool:
        """Removes a new trace in which no step was finished; returns whether none is left.

        Why: the next attempt would be told that something is there already.
        """
        if not os.path.lexists(self.path):
            return True
        if not made_here(self.path) or _has_steps(self.path):
            return False
        with suppress(OSError):
            _delete(self.path)
        return not self.path.exists()


@contextmanager
def new_trace(
    out: Path, *, force: bool, inputs: Iterable[Path] = (), tell: Callable[[str], None] = lambda line: None
) -> Iterator[Place]:
    """The place of a trace that is made in the context; what it replaces stays until the new one is complete.

    Args:
        out: where it goes.
        force: replace an existing trace.
        inputs: what is read for it.
        tell: called with a sentence where the new trace is not at ``out``, or not yet.

    Raises:
        UsageError: see `Place`.
    """
    place = Place(out, force=force, inputs=inputs)
    if place.replaces:
        tell(f"{out} stays unchanged until the new trace, {place.path}, is complete.")
    try:
        yield place
        if place.replaces and not _complete(place.path):
            tell(f"The new trace is incomplete: it stays at {place.path}, and {out} is unchanged.")
        else:
            place.put()
    except BaseException:
        if not place.clear() and place.replaces:
            tell(f"What was finished is in {place.path}; {out} is unchanged.")
        raise


def _complete(path: Path) -> bool:
    with open_trace(path) as trace:
        return trace.complete


def remove_trace(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Makes room at ``path``, where only traces of our own are kept.

    Raises:
        UsageError: see `Place`.
    """
    if os.path.lexists(path):
        _refuse_others(path, inputs)
        _delete(path)


@contextmanager
def passing_trace(path: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Room for a trace that goes with the context; one that an earlier attempt left there is removed first.

    Raises:
        UsageError: see `Place`.
    """
    remove_trace(path, inputs)
    try:
        yield path
    finally:
        with suppress(OSError):
            _delete(path)


def in_use(path: Path) -> bool:
    """Whether another process is recording into the trace at ``path``."""
    return path.is_dir() and live_part(path) is not None


def _refuse_others(path: Path, inputs: Iterable[Path]) -> None:
    try:
        why = _why_it_stays(path, inputs)
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    if why is not None:
        raise UsageError(f"{path} {why}, so it is not replaced. Give another path, or move it away.")


def _why_it_stays(path: Path, inputs: Iterable[Path]) -> str | None:
    if any(_same(path, given) for given in inputs):
        return "is read by this command"
    if path.is_symlink():
        return "is a symbolic link"
    if _same(path, Path.cwd()):
        return "is the current directory"
    if path.is_dir() and not any(path.iterdir()):
        return None
    try:
        with open_trace(path) as trace:
            why = _why_not_ours(path, trace)
    except NotATrace:
        return "is a directory that is not a trace" if path.is_dir() else "is a file that is not a trace"
    except TraceError as error:
        return f"is not certain to be a trace ({error})"
    return why or ("is being recorded" if in_use(path) else None)


def _why_not_ours(path: Path, trace: Trace) -> str | None:
    if is_bundle(path):
        return "is a bundle, and not only a trace"
    others = [] if trace.packed else sorted(name for name in os.listdir(path) if not _is_ours(name))
    if others:
        return f"contains {others[0]!r} in addition to a trace"
    for key in trace.parts:
        start = trace.file(key).read(0, len(MAGIC))
        if start != MAGIC[: len(start)]:
            return f"holds a segment {'-rank'.join(map(str, key))}.seg that is not one"
    lacking = [name for name in trace.results if name not in trace.passes]
    return f"lacks the segments of the pass {lacking[0]!r}" if lacking else None


def _is_ours(name: str) -> bool:
    ours = name in (MANIFEST, f"{MANIFEST}.partial", "control.sock", ENDED)
    ours = ours or any(known.fullmatch(name) for known in (SEGMENT, REQUESTS))
    return ours or fnmatchcase(name, CLAIM.format("[0-9]*"))


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _has_steps(path: Path) -> bool:
    """Whether a step of the generation was finished; where that cannot be seen, it may be."""
    try:
        with open_trace(path) as trace:
            return any(len(trace.segment(*key)) for key in trace.parts if key[0] != WEIGHTS)
    except NotATrace:
        return any(path.iterdir()) if path.is_dir() else True
    except (TraceError, OSError):
        return True


def _delete(path: Path) -> None:
    """Deletes a trace's own files, and its directory if nothing else is in it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for name in filter(_is_ours, os.listdir(path)):
        (path / name).unlink()
    path.rmdir()
