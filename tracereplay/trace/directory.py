"""A trace being written: a directory with a manifest and one segment for each pass and rank.

    NAME.trace/
      manifest.json        see `manifest.py`
      record-rank0.seg     the segments

Only its owner may read it: a recording holds what was asked and answered.

The manifest says ``incomplete`` until the very end, so that an interrupted recording is
recognized without reading any data.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.errors import RecordingIncomplete, UsageError
from tracereplay.event import Site
from tracereplay.storage.files import PRIVATE, PRIVATE_FOLDER
from tracereplay.trace.manifest import FORMAT, read_manifest, write_manifest
from tracereplay.trace.sealed import opened_for

__all__ = [
    "CLAIM",
    "ENDED",
    "MANIFEST",
    "SEGMENT",
    "WEIGHTS",
    "TraceDirectory",
    "live_part",
    "locked",
    "made_here",
    "part_name",
    "refuse_live",
    "refuse_taken",
    "replace_manifest",
    "segment_path",
    "weight_site",
]

MANIFEST = "manifest.json"
CLAIM = ".engine-{}"  # by which an engine of a recorded command takes its number; gone when it has ended
ENDED = ".ended"  # made when a trace is completed while engines live on, and stays: they must not begin anew there
SETTLE = 20.0  # seconds
SEGMENT = re.compile(r"(?P<pass>[a-z]{1,32}(?:-engine[1-9]\d{0,3})?)-rank(?P<rank>0|[1-9]\d{0,3})\.seg", re.ASCII)


WEIGHTS = "weights"  # the pass that holds a checkpoint's tensors, where they were asked for


def weight_site(name: str) -> Site:
    """The site under which a checkpoint's tensor is stored."""
    return Site(name, "Parameter", xxhash.xxh3_64_intdigest(name.encode()) >> 16)


def part_name(pass_name: str, engine: int) -> str:
    """The beginning of the names of an engine's segments; the first engine's do not name it."""
    return f"{pass_name}-engine{engine}" if engine else pass_name


def segment_path(directory: Path, pass_name: str, rank: int) -> Path:
    """Where a rank writes its part of a pass; see `part_name` for engines beside the first."""
    return directory / f"{pass_name}-rank{rank}.seg"


class TraceDirectory:
    """A trace that is being made.

    Args:
        path: directory to create.
        run: plain data: workload, engine, level.
        recipients: the only ones who can read it; see `SegmentWriter`, whose own they are, too.

    Raises:
        UsageError: ``path`` exists (see `place.Place`), or it cannot be created.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], recipients: Sequence[str] = ()) -> None:
        self.path = path
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "state": "incomplete",
            "run": {"began": _now(), **run},
            "passes": {},
        }
        if known := tuple(recipients) or opened_for():
            self._manifest["recipients"] = list(known)
        refuse_taken(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(PRIVATE_FOLDER)
            self._held = _Held(path)
            weakref.finalize(self, self._held.release)
            self._write_first()
        except OSError as error:
            raise UsageError(f"The trace {path} cannot be created: {error.strerror}.") from error

    @classmethod
    def continued(cls, path: Path) -> TraceDirectory:
        """One of a command's or of engines that others start, which was made before, by another process maybe.

        Raises:
            UsageError: it is none of these, or cannot be read.
            DamagedTrace: its manifest is damaged.
        """
        try:
            manifest = read_manifest((path / MANIFEST).read_bytes(), str(path / MANIFEST))
        except OSError as error:
            raise UsageError(f"{path} cannot be completed: {error.strerror}.") from error
        if "command" not in manifest["run"]:
            raise UsageError(f"{path} is not being recorded by engines of others; give the trace made for them.")
        found = cls.__new__(cls)
        found.path = path
        found._manifest = {key: value for key, value in manifest.items() if key != "check"}
        found._held = _Held(path)
        weakref.finalize(found, found._held.release)
        return found

    def update_run(self, **values: Any) -> None:
        """Adds to what is known of the run (the engine describes itself only after it has started)."""
        self._manifest["run"].update(values)
        self._save()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the trace lacks, as far as it has been said here."""
        return tuple(self._manifest["run"].get("notes", ()))

    def note(self, sentence: str) -> None:
        """Adds what the trace lacks, in words."""
        self._manifest["run"].setdefault("notes", []).append(sentence)

    def add_pass(self, name: str, results: Mapping[str, Any]) -> None:
        """Adds what the engine returned for a pass."""
        self._manifest["passes"][name] = dict(results)
        self._save()

    def complete(self) -> None:
        """Declares the trace complete."""
        self._manifest["state"] = "complete"
        self._manifest["run"]["ended"] = _now()
        self._save()
        self._held.release()

    @property
    def state(self) -> str:
        """``complete`` or ``incomplete``."""
        return str(self._manifest["state"])

    def let_go(self) -> None:
        """Says to others that it is no longer being made, whether it is complete or not."""
        self._held.release()

    def settle(self, seconds: float = SETTLE) -> bool:
        """Waits until no writer process has a segment open any more; returns whether that came to be.

        Why: an engine that was killed leaves its writer behind for a moment, which finishes what it was given.
        """
        end = time.monotonic() + seconds
        while any(locked(path) for path in self.path.glob("*.seg")):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def _save(self) -> None:
        try:
            self._write()
        except OSError as error:
            raise RecordingIncomplete(
                f"{self.path} is incomplete: its manifest cannot be written: {error.strerror}."
            ) from error

    def _write_first(self) -> None:
        try:
            self._write()
        except OSError:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # an empty one would be in the way of the next attempt
            raise

    def _write(self) -> None:
        """Replaces the manifest in one step: there is always a whole one, the new or the old."""
        replace_manifest(self.path, self._manifest)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def replace_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a trace's manifest in one step; raises OSError, and then the old one is still there."""
    partial = directory / f"{MANIFEST}.partial"
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE)
        with open(fd, "wb") as file:
            os.fchmod(fd, PRIVATE)  # one of an older version may be there
            file.write(write_manifest(manifest))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / MANIFEST)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def locked(path: Path) -> bool:
    """Whether somebody writes: a writer process locks its segment, and the parent of a recorded command the
    trace's directory."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(fd)
    return False


def live_part(path: Path) -> Path | None:
    """What another process writes of the trace (or the segment) at ``path``; None if nothing is."""
    parts = (path, *path.glob("*.seg"))
    return next((part for part in parts if locked(part) and not (part == path and made_here(path))), None)


def refuse_live(path: Path) -> None:
    """Raises UsageError if a trace, or a segment of one, is being written at ``path``."""
    if (part := live_part(path)) is not None:
        raise UsageError(
            f"{path} is being recorded: {part.name} is still being written. Wait until the recording has ended."
        )


class _Held:
    """The lock on a trace's directory: an engine may load for minutes before there is a segment to lock."""

    def __init__(self, path: Path) -> None:
        self._fd, self._pid = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), os.getpid()
        _made.add(_identity(self._fd))
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Lets go of it; safe to call again."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._pid == os.getpid():  # an engine that was forked has this file too, and would keep the lock
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


_made: set[tuple[int, int]] = set()  # device and inode of the directories that this process made


def _identity(of: Path | int) -> tuple[int, int]:
    found = os.stat(of)
    return found.st_dev, found.st_ino


def made_here(path: Path) -> bool:
    """Whether this process made the trace directory at ``path``."""
    try:
        return _identity(path) in _made
    except OSError:
        return False


def refuse_taken(path: Path) -> None:
    """Raises UsageError if anything is at ``path``."""
    if os.path.lexists(path):
        raise UsageError(f"{path} already exists; give another path, or --force to replace it.")
