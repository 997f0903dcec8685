"""Writing one segment: an append-only file for each process and pass.

    META ─▶ SITES ─▶ [ DATA* (FORM) STEP (INDEX) ]* ─▶ INDEX ─▶ END ─▶ tail

A step's DATA frames, and a FORM frame if its form is new, come before its STEP frame, which is the commit mark: a
reader shows a step only when all of it is there. What fails in the middle of a step is cut off again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tracereplay.event import Request, RowMap, Sampled, Site
from tracereplay.storage.files import PRIVATE
from tracereplay.trace import records
from tracereplay.trace.append import Appender
from tracereplay.trace.codec import PLANES, Encoder
from tracereplay.trace.dedup import Contents, TensorBytes
from tracereplay.trace.frames import Tag
from tracereplay.trace.outline import Outline, write_outline
from tracereplay.trace.sealed import Seal, opened_for
from tracereplay.trace.withheld import Withheld

__all__ = ["GONE", "BudgetSpent", "CallOfStep", "PendingCall", "SegmentWriter"]

GONE = "engine_gone"  # why a writer closed a segment of which the engine did not say the end
RESERVE = 4096  # bytes kept of a budget for what closes a segment
_NAMED = 32  # bytes of a request in END, without its id
_CALLED = 20  # and for each site


class BudgetSpent(Exception):
    """The step does not fit into the bytes that the segment may have."""


@dataclass(slots=True)
class PendingCall:
    """A call as it is gathered during a step; ``inputs`` and ``outputs`` are keyed by index."""

    slot: int
    number: int
    rows_in: RowMap
    rows_out: RowMap
    inputs: dict[int, TensorBytes] = field(default_factory=dict)
    outputs: dict[int, TensorBytes] = field(default_factory=dict)
    written: dict[int, TensorBytes] = field(default_factory=dict)
    fed: Sequence[int] | None = None


class CallOfStep(NamedTuple):
    """A call whose tensors are places among the values that `SegmentWriter.add` returned, keyed by index."""

    slot: int
    number: int
    rows_in: RowMap
    rows_out: RowMap
    inputs: Mapping[int, int]
    outputs: Mapping[int, int]
    written: Mapping[int, int]
    fed: Sequence[int] | None = None  # see `event.Call`


class _Mark(NamedTuple):
    """How far the segment had come when the step began."""

    size: int
    contents: int
    content: Any


class SegmentWriter:
    """Appends steps to a segment file.

    Args:
        path: file to create; must not exist.
        meta: plain data about this process (rank, world size, pass name).
        codec: how chunks are stored.
        max_bytes: of the whole file; a step that does not fit is refused.
        workers: threads that compress; 0: the caller does.
        recipients: the only ones who can read it (see `sealed`); none: everybody can, unless what was read before
            was sealed.
        withheld: puts digests in the place of tokens; None: they are written.
    """

    def __init__(
        self, path: Path, meta: Mapping[str, Any], codec: int = PLANES, max_bytes: int | None = None,
        workers: int = 0, recipients: Sequence[str] = (),
        withheld: Withheld | None = None,
    ) -> None:  # fmt: skip
        known = tuple(recipients) or opened_for()
        seal = Seal.new(known) if known else None
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, PRIVATE)
        self._to = Appender(self._fd, Encoder(codec), workers, seal)
        self._max_bytes = max_bytes
        self._withheld = withheld
        self._contents = Contents(self._to.chunk)
        self._mark: _Mark | None = None
        self._outline = Outline()
        self._ids = 0  # bytes of the requests' ids, as END has them
        self._sites = 0
        self._to.magic()
        self._to.record(Tag.META, dict(meta))

    @property
    def failed(self) -> bool:
        """Whether something could not be written; then the segment takes no more."""
        return self._to.failed

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._to.size

    def fileno(self) -> int:
        """The file, for those who lock it."""
        return self._fd

    def sites(self, sites: Iterable[Site]) -> None:
        """Says which sites the following steps speak of; may be called again with more."""
        written = [records.write_site(s) for s in sites]
        self._sites += len(written)
        self._to.record(Tag.SITES, written)

    # -- a step -----------------------------------------------------------------------------------------

    def add(self, tensor: TensorBytes) -> int:
        """Keeps a value of the step that is under way and returns its place among the step's values.

        Raises:
            OSError: see `commit`.
        """
        self._begin()
        try:
            return self._contents.add(tensor)
        except OSError:
            self.rollback()
            raise

    def moved(self) -> None:
        """The bytes that were lent to `add` are about to go; the step goes on.

        Raises:
            OSError: see `commit`.
        """
        self._contents.moved()
        try:
            self._to.settle()
        except OSError:
            self.rollback()
            raise

    def commit(
        self, number: int, rows: RowMap, calls: Sequence[CallOfStep], sampled: Sequence[Sampled],
        notes: Sequence[str], requests: Sequence[Request] = (), weight_updates: int = 0,
        kernels: Mapping[str, Any] | None = None, census: Mapping[str, Any] | None = None, padded: int = 0,
        company: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Appends the step whose values were added, and with it the mark that it is whole.

        Args:
            number: of the step.
            rows: of the model's forward.
            calls: in order of execution.
            sampled, notes, requests, weight_updates: see `event.Step`.
            kernels: a record of `trace.kernels`; its tensors are such places too.
            census: see `census.Census`; None for a step of which none was taken.
            padded, company: see `event.Step`.

        Raises:
            OSError: it could not be written. The segment keeps the steps before it and takes no more.
            BudgetSpent: it would make the file too large. The segment keeps the steps before it.
        """
        mark = self._begin()
        if self._withheld is not None:
            sampled = list(map(self._withheld.sampled, sampled))
            requests = list(map(self._withheld.request, requests))
        maps = _Maps(rows)
        packed = [_packed(call, maps) for call in calls]
        try:
            self._contents.flush()
            record = records.write_step(
                number,
                maps.written,
                self._contents.values,
                packed,
                sampled,
                notes,
                requests,
                weight_updates,
                kernels,
                census,
                padded,
                company,
            )
            self._to.step(record, mark.contents)
        except OSError:
            self.rollback()
            raise
        if self._max_bytes is not None and self.size + self._room() > self._max_bytes:
            self.rollback()
            raise BudgetSpent
        self._mark = None
        self._contents.end_step()
        slots = tuple([call.slot for call in calls])
        self._outline.add(number, rows, len(sampled), slots, slots, requests, company)
        self._ids += sum(_NAMED + len(r.id) for r in requests if r.id is not None)
        if self._to.index.due():
            self._to.write_index()

    def step(
        self, number: int, rows: RowMap, calls: Sequence[PendingCall], sampled: Sequence[Sampled],
        notes: Sequence[str], requests: Sequence[Request] = (), weight_updates: int = 0,
        census: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`add` and `commit` in one, for a step whose tensors are all at hand."""
        added = []
        for call in calls:
            inputs, outputs, written = (
                {index: self.add(tensor) for index, tensor in sorted(side.items())}
                for side in (call.inputs, call.outputs, call.written)
            )
            added.append(CallOfStep(
                call.slot, call.number, call.rows_in, call.rows_out, inputs, outputs, written, call.fed
            ))  # fmt: skip
        self.commit(number, rows, added, sampled, notes, requests, weight_updates, census=census)

    def rollback(self) -> None:
        """Forgets the step that is under way; what was written of it is cut off."""
        mark, self._mark = self._mark, None
        if mark is not None:
            self._to.cut(mark.size)
            self._to.content = mark.content
            self._contents.restore(mark.contents)

    def _begin(self) -> _Mark:
        if self.failed:
            raise OSError(errno.EIO, "the segment was abandoned after an earlier error")
        if self._mark is None:
            self._mark = _Mark(self.size, self._contents.mark(), self._to.content.copy())
        return self._mark

    def _room(self) -> int:
        """Bytes that closing the segment takes at most; the step that is under way may have called any site."""
        return self._to.room() + RESERVE + _CALLED * self._sites + self._ids

    # -- the end ----------------------------------------------------------------------------------------

    def close(self, summary: Mapping[str, Any]) -> None:
        """Writes the index and the end mark; a segment without one is incomplete."""
        self.end(summary)
        self.settle()

    def end(self, summary: Mapping[str, Any]) -> None:
        """Does what `close` does, but for `settle`, which must follow."""
        self.rollback()
        self._to.end({**summary, "outline": write_outline(self._outline.done())})

    def settle(self) -> None:
        """Waits until the disk has everything, and closes the file. Another thread may do this."""
        self._to.sync()
        self._to.close()
        os.close(self._fd)

    def close_alone(self) -> None:
        """Closes the segment in the stead of an engine that is gone: all steps that it handed over are there, and
        what it did not say is not known."""
        self.close({"interrupted": True, "ended": GONE})

    def abandon(self) -> None:
        """Closes the file as it is, without an end mark."""
        self._to.close()
        os.close(self._fd)


class _Maps:
    """A step's row maps, each once; the first is the step's own."""

    def __init__(self, rows: RowMap) -> None:
        self._places: dict[bytes, int] = {}
        self._known: dict[int, int] = {}  # most calls have the very same arrays
        self.place(rows)

    @property
    def written(self) -> list[bytes]:
        return list(self._places)

    def place(self, rows: RowMap) -> int:
        found = self._known.get(id(rows))
        if found is None:
            found = self._known[id(rows)] = self._places.setdefault(records.write_rows(rows), len(self._places))
        return found


def _packed(call: CallOfStep, maps: _Maps) -> records.CallRecord:
    rows_in, rows_out = maps.place(call.rows_in), maps.place(call.rows_out)
    inputs, outputs = ([side[i] for i in sorted(side)] for side in (call.inputs, call.outputs))
    return records.write_call(call.slot, call.number, inputs, outputs, rows_in, rows_out, call.written, call.fed)
