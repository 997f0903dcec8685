"""Selecting calls and rows of a trace, reading only the requested steps."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from tracereplay.errors import UsageError
from tracereplay.event import Call, RowMap, Site, Step, Value
from tracereplay.passes import INJECTED, RECORD, RERUN
from tracereplay.trace.joined import JoinedSegments
from tracereplay.trace.open import Trace
from tracereplay.trace.reader import SegmentReader

__all__ = ["PASSES", "Chosen", "choose", "matching_sites", "pass_of", "step_of", "steps_of", "tensors_of"]

# The pass that is meant where none is named.
PASSES = (RECORD, INJECTED, RERUN, "isolated")


@dataclass(frozen=True, slots=True)
class Chosen:
    """One tensor of a chosen call.

    Args:
        step: number of the step.
        call, site: whose it is.
        name: ``in0``, ``out1``, ``written0``.
        value: as recorded.
        rows: its row map.
        picked: which of its rows were asked for; None: all, padding included.
    """

    step: int
    call: Call
    site: Site
    name: str
    value: Value
    rows: RowMap
    picked: npt.NDArray[np.int64] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `array`."""
        return self.value.shape if self.picked is None else (len(self.picked), *self.value.shape[1:])

    def array(self) -> npt.NDArray[Any]:
        """Its values, or those of the rows that were asked for."""
        whole = self.value.numpy()
        return whole if self.picked is None else whole[self.picked]

    def bytes(self) -> bytes:
        """Of `array`, row-major."""
        return self.array().tobytes()


def pass_of(trace: Trace, name: str | None) -> str:
    """The pass of that name, or the first of `PASSES` that the trace has.

    Raises:
        UsageError: there is no such pass, or no step yet.
    """
    if not trace.passes:
        raise UsageError(f"{trace.path} has no steps yet, so there is nothing to show.")
    if name is None:
        return min(trace.passes, key=lambda p: PASSES.index(p) if p in PASSES else len(PASSES))
    if name not in trace.passes:
        raise UsageError(f"{trace.path} has no pass {name!r}; it has {', '.join(trace.passes)}.")
    return name


def matching_sites(trace: Trace, pass_name: str, wanted: str, rank: int = 0) -> list[Site]:
    """The sites whose name is ``wanted`` or fits it as a glob.

    Raises:
        UsageError: there is none; the message has those that are close.
    """
    sites = trace.sites(pass_name, rank)
    found = [site for name, site in sites.items() if name == wanted or fnmatchcase(name, wanted)]
    if not found:
        close = difflib.get_close_matches(wanted, list(sites), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"'tracereplay show {trace.path}' lists them."
        raise UsageError(f"The pass {pass_name!r} of {trace.path} has no site {wanted!r}; {hint}")
    return found


def choose(
    trace: Trace, pass_name: str, wanted: str, *, rank: int = 0, step: int | None = None,
    request: int | None = None, first_steps: int | None = None,
) -> Iterator[Chosen]:  # fmt: skip
    """The tensors of the selected calls, in order of execution.

    Args:
        trace: to read.
        pass_name: of its passes.
        wanted: name of a site, or a glob.
        rank: whose segment.
        step: number of the only step; None: all.
        request: whose rows; tensors without any are left out. None: all rows.
        first_steps: how many steps at most.

    Raises:
        UsageError: there is no such site, or no such step.
    """
    sites = {site.name: site for site in matching_sites(trace, pass_name, wanted, rank)}
    for found in steps_of(trace, pass_name, rank=rank, step=step, first_steps=first_steps):
        for call in found.calls:
            if call.site in sites:
                yield from _tensors(found.number, call, sites[call.site], request)


def step_of(trace: Trace, pass_name: str, number: int, rank: int = 0) -> Step:
    """The step of that number.

    Raises:
        UsageError: there is none.
    """
    (found,) = steps_of(trace, pass_name, rank=rank, step=number)
    return found


def steps_of(
    trace: Trace, pass_name: str, *, rank: int = 0, step: int | None = None, first_steps: int | None = None
) -> Iterator[Step]:
    """The step of that number, or the first ones (None: all).

    Raises:
        UsageError: there is no such step.
    """
    segment = trace.segment(pass_name, rank)
    for place in _places(trace, segment, step)[:first_steps]:
        yield segment.step(place)


def _places(trace: Trace, segment: SegmentReader | JoinedSegments, step: int | None) -> list[int]:
    """Where in the segment the steps are."""
    if step is None:
        return list(range(len(segment)))
    place = segment.place_of(step)
    if place is None:
        raise UsageError(f"{trace.path} has no step {step}; its steps are {_span(segment)}.")
    return [place]


def _span(segment: SegmentReader | JoinedSegments) -> str:
    if not len(segment):
        return "none"
    return f"{segment.record(0).number} to {segment.record(len(segment) - 1).number}"


def tensors_of(call: Call) -> Iterator[tuple[str, Value, RowMap]]:
    """Each tensor of a call with its name and rows."""
    for index, value in enumerate(call.inputs):
        yield f"in{index}", value, call.rows_in
    for index, value in enumerate(call.outputs):
        yield f"out{index}", value, call.rows_out
    for index, value in call.written.items():
        yield f"written{index}", value, call.rows_in


def _tensors(step: int, call: Call, site: Site, request: int | None) -> Iterator[Chosen]:
    for name, value, rows in tensors_of(call):
        picked = None
        if request is not None:
            picked = np.flatnonzero(rows[:, 0] == request)
            if not len(picked) or not value.shape or value.shape[0] < len(rows):
                continue
        yield Chosen(step, call, site, name, value, rows, picked)
