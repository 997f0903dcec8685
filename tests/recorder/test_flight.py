"""A ring, its triggers and their traces, without an engine: steps as `step.PendingStep` hands them over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracereplay.event import Request, Site, make_rows
from tracereplay.launch.budget import Budget
from tracereplay.launch.collection import Traces
from tracereplay.launch.control import ask
from tracereplay.launch.recording import Recording
from tracereplay.launch.room import Room
from tracereplay.recorder.flight import RUN, FlightRecorder
from tracereplay.recorder.options import Options
from tracereplay.recorder.parent import CONTROL
from tracereplay.recorder.protocol import Descriptor, SampledBytes, StepMessage
from tracereplay.recorder.triggers import Ended, Fired
from tracereplay.trace import Trace, TraceDirectory, open_trace, records
from tracereplay.trace.verify import verify

SLOT = 77
META = {"pass": "record", "rank": 0, "world": 1, "model": "none", "engines": 3}


class Engine:
    """Hands steps over: request r has a prompt of one token and gets one token a step."""

    def __init__(self, folder: Path, room: Path | None = None, **options: Any) -> None:
        self.folder = folder
        self.said: list[tuple[Any, ...]] = []
        given = {"ring": "1MB", "trigger_every": 0.0, "trigger_after": 2, **options}
        self.flight = FlightRecorder(
            folder / "record-rank0.seg", META, Options(**given), 0, lambda *words: self.said.append(words), room
        )
        self.flight.sites([records.write_site(Site("model.norm", "RMSNorm", SLOT, ("x",)))])
        self.number = 0
        self.at: dict[int, int] = {}

    def step(
        self,
        *requests: int,
        finite: bool = True,
        logprob: float = -1.0,
        size: int = 4,
        notes: Sequence[str] = (),
        lacking: Sequence[int] = (),
    ) -> None:
        begun = [Request(r, 0, (r,), {"max_tokens": 9}) for r in requests if r not in self.at]
        for r in requests:
            self.at[r] = self.at.get(r, -1) + 1
        rows = make_rows([(r, 0, self.at[r]) for r in requests])
        count = len(requests)
        values = np.full((count, size), self.number, np.float32)
        asides = [
            np.array([100 * r + self.at[r] for r in requests], np.int64), np.zeros(count, np.int64),
            np.full(count, logprob, np.float32), np.array([finite] * (count - 1) + [finite], np.bool_),
        ]  # fmt: skip
        places, data = [], values.tobytes()
        for aside in asides:
            places.append((len(data), aside.nbytes))
            data += aside.tobytes()
        described = Descriptor("float32", values.shape, (size, 1), 0, values.nbytes, 0, 0)
        self.flight.tensors(memoryview(data), [list(described)], places)
        keys = [(r, 0, self.at[r] + 1) for r in requests]
        packed = records.write_rows(rows)
        calls: list[Any] = [(SLOT, 0, 0, 0, {0: 0}, {0: 0}, {}, None)]
        self.flight.step(
            StepMessage(
                self.number, [packed], calls, [SampledBytes(keys, 0, 1, 2)], list(notes),
                [records.write_request(r) for r in begun], 0, flags=[(3, packed)], lacking=lacking,
            )
        )  # fmt: skip
        self.number += 1

    def traces(self) -> list[Trace]:
        return [open_trace(path) for path in sorted(self.folder.glob("*.trace"))]

    def trace(self) -> Trace:
        while self.flight.waits:  # as the writer does while nothing arrives
            self.flight.work()
        (found,) = self.traces()
        assert {report.state for report in verify(found)} == {"complete"}
        return found


def tokens(trace: Trace) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for sampled in (sampled for step in trace.steps("record") for sampled in step.sampled):
        found.setdefault(sampled.key.request, []).append(sampled.token)
    return found


def test_a_trace_has_the_last_steps_and_what_live_requests_asked_and_got_before(tmp_path: Path) -> None:
    engine = Engine(tmp_path, ring="3steps")
    engine.step(0, 1, notes=["The first."])
    engine.step(0, 1)
    engine.flight.ended([Ended(0, 0, "length", 2)])
    for _ in range(6):
        engine.step(1, 2)
    assert not engine.traces()
    engine.step(1, 2, finite=False)
    for _ in range(4):
        engine.step(1, 3)
    trace = engine.trace()
    steps = trace.steps("record")
    assert [step.number for step in steps] == [4, 5, 6, 7, 8, 9, 10]
    assert len(steps[0].rows) == 0
    assert not steps[0].calls
    assert steps[0].notes[1] == "The first."
    # The engine's requests 1, 2 and 3 are this trace's 0, 1 and 2; its request 0 has ended.
    assert {r.request: r.prompt_token_ids for step in steps for r in step.requests} == {0: (1,), 1: (2,), 2: (3,)}
    assert tokens(trace) == {
        0: [100 + n for n in range(11)], 1: [200 + n for n in range(7)], 2: [300, 301]
    }  # fmt: skip
    assert [step.rows[:, 0].tolist() for step in steps[1:]] == [[0, 1]] * 4 + [[0, 2]] * 2
    value = steps[4].calls[0].inputs[0].numpy()
    assert (value == 8).all()
    trigger = trace.run.trigger
    assert trigger is not None
    assert (trigger["kind"], trigger["request"], trigger["position"], trigger["step"]) == ("nonfinite", 0, 8, 8)


def test_a_trace_says_which_of_its_requests_are_not_whole(tmp_path: Path) -> None:
    engine = Engine(tmp_path, ring="3steps")
    engine.step(0, 1, 2)
    engine.step(2, 3, lacking=[0, 2])
    for _ in range(4):
        engine.step(2, 3)
    engine.step(2, 3, finite=False)
    engine.step(2, 3, 4, lacking=[3])
    engine.step(2, 3, 4, lacking=[4])
    trace = engine.trace()
    assert [r.prompt_token_ids for step in trace.steps("record") for r in step.requests] == [(2,), (3,), (4,)]
    assert trace.lacking("record") == {0, 1, 2}
    (report,) = verify(trace)
    assert report.lacking == 3
    assert not trace.complete


def test_a_request_that_comes_back_brings_its_past(tmp_path: Path) -> None:
    engine = Engine(tmp_path, ring="2steps", trigger_after=3)
    engine.step(0, 1)
    for _ in range(4):
        engine.step(1)
    engine.flight.dump(TraceDirectory(tmp_path / "mine.trace", {"kind": "recording", "command": []}).path, {}, 3)
    for _ in range(3):
        engine.step(0, 1)  # request 0 was preempted
    trace = engine.trace()
    assert tokens(trace) == {0: [100 + n for n in range(8)], 1: [0, 1, 2, 3]}
    assert {r.prompt_token_ids for step in trace.steps("record") for r in step.requests} == {(0,), (1,)}


def test_no_more_is_kept_than_asked(tmp_path: Path) -> None:
    engine = Engine(tmp_path, ring="1MiB")
    for _ in range(300):
        engine.step(0, 1, size=4096)
        assert engine.flight.ring.size <= 1 << 20
    assert engine.flight.ring.end - engine.flight.ring.begin > 20
    engine.step(0, 1, size=1 << 20)  # larger than all of it
    assert engine.flight.ring.size <= 1 << 20
    assert engine.flight.ring.begin == engine.flight.ring.end == 301
    engine.step(0, 1, finite=False)
    engine.flight.close()
    assert len(engine.trace()) == 2  # and before it what was asked


def test_the_past_of_requests_that_never_end_is_bounded(tmp_path: Path) -> None:
    engine = Engine(tmp_path, ring="1MiB,1step")
    for number in range(3000):
        engine.step(number)
    assert engine.flight.ring.size <= 1 << 20
    assert engine.flight.ring.forgotten > 1000


def test_steps_that_come_faster_than_they_are_written_are_not_lost(tmp_path: Path) -> None:
    """Nothing is written while messages wait, but for what must make room. The trigger's step comes on top."""
    engine = Engine(tmp_path, ring="5steps", trigger_after=12)
    for _ in range(9):
        engine.step(0)
    engine.step(0, finite=False)
    assert engine.flight.waits
    for _ in range(20):
        engine.step(0)
    numbers = [step.number for step in engine.trace().steps("record")]
    assert numbers == [3, 4, 5, 6, 7, 8, 9, *range(10, 22)]
    assert not engine.flight.unfinished


def test_two_triggers_have_each_their_trace(tmp_path: Path) -> None:
    engine = Engine(tmp_path, ring="4steps", triggers=("nonfinite", "logprob<-20"))
    for _ in range(6):
        engine.step(0)
    engine.step(0, finite=False)
    engine.step(0, logprob=-25.0)
    for _ in range(4):
        engine.step(0)
    while engine.flight.waits:
        engine.flight.work()
    kinds = [(trace.run.trigger or {})["kind"] for trace in engine.traces()]
    assert kinds == ["nonfinite", "logprob"]
    assert [[step.number for step in trace.steps("record")] for trace in engine.traces()] == [
        [1, 2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8, 9]
    ]  # fmt: skip


def test_a_trace_ends_with_the_request_that_set_it_off(tmp_path: Path) -> None:
    engine = Engine(tmp_path, triggers=("mark",))
    engine.step(0)
    engine.flight.fired(Fired("mark", "it says so", 1, 0))
    for _ in range(30):
        engine.step(0, 1)
    engine.flight.ended([Ended(1, 0, "length", 30)])
    engine.step(0)
    trace = engine.trace()
    assert [step.number for step in trace.steps("record")] == list(range(31))
    assert (trace.run.trigger or {})["kind"] == "mark"


def test_what_is_not_waited_for_makes_no_trace(tmp_path: Path) -> None:
    engine = Engine(tmp_path, triggers=("logprob<-20",))
    engine.step(0, finite=True)
    engine.flight.fired(Fired("error", "it broke"))
    engine.flight.fired(Fired("mark", "it says so", 0, 0))
    engine.flight.gone()
    assert engine.traces() == []


def test_triggers_are_rate_limited_and_the_next_trace_says_how_many_there_were(tmp_path: Path) -> None:
    engine = Engine(tmp_path, trigger_every=3600.0)
    for _ in range(5):
        engine.step(0, finite=False)
    engine.flight.fired(Fired("error", "it broke"))
    engine.flight.close()
    first, second = engine.traces()
    assert "suppressed" not in (first.run.trigger or {})
    assert (second.run.trigger or {})["suppressed"] == {"nonfinite": 4}


def test_an_engine_that_is_gone_leaves_a_trace_of_what_it_did_last(tmp_path: Path) -> None:
    (tmp_path / RUN).write_text(json.dumps({"kind": "recording", "command": ["serve"], "notes": ["mine"]}))
    engine = Engine(tmp_path, ring="3steps")
    for _ in range(7):
        engine.step(0)
    engine.flight.gone()
    trace = engine.trace()
    assert [step.number for step in trace.steps("record")] == [3, 4, 5, 6]
    assert (trace.run.trigger or {})["kind"] == "gone"
    assert "mine" in trace.run.notes


def test_a_parent_that_listens_is_told_and_decides(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    with socket.socket(socket.AF_UNIX) as parent:
        parent.bind(os.fspath(tmp_path / CONTROL))
        parent.listen()
        engine.step(0, finite=False)
        connection, _ = parent.accept()
        said = json.loads(connection.makefile().readline())
        connection.sendall(b'{"ok": {}}\n')
        connection.close()
    assert (said["do"], said["kind"], said["request"], said["step"], said["after"]) == (
        "triggered", "nonfinite", 0, 0, 2
    )  # fmt: skip
    assert engine.traces() == []
    directory = TraceDirectory(tmp_path / "000007.trace", {"kind": "recording", "command": []})
    engine.flight.dump(directory.path, said, said["after"])
    engine.flight.close()
    assert (engine.trace().run.trigger or {})["detail"] == "its logits are not finite"
    engine.step(0, finite=False)  # the parent is gone, and its socket still there
    engine.flight.close()
    assert len(engine.traces()) == 2


def test_a_disk_that_takes_no_trace_leaves_the_ring_as_it_is(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "missing")
    (tmp_path / "missing").write_text("a file where the folder should be")
    engine.step(0, finite=False)
    assert [words[0] for words in engine.said] == ["failed"]
    engine.step(0)
    assert engine.flight.ring.end == 2
    assert not engine.flight.unfinished


MEMORY = """
import sys, resource
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_flight import Engine
engine = Engine(Path(sys.argv[2]), ring="32MB")
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = resident()
sizes = [20000, 300, 90000, 1000, 50000]
for number in range(6000):
    engine.step(*range(number // 50, number // 50 + 6), size=sizes[number % 5])
    engine.flight.ended([])
print(resident() - before, engine.flight.ring.size)
"""


def test_memory_stays_what_was_asked_for(tmp_path: Path) -> None:
    """Six thousand steps of very different sizes, some 5 GB, in a ring of 32 MB."""
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(tmp_path)]
    grown, kept = map(int, subprocess.check_output(command, text=True).split())
    assert kept <= 32 * 10**6
    assert grown < 48 * 10**6


@pytest.fixture(autouse=True)
def _short_paths(tmp_path: Path) -> None:
    assert len(os.fspath(tmp_path / CONTROL)) < 108


def test_a_parent_orders_one_trace_for_a_trigger_and_others_when_asked(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, options = tmp_path_factory.mktemp("c").resolve() / "c", Options(ring="1MB", trigger_every=60.0)
    room = Room()
    traces = Traces(folder, {"kind": "recording", "command": ["serve"]}, options, collection=True, ring=True)
    recording = Recording(traces, room, options, Budget(), ["serve"])
    try:
        recording.start()
        engine = Engine(folder, room=room.path)
        engine.step(0, 1)
        engine.step(0, 1, finite=False)
        engine.flight.obey()
        engine.step(0, 1, finite=False)  # too soon
        assert ask(folder, {"do": "trigger", "why": "I said so"})["trace"] == str(folder / "000002.trace")
        engine.flight.obey()
        engine.flight.close()
    finally:
        recording.stop()
        traces.finish()
        room.remove()
        traces.let_go()
    assert traces.finished == [(folder / "000001.trace", True), (folder / "000002.trace", True)]
    first, second = engine.traces()
    assert [(trace.run.trigger or {})["kind"] for trace in (first, second)] == ["nonfinite", "asked"]
    assert ((first.run.trigger or {})["step"], (second.run.trigger or {})["detail"]) == (1, "I said so")


@pytest.mark.parametrize(("told", "made"), [(False, 1), (True, 0)])
def test_an_engine_that_vanishes_when_its_command_was_told_to_end_makes_no_trace(
    tmp_path_factory: pytest.TempPathFactory, told: bool, made: int
) -> None:
    """vLLM's front end kills engines that do not end at once: an ordinary stop, which nobody wants a trace of."""
    folder, options = tmp_path_factory.mktemp("c").resolve() / "c", Options(ring="1MB", trigger_every=60.0)
    room = Room()
    traces = Traces(folder, {"kind": "recording", "command": ["serve"]}, options, collection=True, ring=True)
    recording = Recording(traces, room, options, Budget(), ["serve"])
    recording.told_to_end = lambda: told
    try:
        recording.start()
        engine = Engine(folder, room=room.path)
        engine.step(0, 1)
        engine.flight.gone()
    finally:
        recording.stop()
        traces.finish()
        room.remove()
        traces.let_go()
    assert len(traces.finished) == made
