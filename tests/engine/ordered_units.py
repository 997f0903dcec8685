"""Sessions that take orders while they record; run under an engine's interpreter, as in_process_units.py."""

import gc
import os
import signal
import tempfile
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import torch
from unit_runner import run

from tracereplay.device import Cpu
from tracereplay.engines.vllm.guest.adapter import Adapter
from tracereplay.engines.vllm.guest.numbering import Numbering
from tracereplay.event import Request, RowKey, Site, make_rows
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.recorder import lifetime
from tracereplay.recorder.control import Control
from tracereplay.recorder.last_step import LastStep
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import ORDERS, give
from tracereplay.recorder.session import Session
from tracereplay.recorder.status import ENDED, PAUSED, RECORDING, read_status
from tracereplay.recorder.step import Behind, PendingStep
from tracereplay.trace import TraceDirectory, open_trace, segment_path
from tracereplay.trace.listing import listed

RUN = {"kind": "recording", "command": ["x"], "notes": []}


class _Doubler(torch.nn.Module):
    def forward(self, x):
        return x * 2


class _Recording:
    """A session with orders; its requests are as in an engine: numbered, sampled, ended."""

    def __init__(self, **options):
        self.folder = Path(tempfile.mkdtemp())
        self.room = self.folder / "room"
        self.room.mkdir()
        (self.room / ORDERS).touch()
        self.directories = []
        first = self.new()
        self.session = Session(0, Cpu())
        self.module = _Doubler()
        site = Site("double", "Doubler", slot_of("double"), ("x",))
        self.session.sites = [site]
        tap(self.module, site.slot, {"forward": self.module.forward})
        listen(self.session)
        self.control = Control(self.room, "record-rank0", self.session)
        path = segment_path(first, "record", 0)
        meta = {"pass": "record", "rank": 0, "world": 1, "model": "none"}
        self.session.begin_pass(path, meta, None, Options(**options), None, self.control)
        self.moved = []

    def new(self):
        self.directories.append(TraceDirectory(self.folder / f"{len(self.directories) + 1:06}.trace", RUN))
        return self.directories[-1].path

    def order(self, **order):
        give(self.room, order)

    def step(self, tokens, begin=(), rows=1):
        """One step, in which each request of ``tokens`` has rows up to its new token's position."""
        self.session.attend(lambda keep: self.moved if keep else [])
        if not self.session.recording:
            return
        self.session.begin_step(make_rows([(r, 0, p - 1) for r, p in tokens]))
        self.session.requested(list(begin))
        assert torch.equal(self.module(torch.ones(rows, 4)), torch.full((rows, 4), 2.0))
        values = torch.tensor([100 + p for _, p in tokens])
        self.session.sampled([RowKey(r, 0, p) for r, p in tokens], values, values, None)
        self.session.end_step()

    @property
    def status(self):
        (found,) = read_status(self.room)
        return found

    def end(self):
        summary = self.session.end_pass()
        listen(None)
        return summary, [open_trace(directory.path) for directory in self.directories]


def _request(number):
    return Request(number, 0, (1, 2), {})


def a_recording_is_paused_changed_and_cut_between_two_steps():
    recording = _Recording()
    recording.step([(0, 2), (1, 2)], [_request(0), _request(1)])
    recording.step([(0, 3), (1, 3)])
    recording.order(do="pause")
    recording.step([(0, 4)])
    recording.session.lacks([0])
    assert recording.status.counters.state == PAUSED
    recording.order(do="resume")
    recording.order(do="options", options={"sides": ["out"]})
    recording.step([(0, 5)])
    recording.order(do="options", options={"level": "kernel"})  # cannot be: it is noted, and nothing else happens
    recording.step([(0, 6)])
    assert "decided when a recording starts" in recording.status.words["error"]
    recording.moved = [(0, 0, 0, 0)]
    recording.order(do="cut", trace=str(recording.new()))
    recording.step([(0, 7), (1, 2)], [_request(1)])
    counters = recording.status.counters
    assert (counters.state, counters.steps, counters.recorded, counters.unrecorded) == (RECORDING, 6, 5, 1)
    assert counters.cuts == 1
    recording.step([(0, 8)])
    _, (one, two) = recording.end()
    assert recording.status.counters.state == ENDED
    assert one.part(("record", 0)).complete
    steps = one.steps("record")
    assert [step.number for step in steps] == [0, 1, 3, 4]
    assert [len(step.calls[0].inputs) for step in steps] == [1, 1, 0, 0]
    assert "only outputs of sites like * are recorded from this step on" in str(steps[2].notes)
    assert "Request 0 is not whole" in str(steps[2].notes)
    begins, *steps = two.steps("record")
    assert [step.number for step in steps] == [5, 6]
    assert [r.request for r in begins.requests] == [0]
    assert [(s.key.position, s.token) for s in begins.sampled] == [(p, 100 + p) for p in (2, 3, 5, 6)]
    assert two.part(("record", 0)).summary["lacking"] == [0]
    assert two.part(("record", 0)).complete


def tokens_of_steps_that_were_dropped_come_with_the_next():
    recording = _Recording(when_behind="drop")
    recording.step([(0, 2)], [_request(0)])
    take = type(recording.session._writer).take
    type(recording.session._writer).take = lambda self, *, wait, patience=None: None
    try:
        recording.step([(0, 3), (1, 2)])
        recording.step([(0, 4), (1, 3)])
    finally:
        type(recording.session._writer).take = take
    recording.step([(0, 5)])
    _, (trace,) = recording.end()
    assert [step.number for step in trace.steps("record")] == [0, 3]
    last = trace.steps("record")[-1]
    assert sorted((s.key.request, s.key.position) for s in last.sampled) == [
        (0, 3),
        (0, 4),
        (0, 5),
        (1, 2),
        (1, 3),
    ]
    assert trace.part(("record", 0)).summary["lacking"] == [0, 1]
    assert trace.part(("record", 0)).summary["dropped"] == 2


def _dropping(recording, *steps, behind=False):
    """Steps for which the writer has no arena free, or none for their first tensor."""
    owner, name = (PendingStep, "copy") if behind else (type(recording.session._writer), "take")
    before = getattr(owner, name)

    def none(self, *args, **kwargs):
        if behind:
            raise Behind

    setattr(owner, name, none)
    try:
        for step in steps:
            recording.step(*step)
    finally:
        setattr(owner, name, before)


def _whose(trace):
    steps = trace.steps("record")
    told = [(step.number, r.request, r.id) for step in steps for r in step.requests]
    return told, [(s.key.request, s.key.position) for step in steps for s in step.sampled]


def a_request_of_which_every_step_was_dropped_is_there_and_marked():
    for behind in (False, True):
        recording = _Recording(when_behind="drop")
        recording.step([(0, 2)], [_request(0)])
        _dropping(recording, ([(0, 3), (1, 2)], [_request(1)]), ([(1, 3), (2, 2)], [_request(2)]), behind=behind)
        recording.step([(0, 4)])
        _dropping(recording, ([(0, 5), (3, 2)], [_request(3)]), behind=behind)
        _, (trace,) = recording.end()
        told, tokens = _whose(trace)
        assert told == [(0, 0, None), (3, 1, None), (3, 2, None), (4, 3, None)], (behind, told)
        places = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 2), (0, 4), (0, 5), (3, 2)]
        assert tokens == places, (behind, tokens)
        last = trace.steps("record")[-1]
        assert (len(last.rows), last.calls) == (0, ())
        assert "Request 3 is not whole" in str(last.notes), last.notes
        assert trace.part(("record", 0)).summary["lacking"] == [0, 1, 2, 3]
        assert trace.lacking("record") == {0, 1, 2, 3}
        assert [one.lacking for one in listed(trace, "record")[0]] == [True] * 4


def a_request_that_was_dropped_is_told_in_the_trace_that_ends_and_in_the_next():
    for tokens_too in (True, False):
        recording = _Recording(when_behind="drop")
        recording.step([(0, 2)], [_request(0)])
        _dropping(recording, ([(1, 2), (2, 2)], [_request(1), _request(2)]))
        recording.moved = [(1, 0, 0, 0)]
        recording.order(do="cut", trace=str(recording.new()))
        if tokens_too:
            recording.step([(0, 3)])
        else:
            _dropping(recording, ([(0, 3)],))
            recording.step([(0, 4)])
        _, (one, two) = recording.end()
        told, tokens = _whose(one)
        assert told == [(0, 0, None), (1, 1, None), (1, 2, None)], told
        assert tokens == [(0, 2)] + [(1, 2), (2, 2)] * tokens_too, tokens
        told, tokens = _whose(two)
        assert [request for _, request, _ in told] == [0], told
        assert (0, 2) in tokens, tokens
        assert two.part(("record", 0)).summary["lacking"] == [0]


def a_writer_that_hangs_costs_steps_and_not_time():
    recording = _Recording(when_behind="drop")
    recording.step([(0, 2)], [_request(0)])
    large = (40 << 20) // 16  # rows of a tensor that fills an arena
    os.kill(recording.session._writer.pid, signal.SIGSTOP)
    silence, lifetime.SILENCE = lifetime.SILENCE, 0.5
    begun = time.monotonic()
    try:
        for position in range(3, 9):
            recording.step([(0, position)], rows=large)
        assert time.monotonic() - begun < 20, "the engine waits"
        assert recording.status.counters.dropped >= 4, recording.status.counters
    finally:
        os.kill(recording.session._writer.pid, signal.SIGCONT)
    end = time.monotonic() + 30
    while recording.session._writer.starved() and time.monotonic() < end:
        time.sleep(0.05)
    recording.step([(0, 9)])
    pid = recording.session._writer.pid
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    recording.session.end_pass()
    listen(None)
    assert time.monotonic() - begun < 10, "the engine's end waits"
    os.kill(pid, signal.SIGCONT)
    lifetime.SILENCE = silence


def no_step_waits_for_the_writer_while_the_recording_ends():
    recording = _Recording()
    recording.step([(0, 2)], [_request(0)])
    session = recording.session
    writer = session._writer.pid
    last = LastStep(recording.room, session.segment, 1)
    os.kill(writer, signal.SIGSTOP)
    try:
        ending = threading.Thread(target=session.end_between_steps, args=(last,))
        ending.start()
        while session.recording:
            time.sleep(0.001)
        begun = time.monotonic()
        recording.step([(0, 3)])
        recording.step([(0, 4)])
        assert time.monotonic() - begun < 0.5, "the engine waits"
        assert ending.is_alive()
    finally:
        os.kill(writer, signal.SIGCONT)
    ending.join(30)
    assert not ending.is_alive()
    summary, (trace,) = recording.end()
    assert summary["errors"] == {}, summary
    assert recording.status.counters.state == ENDED
    assert trace.part(("record", 0)).complete
    assert [step.number for step in trace.steps("record")] == [0]
    assert "lacking" not in trace.part(("record", 0)).summary


def the_end_of_a_process_waits_for_a_recording_that_ends():
    recording = _Recording()
    recording.step([(0, 2)], [_request(0)])
    session, writer = recording.session, recording.session._writer.pid
    os.kill(writer, signal.SIGSTOP)
    last = LastStep(recording.room, session.segment, 1)
    threading.Thread(target=session.end_between_steps, args=(last,), daemon=True).start()
    while session.recording:
        time.sleep(0.001)
    threading.Timer(0.3, os.kill, (writer, signal.SIGCONT)).start()
    _, (trace,) = recording.end()
    assert trace.part(("record", 0)).complete


def a_recording_ends_with_the_last_step_that_any_rank_has_begun():
    recording = _Recording()
    session = recording.session
    last, other = (LastStep(recording.room, session.segment.with_name(f"record-rank{n}.seg"), 2) for n in (0, 1))
    recording.step([(0, 2)], [_request(0)])
    assert not session.end_between_steps(last)  # the other has not been heard
    recording.step([(0, 3)])  # so that this one goes on
    assert other.may_begin(2)
    assert not session.end_between_steps(last)  # which has begun the third step
    session.attend(lambda keep: [])
    assert not session.end_between_steps(last)  # and so has this one, before its rows are known
    session.begin_step(make_rows([(0, 0, 3)]))
    assert not session.end_between_steps(last)
    session.end_step()
    recording.step([(0, 5)])  # one too many
    session.lacks([0])
    assert session.end_between_steps(last)
    _, (trace,) = recording.end()
    assert [step.number for step in trace.steps("record")] == [0, 1, 2]
    assert "lacking" not in trace.part(("record", 0)).summary


def _runs(pid):
    """Whether a process does; one that has ended stays listed until whoever adopted it asks for its exit code."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX"


def an_engine_that_is_let_go_of_is_recorded_to_its_end_and_leaves_nothing():
    recording = _Recording()
    recording.step([(0, 2)], [_request(0)])
    session, pid = recording.session, recording.session._writer.pid
    model = torch.nn.Sequential(recording.module)
    session.compiled = [model]
    held = weakref.ref(model)
    session.let_go()
    del model
    assert held() is None
    end = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _runs(pid)
    assert torch.equal(recording.module(torch.ones(1, 4)), torch.full((1, 4), 2.0))
    held = weakref.ref(session)
    (trace,) = [open_trace(directory.path) for directory in recording.directories]
    assert trace.part(("record", 0)).complete
    del session, recording.session, recording.control
    gc.collect()
    assert held() is None


def requests_go_on_under_new_numbers():
    adapter = object.__new__(Adapter)
    lacking = []
    adapter.recorder = SimpleNamespace(lacks=lacking.extend)
    adapter.numbering, adapter._begun, adapter._late = Numbering(None), [], set()
    ids = ["cmpl-a-0-12345678", "cmpl-b-0-12345678", "1_cmpl-c-0-12345678", "0_cmpl-c-0-12345678"]
    for name in ids:
        adapter.numbering.number(name)
    adapter._begun = [Request(1, 0, (5,), {}), Request(0, 0, (6,), {})]  # in a step that was not recorded
    adapter._live = ids[1:]
    assert adapter._renumber(True) == [(1, 0, 0, 0), (2, 1, 1, 1), (2, 0, 1, 0)]
    assert [(r.request, r.prompt_token_ids) for r in adapter._begun] == [(0, (5,))]
    assert adapter.numbering.knows(ids[1])
    assert adapter._renumber(False) == []
    assert adapter._late == set(ids[1:])
    assert not adapter.numbering.knows(ids[1])


if __name__ == "__main__":
    run(globals())
