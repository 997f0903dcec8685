"""The segments of several engines under one command, read as those of one.

Each engine numbers its requests and steps from 0. Here the second engine's go on where the first one's end, so
that a number says one thing in the whole trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracereplay.errors import DamagedTrace
from tracereplay.event import Call, Request, RowMap, Sampled, Site, Step
from tracereplay.trace.chunk import Entry
from tracereplay.trace.forms import StepRecord
from tracereplay.trace.frames import Frame
from tracereplay.trace.outline import Outline, joined
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.records import Located

__all__ = ["JoinedSegments", "Start", "lacking_in", "starts"]

Start = tuple[int, int]  # numbers of an engine's first request and first step


def starts(engines: Sequence[Sequence[SegmentReader]]) -> list[Start]:
    """Where each engine's numbers begin, given the segments of its ranks.

    Raises:
        DamagedTrace: they are larger than numbers of requests and steps can be.
    """
    found, at = [], (0, 0)
    for segments in engines:
        found.append(at)
        requests = steps = 0
        for segment in segments:
            for step in segment.records():
                requests = max([requests, *(r.request + 1 for r in step.requests)])
                steps = max(steps, step.number + 1)
        at = at[0] + requests, at[1] + steps
        if max(at) >= 1 << 31:
            raise DamagedTrace(f"{segments[0].name} names request {requests - 1} and step {steps - 1}.")
    return found


def lacking_in(summary: Mapping[str, Any] | None) -> list[int]:
    """The numbers of requests that are not whole, by a segment's end."""
    found = (summary or {}).get("lacking")
    return [number for number in found if type(number) is int] if isinstance(found, list) else []


class JoinedSegments:
    """A rank's segments of several engines; see `SegmentReader`, whose reading side this is.

    Args:
        segments: one an engine.
        begins: see `starts`.
    """

    def __init__(self, segments: Sequence[SegmentReader], begins: Sequence[Start]) -> None:
        self._segments, self._begins = list(segments), list(begins)
        self.name = ", ".join(segment.name for segment in segments)
        self.meta: dict[str, Any] = segments[0].meta
        self.sites: dict[str, Site] = {k: v for s in reversed(self._segments) for k, v in s.sites.items()}

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the ends say together; None if one is missing."""
        found = [segment.summary for segment in self._segments]
        ends = [end for end in found if end is not None]
        if len(ends) < len(found):
            return None
        begun = [(end, first) for end, (first, _) in zip(ends, self._begins, strict=True)]
        lacking = [first + number for end, first in begun for number in lacking_in(end)]
        return {
            "ended": next((end["ended"] for end in ends if end.get("ended")), None),
            "dropped": sum(end.get("dropped", 0) for end in ends),
            "weights": max(end.get("weights", 0) for end in ends),
            "interrupted": any(end.get("interrupted") for end in ends),
            **({"lacking": lacking, "lacking_count": len(lacking)} if lacking else {}),
        }

    @property
    def complete(self) -> bool:
        """Whether all are."""
        return all(segment.complete for segment in self._segments)

    def __len__(self) -> int:
        return sum(map(len, self._segments))

    def step(self, place: int) -> Step:
        """The step at ``place``, the first engine's steps first."""
        number, within = self._found(place, [len(segment) for segment in self._segments])
        return _renumbered(self._segments[number].step(within), self._begins[number])

    def record(self, place: int) -> StepRecord:
        """The step at ``place`` by its form; its chunks are numbered as `chunk` numbers them."""
        number, within = self._found(place, [len(segment) for segment in self._segments])
        found = self._segments[number].record(within)
        return _record_renumbered(found, self._begins[number], place, sum(self._chunks[:number]))

    def place_of(self, number: int) -> int | None:
        """Where the step of that number is; None: there is none."""
        before = 0
        for segment, (_, steps) in zip(self._segments, self._begins, strict=True):
            place = segment.place_of(number - steps)
            if place is not None:
                return before + place
            before += len(segment)
        return None

    def steps(self) -> Iterator[Step]:
        """All committed steps in order."""
        return (self.step(place) for place in range(len(self)))

    def records(self) -> Iterator[StepRecord]:
        """All committed steps in order, by their forms."""
        return (self.record(place) for place in range(len(self)))

    def outline(self) -> Outline:
        """Its steps in short."""
        return joined((segment.outline() for segment in self._segments), self._begins)

    def chunk(self, number: int) -> tuple[memoryview, list[Entry]]:
        """See `SegmentReader.chunk`; the second engine's chunks are numbered from where the first one's end."""
        of, within = self._found(number, self._chunks)
        return self._segments[of].chunk(within)

    def read_chunk(self, number: int) -> tuple[memoryview, list[Entry]]:
        """See `SegmentReader.read_chunk`."""
        of, within = self._found(number, self._chunks)
        return self._segments[of].read_chunk(within)

    def chunk_frame(self, number: int) -> tuple[Frame, bytes]:
        """See `SegmentReader.chunk_frame`."""
        of, within = self._found(number, self._chunks)
        return self._segments[of].chunk_frame(within)

    def tensor_alone(self, chunk: int, number: int) -> memoryview:
        """See `SegmentReader.tensor_alone`."""
        of, within = self._found(chunk, self._chunks)
        return self._segments[of].tensor_alone(within, number)

    def load(self, located: Located) -> bytes:
        """See `SegmentReader.load`."""
        if located.chunk == -1:
            return self._segments[0].load(located)
        of, within = self._found(located.chunk, self._chunks)
        return self._segments[of].load(located._replace(chunk=within))

    @property
    def _chunks(self) -> list[int]:
        return [len(segment.index.chunks) for segment in self._segments]

    @staticmethod
    def _found(place: int, sizes: Sequence[int]) -> tuple[int, int]:
        """In which segment a place is, and where in it."""
        for number, size in enumerate(sizes):
            if place < size:
                return number, place
            place -= size
        raise IndexError(place)


def _renumbered(step: Step, start: Start) -> Step:
    first, steps = start
    maps: dict[int, RowMap] = {}

    def rows(given: RowMap) -> RowMap:
        if id(given) not in maps:
            maps[id(given)] = _rows(given, first)
        return maps[id(given)]

    def call(given: Call) -> Call:
        return replace(given, rows_in=rows(given.rows_in), rows_out=rows(given.rows_out))

    return replace(
        step,
        number=step.number + steps,
        rows=rows(step.rows),
        calls=tuple(map(call, step.calls)),
        sampled=_sampled(step.sampled, first),
        requests=_requests(step.requests, first),
    )


def _record_renumbered(step: StepRecord, start: Start, place: int, chunks: int) -> StepRecord:
    first, steps = start
    return replace(
        step,
        place=place,
        number=step.number + steps,
        chunk=step.chunk + chunks,
        elsewhere={value: (told[0] + chunks, *told[1:]) for value, told in step.elsewhere.items()},
        maps=[_rows(rows, first) for rows in step.maps],
        sampled=_sampled(step.sampled, first),
        requests=_requests(step.requests, first),
    )


def _rows(rows: RowMap, first: int) -> RowMap:
    found = np.array(rows)
    found[found[:, 0] >= 0, 0] += first
    return found


def _sampled(sampled: Iterable[Sampled], first: int) -> tuple[Sampled, ...]:
    return tuple([replace(s, key=s.key._replace(request=s.key.request + first)) for s in sampled])


def _requests(requests: Iterable[Request], first: int) -> tuple[Request, ...]:
    return tuple([replace(r, request=r.request + first) for r in requests])
