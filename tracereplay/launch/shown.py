"""What a running recording shows of itself: plain data (schema 1; keys are only added), and Prometheus's text."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracereplay.recorder.status import ENDED, PAUSED, Counters, Status

if TYPE_CHECKING:
    from tracereplay.launch.recording import Recording

__all__ = ["prometheus", "shown"]


def shown(recording: Recording, ranks: Sequence[Status]) -> dict[str, Any]:
    """A recording's state."""
    first = {s.engine: s.counters for s in reversed(ranks)}  # the ranks of an engine make the same steps
    traces = recording.traces
    return {
        "schema": 1,
        "state": _state(recording, ranks),
        "pid": os.getpid(),
        "since": recording.since(),
        "seconds": round(time.time() - recording.began, 1),
        "command": recording.command,
        "options": recording.options.public(),
        "path": str(traces.path),
        "collection": traces.collection,
        "trace": str(traces.current),
        "steps": sum(c.steps for c in first.values()),
        "recorded": sum(c.recorded for c in first.values()),
        "dropped": sum(c.dropped for c in first.values()),
        "unrecorded": sum(c.unrecorded for c in first.values()),
        "bytes": sum(s.counters.bytes for s in ranks),
        "cost": _cost([s.counters for s in ranks]),
        "last_error": next((str(e) for s in ranks if (e := s.words.get("error"))), recording.trouble),
        "free": recording.free(),
        "traces": {
            "finished": len(traces.finished), "ending": len(traces.ending), "removed": traces.removed,
            "incomplete": sum(not complete for _, complete in traces.finished),
        },
        "triggers": recording.triggers[-10:],
        "triggers_held_back": recording.held_back,
        "ranks": [_rank(status) for status in ranks],
    }  # fmt: skip


def _state(recording: Recording, ranks: Sequence[Status]) -> str:
    """``starting`` (no engine has loaded its model), ``recording``, ``paused`` or ``ended``."""
    states = {status.counters.state for status in ranks}
    if not states:
        return "starting"
    if ENDED in states:
        return "ended"
    return "paused" if recording.paused or PAUSED in states else "recording"


def _cost(counters: Sequence[Counters]) -> dict[str, float | None]:
    """Shares of the time that recorded steps take; None before there is one."""
    total = sum(c.step_ns for c in counters)
    if not total:
        return {"taps": None, "hand_over": None}
    taps, hand = sum(c.tap_ns for c in counters), sum(c.hand_ns for c in counters)
    return {"taps": round(taps / total, 4), "hand_over": round(hand / total, 4)}


def _rank(status: Status) -> dict[str, Any]:
    c = status.counters
    return {
        "name": status.name, "pid": status.words.get("pid"),
        "state": ("recording", "paused", "ended")[min(c.state, 2)],
        "ended": status.words.get("ended"), "error": status.words.get("error"), "trace": status.words.get("trace"),
        "steps": c.steps, "recorded": c.recorded, "dropped": c.dropped, "unrecorded": c.unrecorded,
        "bytes": c.bytes, "trace_bytes": c.trace_bytes, "cuts": c.cuts, "step_seconds": c.step_ns / 1e9,
        "tap_seconds": c.tap_ns / 1e9, "hand_over_seconds": c.hand_ns / 1e9,
    }  # fmt: skip


_OF_RANKS = (
    ("steps_total", "counter", "Steps that the engine made.", "steps"),
    ("recorded_steps_total", "counter", "Steps that were handed to the writer.", "recorded"),
    ("dropped_steps_total", "counter", "Steps left out because the writer was behind.", "dropped"),
    ("unrecorded_steps_total", "counter", "Steps while the recording was paused or had ended.", "unrecorded"),
    ("written_bytes_total", "counter", "Bytes that were written.", "bytes"),
    ("step_seconds_total", "counter", "Time that recorded steps took.", "step_seconds"),
    ("tap_seconds_total", "counter", "Of it, time in taps; estimated from some steps.", "tap_seconds"),
    ("hand_over_seconds_total", "counter", "Of it, time before and after the model ran.", "hand_over_seconds"),
    ("traces_begun_total", "counter", "Traces that were begun after the first.", "cuts"),
)  # fmt: skip


def prometheus(status: Mapping[str, Any]) -> str:
    """The state in Prometheus's text format."""
    return "".join(f"{line}\n" for line in _lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    path = f'path="{_escaped(str(status["path"]))}"'
    yield from _head("state", "gauge", "1 for the state that the recording is in.")
    for state in ("starting", "recording", "paused", "ended"):
        yield f'tracereplay_state{{{path},state="{state}"}} {int(status["state"] == state)}'
    yield from _head("failed", "gauge", "1 if the last error of the recording has ended it, or is not overcome.")
    yield f"tracereplay_failed{{{path}}} {int(status['last_error'] is not None)}"
    yield from _head(
        "held_back_triggers_total", "counter", "Triggers that were held back, since others had just come."
    )
    yield f"tracereplay_held_back_triggers_total{{{path}}} {status['triggers_held_back']}"
    if status["free"] is not None:
        yield from _head("free_bytes", "gauge", "Free bytes of the disk.")
        yield f"tracereplay_free_bytes{{{path}}} {status['free']}"
    for name, kind, help_, key in _OF_RANKS:
        yield from _head(name, kind, help_)
        for rank in status["ranks"]:
            yield f'tracereplay_{name}{{{path},rank="{_escaped(rank["name"])}"}} {rank[key]}'


def _head(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP tracereplay_{name} {words}"
    yield f"# TYPE tracereplay_{name} {kind}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
