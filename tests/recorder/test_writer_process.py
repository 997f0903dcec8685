"""The writer process outlives its engine, however that ends, and closes the segment in its stead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tracereplay.errors import UsageError
from tracereplay.launch.descendants import Process, below
from tracereplay.trace import TraceDirectory, open_trace
from tracereplay.trace.verify import repair, verify

STEPS = 12
# An engine without torch: it hands steps over as `WriterClient` does, and waits to be killed.
ENGINE = f"""
import os, subprocess, sys, time
from tracereplay.event import Site, make_rows
from tracereplay.recorder.protocol import Descriptor, Inbox, StepMessage, send
from tracereplay.trace import codec, records
theirs_in, to = os.pipe()
mine, theirs_out = os.pipe()
arena = os.memfd_create("arena")
os.truncate(arena, 1 << 20)
os.pwrite(arena, os.urandom(1 << 19), 0)
command = [sys.executable, "-m", "tracereplay.recorder.detached", str(theirs_in), str(theirs_out)]
subprocess.run(command, pass_fds=[theirs_in, theirs_out, arena], start_new_session=True)
os.close(theirs_in)
os.close(theirs_out)
inbox = Inbox(mine)
kind, pid = inbox.next()
assert kind == "here"
send(to, ["open", sys.argv[1], {{"rank": 0, "world": 1}}, codec.PLANES, None, [arena]])
assert inbox.next()[0] == "wrote"  # as `WriterClient` waits: the segment is there, and locked
send(to, ["sites", [records.write_site(Site("model.norm", "RMSNorm", 77, ("x",)))]])
for number in range({STEPS}):
    send(to, ["tensors", 0, 1 << 20, [Descriptor("uint8", (1 << 19,), (1,), 0, 1 << 19, 0, 0)], []])
    rows = records.write_rows(make_rows([(0, 0, number)]))
    calls = [(77, 0, 0, 0, {{0: 0}}, {{0: 0}}, {{}}, None)]
    send(to, ["step", *StepMessage(number, [rows], calls, [], [], [], 0)])
send(to, ["tensors", 0, 1 << 20, [Descriptor("uint8", (1 << 19,), (1,), 0, 1 << 19, 0, 0)], []])  # of no step
print(pid, flush=True)
time.sleep(600)
"""


def test_a_front_end_that_kills_all_below_it_costs_nothing_that_was_handed_over(tmp_path: Path) -> None:
    directory = TraceDirectory(tmp_path / "a.trace", {"kind": "recording", "command": ["x"], "notes": []})
    path = directory.path / "record-rank0.seg"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ENGINE!r}, {str(path)!r}])"
    front = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    writer = int(front.stdout.readline())
    start = int(Path(f"/proc/{front.pid}/stat").read_text().rpartition(")")[2].split()[19])
    found = below([Process(front.pid, start)])
    assert found
    assert writer not in {process.pid for process in found}
    for process in found:
        os.kill(process.pid, signal.SIGKILL)
    front.kill()
    front.wait()
    assert directory.settle()
    trace = open_trace(directory.path)
    assert [step.number for step in trace.steps("record")] == list(range(STEPS))
    values = [step.calls[0].inputs[0].load() for step in trace.steps("record")]
    assert all(np.array_equal(value, values[0]) and len(value) == 1 << 19 for value in values)
    summary = trace.segment("record").summary
    assert summary is not None
    assert (summary["interrupted"], summary["ended"], summary["steps"]) == (True, "engine_gone", STEPS)
    (report,) = verify(trace)
    assert report.state == "recoverable"
    assert report.problem is not None
    assert "its engine was gone" in report.problem
    assert repair(trace) == ["manifest.json"]  # the segment is as good as it gets
    assert not open_trace(directory.path).complete


def test_a_writer_that_is_at_work_is_not_repaired_away(tmp_path: Path) -> None:
    directory = TraceDirectory(tmp_path / "a.trace", {"kind": "recording"})
    path = directory.path / "record-rank0.seg"
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, str(path)], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    assert engine.stdout.readline()
    try:
        while not path.exists() or len(open_trace(directory.path).steps("record")) < STEPS:
            time.sleep(0.02)
        before = path.read_bytes()
        with pytest.raises(UsageError, match="is being recorded"):
            repair(open_trace(directory.path))
        assert path.read_bytes() == before
    finally:
        engine.kill()
        engine.wait()
    assert directory.settle()
    assert len(open_trace(directory.path).steps("record")) == STEPS
