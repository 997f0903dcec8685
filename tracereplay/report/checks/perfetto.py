"""What came of checks as a Perfetto trace, for ui.perfetto.dev: steps and operators, and their error as a counter.

A process a row, with three tracks: golden's steps, the operators in them, and the error over the allowance at
each. Traces have no times, so that every call takes a microsecond here. What a verdict leaves out for a reason is
here, too (`comparator.numbers.by_call`).
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from tracereplay.checks import Result, Results
from tracereplay.checks.rows import policy_named
from tracereplay.comparator.numbers.by_call import CallErrors, errors_by_call
from tracereplay.errors import UsageError
from tracereplay.report.checks.words import outcome, said
from tracereplay.report.clean import clean
from tracereplay.trace import open_trace

__all__ = ["LARGEST", "MARK", "check_perfetto", "render"]

MARK = b"tracereplay check"  # stands in each file's beginning
LARGEST = 1e6  # of the counter, which can hold no infinity
CALL = 1_000  # nanoseconds
_MODULE = "perfetto.protos.perfetto.trace.perfetto_trace_pb2"
_SEQUENCE = 1


def check_perfetto() -> None:
    """Raises UsageError if what writes this form is not installed."""
    try:
        importlib.import_module(_MODULE)
    except ImportError as error:
        raise UsageError(
            "A Perfetto trace needs the package `perfetto`; install it with `pip install 'tracereplay[perfetto]'`."
        ) from error


def render(results: Results) -> bytes:
    """The trace, as its schema serializes it."""
    check_perfetto()
    writer = _Writer(importlib.import_module(_MODULE))
    for number, result in enumerate(results.results, 1):
        writer.process(number, clean(result.check.name))
        writer.say(number, f"{outcome(result)}: {said(result)}")
        if result.traces is not None:
            _row(writer, number, result)
    data: bytes = writer.trace.SerializeToString()
    return data


def _row(writer: _Writer, number: int, result: Result) -> None:
    assert result.traces is not None
    with open_trace(result.traces[0]) as golden, open_trace(result.traces[1]) as candidate:
        candidate.offer_base(golden)
        found = errors_by_call(golden, candidate, policy_named(result.check.policy))
        if found is not None:
            _calls(writer, number, found)


def _calls(writer: _Writer, number: int, found: CallErrors) -> None:
    steps, operators, errors = writer.tracks(number)
    step, shown = None, math.nan
    for order, error in enumerate(found.errors.tolist()):
        call, at = found.calls[order], order * CALL
        if call.step != step:
            if step is not None:
                writer.end(steps, at)
            step = call.step
            writer.begin(steps, at, f"step {step}")
        site = found.sites.get(call.site)
        told = {"operator": site.operator if site else "", "error over allowance": _words(error)}
        writer.begin(operators, at, clean(call.site), told)
        value = shown if math.isnan(error) else min(error, LARGEST)
        if value != shown and not math.isnan(value):
            writer.count(errors, at, value)
            shown = value
        writer.end(operators, at + CALL)
    if step is not None:
        writer.end(steps, len(found.errors) * CALL)


def _words(error: float) -> str:
    return "not compared" if math.isnan(error) else f"{error:.3g}"


class _Writer:
    """Packets of a trace. Tracks are known by numbers that are made of the row's."""

    def __init__(self, protos: Any) -> None:
        self._events = protos.TrackEvent
        self.trace = protos.Trace()

    def process(self, number: int, name: str) -> None:
        descriptor = self._packet(0).track_descriptor
        descriptor.uuid = _track(number, 0)
        descriptor.process.pid = number
        descriptor.process.process_name = name
        descriptor.process.process_labels.append(MARK.decode())

    def tracks(self, number: int) -> tuple[int, int, int]:
        """Of steps, of operators and of errors."""
        made = []
        for place, name in enumerate(("steps", "operators", "error over allowance"), 1):
            descriptor = self._packet(0).track_descriptor
            descriptor.uuid, descriptor.parent_uuid = _track(number, place), _track(number, 0)
            descriptor.name = name
            if place == 3:
                descriptor.counter.unit_name = "x allowed"
            made.append(descriptor.uuid)
        return made[0], made[1], made[2]

    def say(self, number: int, sentence: str) -> None:
        """An event of the whole process."""
        self._event(_track(number, 0), 0, self._events.TYPE_INSTANT).name = sentence

    def begin(self, track: int, at: int, name: str, told: dict[str, str] | None = None) -> None:
        event = self._event(track, at, self._events.TYPE_SLICE_BEGIN)
        event.name = name
        for key, value in (told or {}).items():
            annotation = event.debug_annotations.add()
            annotation.name, annotation.string_value = key, value

    def end(self, track: int, at: int) -> None:
        self._event(track, at, self._events.TYPE_SLICE_END)

    def count(self, track: int, at: int, value: float) -> None:
        self._event(track, at, self._events.TYPE_COUNTER).double_counter_value = value

    def _event(self, track: int, at: int, kind: int) -> Any:
        event = self._packet(at).track_event
        event.track_uuid, event.type = track, kind
        return event

    def _packet(self, at: int) -> Any:
        packet = self.trace.packet.add()
        packet.timestamp, packet.trusted_packet_sequence_id = at, _SEQUENCE
        return packet


def _track(number: int, place: int) -> int:
    return number * 10 + place
