"""A trace of the ring and of what follows, written while that comes."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tracereplay.event import RowKey, RowMap, Sampled, make_rows
from tracereplay.recorder.assembly import Assembly
from tracereplay.recorder.lacking import lacking_summary
from tracereplay.recorder.protocol import StepMessage
from tracereplay.recorder.ring import SAMPLED, KeptStep, Ring, SequenceKey
from tracereplay.recorder.triggers import Fired
from tracereplay.trace import SegmentWriter, records
from tracereplay.trace.plain import unpack
from tracereplay.trace.withheld import Withheld

__all__ = ["Dump", "Kind"]

QUIET = 10.0  # seconds without a step, after which no more are waited for


class Kind(NamedTuple):
    """What all traces of one ring have in common.

    Args:
        meta: of the segments.
        sites: as they are stored.
        codec: how chunks are stored.
        max_bytes: of a segment.
        workers: threads that compress.
        recipients, withheld: see `SegmentWriter`.
    """

    meta: Mapping[str, Any]
    sites: Sequence[Any]
    codec: int
    max_bytes: int | None
    workers: int
    recipients: Sequence[str] = ()
    withheld: Withheld | None = None


class Dump:
    """See the module. Requests are numbered anew, in the order of their beginnings: a server's millionth would
    have a million before it of which nothing is known.

    Args:
        path: of the segment; must not exist.
        kind: see there.
        ring: what it is made of. Steps must be written before the ring lets them go.
        fired: what set it off.
        trigger: the same and more, as it is stored.
        after: steps that are waited for; fewer if the trigger's sequence ends before.

    Raises:
        OSError: the segment cannot be written.
    """

    def __init__(
        self, path: Path, kind: Kind, ring: Ring, fired: Fired, trigger: Mapping[str, Any], after: int
    ) -> None:  # fmt: skip
        self.path = path
        self._ring = ring
        self.next = ring.begin  # the place of the step that is written next
        self._end = ring.end + after
        self._of = (fired.request, fired.sequence)
        self._until = time.monotonic() + QUIET
        self._lost = 0  # steps that the engine left out between those that are kept
        self._dropped: int | None = None  # before the step written last
        self._lacking = set(ring.lacking)  # by the engine's numbers
        kept = [ring.at(place) for place in range(ring.begin, ring.end)]
        numbers = {request for step in kept for request, _ in step.sequences}
        if fired.request > ring.newest:  # it is about to begin
            numbers.add(fired.request)
        self._numbers = {request: place for place, request in enumerate(sorted(numbers))}
        self._known: set[SequenceKey] = set()
        said = {**trigger, "request": self._numbers.get(fired.request)}
        limits = {name: value for name, value in ring.limits._asdict().items() if value is not None}
        # One engine's: what others of the same server had in mind then is in traces of theirs.
        meta = {**kind.meta, "engines": 1, "ring": limits, "trigger": said}
        self._writer = SegmentWriter(
            path, meta, kind.codec, kind.max_bytes, kind.workers, kind.recipients, kind.withheld
        )
        try:
            fcntl.flock(self._writer.fileno(), fcntl.LOCK_EX)  # shows others that it is still being written
            self._assembly = Assembly(self._writer, self._renumbered)
            self._writer.sites(map(records.read_site, kind.sites))
            self._write_past(kept)
        except BaseException:
            self._writer.abandon()
            raise

    @property
    def size(self) -> int:
        return self._writer.size

    @property
    def waits(self) -> bool:
        """Whether steps that are here are not written yet."""
        return self.next < min(self._end, self._ring.end)

    @property
    def done(self) -> bool:
        """Whether all steps are written, or those that are missing do not come."""
        return not self.waits and (self.next >= self._end or time.monotonic() > self._until)

    def came(self) -> None:
        """A step came."""
        self._until = time.monotonic() + QUIET

    def ended(self, key: SequenceKey) -> None:
        """A sequence ended; if it is the trigger's, what follows says nothing more of it."""
        if key == self._of:
            self._end = min(self._end, self._ring.end)

    def write(self) -> None:
        """Writes one step.

        Raises:
            OSError, BudgetSpent: it cannot be written; `close` keeps those before it.
        """
        kept = self._ring.at(self.next)
        self.next += 1
        step = StepMessage(*unpack(kept.message, "the step", own=True))
        if self._dropped is not None:
            self._lost += step.dropped - self._dropped
        self._dropped = step.dropped
        self._lacking.update(step.lacking)
        try:
            for piece in kept.pieces:
                tensors, asides = unpack(piece.described, "the tensors", own=True)
                self._assembly.tensors(memoryview(piece.data), tensors, asides)
            new = [key for key in kept.sequences if key not in self._known]
            self._assembly.commit(step, *self._past_of(new))
        finally:
            self._assembly.clear()
            self._writer.moved()

    def finish(self, ended: str | None = None) -> None:
        """Writes what is here, and closes the segment.

        Args:
            ended: why before its time; None: it is as it was meant to be.

        Raises:
            OSError, BudgetSpent: as `write`.
        """
        while ended is None and self.waits:
            self.write()
        lacking = [place for request, place in self._numbers.items() if request in self._lacking]
        more = lacking_summary(lacking, len(lacking))
        self._writer.close({"ended": ended, "dropped": self._lost, "weights": 0, **more})

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._writer.abandon()

    # -- requests ---------------------------------------------------------------------------------------

    def _renumbered(self, rows: RowMap) -> RowMap:
        if not len(rows):
            return rows
        found: RowMap = rows.copy()
        found[:, 0] = [
            r if r < 0 else self._numbers.setdefault(r, len(self._numbers)) for r in rows[:, 0].tolist()
        ]
        return found

    def _write_past(self, kept: Sequence[KeptStep]) -> None:
        """A step without calls, with what the requests of the steps that follow were asked and got before."""
        ring = self._ring
        if not ring.begin:
            return
        first = f"step {kept[0].number}" if kept else "none of its steps"
        notes = [
            f"The ring began with {first}. Of the steps before it only what requests asked and got was kept, so "
            "that a replay computes them again, and compares none of their operators.",
            *ring.notes,
        ]
        if ring.forgotten:
            notes.append(
                f"Of {ring.forgotten} sequences the past was too much for the ring; their rows are alone."
            )
        requests, sampled = self._past_of(
            dict.fromkeys(key for step in kept for key in step.sequences if key in ring.past())
        )
        self._writer.commit(
            ring.last_number, make_rows([]), [], sampled, notes, requests, ring.weight_updates, None, ring.census
        )

    def _past_of(self, keys: Iterable[SequenceKey]) -> tuple[list[Any], list[Sampled]]:
        """What sequences asked and got in steps that this trace lacks; each is asked for once."""
        requests, sampled = [], []
        for key in keys:
            self._known.add(key)
            past = self._ring.past().get(key)
            if past is None:
                continue
            if past.request is not None:
                requests.append(self._assembly.request(unpack(past.request, "the request", own=True)))
            rows = np.frombuffer(bytes(past.tokens), SAMPLED)
            for place, token, choice, logprob in zip(
                self._renumbered(rows["key"]).tolist(), rows["token"].tolist(), rows["choice"].tolist(),
                rows["logprob"].tolist(), strict=True,
            ):  # fmt: skip
                sampled.append(Sampled(RowKey(*place), token, choice, None if math.isnan(logprob) else logprob))
        return requests, sampled
