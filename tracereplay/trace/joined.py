"""The segments of several engines under one command, read as those of one.

Each engine numbers its requests and steps from 0. Here the second engine's go on where the first one's end, so
that a number says one thing in the whole trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracereplay.errors import DamagedTrace
from tracereplay.event import Call, RowMap, Site, Step
from tracereplay.trace.forms import StepRecord
from tracereplay.trace.reader import SegmentReader

__all__ = ["JoinedSegments", "Start", "starts"]

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
            for step in segment.steps():
                requests = max([requests, *(r.request + 1 for r in step.requests)])
                steps = max(steps, step.number + 1)
        at = at[0] + requests, at[1] + steps
        if max(at) >= 1 << 31:
            raise DamagedTrace(f"{segments[0].name} names request {requests - 1} and step {steps - 1}.")
    return found


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
        return {
            "ended": next((end["ended"] for end in ends if end.get("ended")), None),
            "dropped": sum(end.get("dropped", 0) for end in ends),
            "weights": max(end.get("weights", 0) for end in ends),
            "interrupted": any(end.get("interrupted") for end in ends),
        }

    @property
    def complete(self) -> bool:
        """Whether all are."""
        return all(segment.complete for segment in self._segments)

    def __len__(self) -> int:
        return sum(map(len, self._segments))

    def step(self, place: int) -> Step:
        """The step at ``place``, the first engine's steps first."""
        segment, start, there = self._at(place)
        return _renumbered(segment.step(there), start)

    def _at(self, place: int) -> tuple[SegmentReader, Start, int]:
        for segment, start in zip(self._segments, self._begins, strict=True):
            if place < len(segment):
                return segment, start, place
            place -= len(segment)
        raise IndexError(place)

    def record(self, place: int) -> StepRecord:
        """The step at ``place`` by its form."""
        segment, start, there = self._at(place)
        found, (first, steps) = segment.record(there), start
        return replace(
            found,
            place=place,
            number=found.number + steps,
            maps=[_shifted(rows, first) for rows in found.maps],
            sampled=tuple(replace(s, key=s.key._replace(request=s.key.request + first)) for s in found.sampled),
            requests=tuple(replace(r, request=r.request + first) for r in found.requests),
        )

    def source(self, place: int) -> SegmentReader:
        """The segment that the step at ``place`` is in."""
        return self._at(place)[0]

    def steps(self) -> Iterator[Step]:
        """All committed steps in order."""
        return (self.step(place) for place in range(len(self)))


def _renumbered(step: Step, start: Start) -> Step:
    first, steps = start
    maps: dict[int, Any] = {}

    def rows(given: Any) -> Any:
        if id(given) not in maps:
            maps[id(given)] = _shifted(given, first)
        return maps[id(given)]

    def call(given: Call) -> Call:
        return replace(given, rows_in=rows(given.rows_in), rows_out=rows(given.rows_out))

    return replace(
        step,
        number=step.number + steps,
        rows=rows(step.rows),
        calls=tuple(map(call, step.calls)),
        sampled=tuple(replace(s, key=s.key._replace(request=s.key.request + first)) for s in step.sampled),
        requests=tuple(replace(r, request=r.request + first) for r in step.requests),
    )


def _shifted(rows: RowMap, first: int) -> RowMap:
    """The rows with the numbers that their requests have in the whole trace."""
    found: RowMap = np.array(rows)
    found[found[:, 0] >= 0, 0] += first
    return found
