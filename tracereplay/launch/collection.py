"""The traces of a recording: one, or a collection of numbered ones of which each continues the one before it.

DIR/control.sock   DIR/000001.trace   DIR/000002.trace ...
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.errors import TracereplayError, UsageError
from tracereplay.launch.budget import Budget
from tracereplay.launch.filling import Checkpoints, Filling
from tracereplay.recorder.options import Options
from tracereplay.storage.files import LocalFile
from tracereplay.trace import SegmentReader, TraceDirectory
from tracereplay.trace.directory import live_part, locked

__all__ = ["SOCKET", "Traces", "check_collection", "refusals"]

SOCKET = "control.sock"
NUMBERED = re.compile(r"(\d{6,})\.trace", re.ASCII)


def check_collection(path: Path) -> None:
    """Raises UsageError if ``path`` cannot be a collection: only an earlier one is continued."""
    if path.suffix == ".trace":
        raise UsageError(
            f"A recording that is cut into several traces needs a directory for them, and {path} is named like a "
            "single trace; give a name without .trace."
        )
    if not path.exists():
        return
    others = [] if not path.is_dir() else sorted(p.name for p in path.iterdir() if not _ours(p.name))
    if not path.is_dir() or others:
        what = f"contains {others[0]!r}" if others else "is a file"
        raise UsageError(f"{path} {what}, so traces are not put there; give the name of a new directory.")
    for trace in path.iterdir():
        if NUMBERED.fullmatch(trace.name) and live_part(trace) is not None:
            raise UsageError(f"{path} is being recorded into; give another directory, or end that recording.")


def _ours(name: str) -> bool:
    return name == SOCKET or NUMBERED.fullmatch(name) is not None


class Traces:
    """Makes, finishes and removes them. One thread may make them while another finishes and removes.

    Args:
        path: of the trace, or of the collection.
        header: of each trace.
        options: of the recording, which may change; each trace says those under which it begins.
        collection: whether it is one.
        recipients: the only ones who can read them; see `TraceDirectory`.
        ring: whether nothing is recorded but what triggers make traces of (a collection, too).

    Raises:
        UsageError: the first trace cannot be created.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], options: Options = Options(), *, collection: bool,
        ring: bool = False, recipients: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.path, self.collection, self.ring = path, collection, ring
        self.options = options
        self._header, self._recipients = header, recipients
        self._checkpoints = Checkpoints()
        self.finished: list[tuple[Path, bool]] = []  # with whether each is complete
        self.removed = 0
        self._ending: list[Filling] = []
        self._beside: set[Path] = set()  # those that are not of the sequence
        self._quiet: set[Path] = set()  # those into which nobody wrote at the last look
        self._made = collection and not path.exists()
        if self._made:
            _make(path)
        earlier = [int(found[1]) for p in _listed(path) if (found := NUMBERED.fullmatch(p.name))]
        self._number = self._first = max(earlier, default=0)
        self._current: Filling | None = None
        if not ring:
            first = self._make([]) if collection else self._directory(path, [])
            self._current = Filling(first, self._checkpoints)

    @property
    def current(self) -> Path:
        """The one that is being recorded; of a ring, which has none, the directory of the traces."""
        return self.path if self._current is None else self._current.directory.path

    @property
    def ending(self) -> list[Path]:
        """Those that were ended and are being written still."""
        return [filling.directory.path for filling in self._ending]

    def next(self, notes: Sequence[str] = ()) -> Path:
        """Makes the next, which is current from now on.

        Raises:
            TracereplayError: it cannot be created.
        """
        made = Filling(self._make(notes), self._checkpoints)
        if self._current is not None:
            self._ending.append(self._current)
        self._current = made
        return self.current

    def beside(self, notes: Sequence[str] = ()) -> Path:
        """Makes another that is not current, for what is written beside (a flight recorder's)."""
        made = Filling(self._make(notes), self._checkpoints)
        self._ending.append(made)
        self._beside.add(made.directory.path)
        return made.directory.path

    def _there(self) -> set[Path]:
        return {p for p in _listed(self.path) if NUMBERED.fullmatch(p.name)}

    def _make(self, notes: Sequence[str]) -> TraceDirectory:
        while self.ring and (self.path / f"{self._number + 1:06}.trace").exists():
            self._number += 1  # see `finish`
        directory = self._directory(self.path / f"{self._number + 1:06}.trace", notes)
        self._number += 1
        return directory

    def _directory(self, path: Path, notes: Sequence[str]) -> TraceDirectory:
        told = {"notes": [*self.options.told(), *notes], **self.options.header()}
        return TraceDirectory(path, {**self._header, **told}, self._recipients)

    def look(self, in_use: Sequence[Path]) -> None:
        """Fills manifests, and finishes those into which nobody writes any more.

        Args:
            in_use: traces that a worker says it writes to.
        """
        if self._current is not None:
            self._current.look()
        for filling in [*self._ending]:
            path = filling.directory.path
            segments = [*path.glob("*.seg")]
            # A rank that is still in an earlier trace of the sequence has yet to come to this one.
            awaited = path in in_use or (path not in self._beside and any(trace < path for trace in in_use))
            if awaited or not segments or any(map(locked, segments)):
                self._quiet.discard(path)
                filling.look()
            elif path not in self._quiet:
                self._quiet.add(path)  # a segment is locked a moment after it was made
                filling.look()
            elif filling.ready:
                self._ending.remove(filling)
                self._finish(filling)

    def finish(self) -> None:
        """Finishes all: the command has ended."""
        for filling in self._all():
            self._finish(filling)
        self._ending.clear()
        self._current = None
        known = {path for path, _ in self.finished}
        if self.ring:  # a writer makes them itself where nobody answers
            alone = sorted(p for p in self._there() - known if int(p.stem) > self._first)
            self.finished += [(path, False) for path in alone]

    def _all(self) -> list[Filling]:
        return self._ending if self._current is None else [*self._ending, self._current]

    def discard(self) -> None:
        """Removes the first trace again: the recording does not begin."""
        for filling in self._all():
            filling.finish()
        self.clear()

    def clear(self) -> None:
        """Removes an empty collection that was made here."""
        if self._made:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def let_go(self) -> None:
        """Says to others that nothing is being made any more."""
        for filling in self._all():
            filling.directory.let_go()

    def _finish(self, filling: Filling) -> None:
        """A trace that cannot be read is left as it is, and does not hinder the others."""
        path = filling.directory.path
        try:
            if filling.finish(empty=not self.finished):  # a cut may be the last thing that happens
                self.finished.append((path, filling.directory.state == "complete"))
        except (TracereplayError, OSError):
            filling.directory.let_go()
            self.finished.append((path, False))

    def tidy(self, budget: Budget, free: int | None) -> None:
        """Removes the oldest finished traces that the budget has no room for; the newest stays.

        Args:
            free: bytes of the disk; None: unknown.
        """
        if not self.collection:
            return
        there = self._there()
        busy = {self.current, *self.ending}  # read afterwards, since another may be made meanwhile
        found = sorted(p for p in there if p not in busy)
        sizes = {p: sum(s.stat().st_size for s in p.glob("*")) for p in found}
        while found and self._too_much(found, sizes, budget, free):
            oldest = found.pop(0)
            shutil.rmtree(oldest, ignore_errors=True)
            free = None if free is None else free + sizes[oldest]
            self.removed += 1

    @staticmethod
    def _too_much(found: Sequence[Path], sizes: Mapping[Path, int], budget: Budget, free: int | None) -> bool:
        if budget.keep is not None and len(found) > budget.keep:
            return True
        if budget.keep_bytes is not None and sum(sizes[p] for p in found) > budget.keep_bytes:
            return True
        short = budget.leave_free is not None and free is not None and free < budget.leave_free
        return short and len(found) > 1


def refusals(folder: Path) -> list[str]:
    """Why engines could not be recorded into a ring, in sentences; removes the segments that say so."""
    found: list[str] = []
    for path in sorted(folder.glob("*.seg")):
        with contextlib.suppress(TracereplayError, OSError):
            with contextlib.closing(LocalFile(path)) as file:
                found.append(str(SegmentReader(file).meta.get("refused")))
            path.unlink()
    return list(dict.fromkeys(found))


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
    except OSError as error:
        raise UsageError(f"The directory {path} cannot be created: {error.strerror}.") from error


def _listed(path: Path) -> list[Path]:
    try:
        return [*path.iterdir()]
    except OSError:
        return []
