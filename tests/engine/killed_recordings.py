"""Recordings that are killed at random moments, and what is left of them.

    python killed_recordings.py COUNT SEED      prints a JSON object

It needs torch, so test_killed.py runs it under an engine's interpreter. torch is imported once; each recording is
a forked child with a writer process of its own. SIGKILL goes to the child, to its writer, or to both. What the
writer had acknowledged (``["wrote", n, ...]``) must be there afterwards.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tracereplay.device import Cpu
from tracereplay.event import Site, Step, make_rows
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.recorder.session import Session
from tracereplay.recorder.writer_handle import WriterGone
from tracereplay.trace import TraceDirectory, open_trace
from tracereplay.trace.verify import repair, verify

SIDE_BY_SIDE = 4
KINDS = ("engine", "writer", "both")
LONGEST = 0.15  # seconds from the first acknowledged step to the kill, at most
PATIENCE = 30.0


class Double(torch.nn.Module):
    """Doubles its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def given(seed: int, number: int) -> torch.Tensor:
    """The input of a step: of another size each time, up to a megabyte, and never the same twice."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    rows = 1 + (7 * number + seed) % 40
    return torch.randn(rows if number % 8 else 25 * rows, 256, generator=generator)


# -- the child ----------------------------------------------------------------------------------------------------


def record(path: Path, seed: int, out: int) -> None:
    """Records until it is killed, or its writer is; says what the writer acknowledged."""
    parent, slot = os.getppid(), slot_of("site")
    module = Double()
    tap(module, slot, {"forward": module.forward})
    session = Session(0, Cpu())
    session.sites = [Site("site", "Double", slot, ("x",))]
    listen(session)
    try:
        session.begin_pass(path, {"rank": 0})
    except WriterGone:  # killed while it started; whoever asked for the recording is told
        os.write(out, b"on 1\n")
        return
    writer = session._writer
    assert writer is not None
    os.write(out, f"pid {writer.pid}\n".encode())
    number = said = 0
    while session._ended is None and os.getppid() == parent:
        x = given(seed, number)
        session.begin_step(make_rows([(0, 0, number)]))
        assert torch.equal(module(x), x * 2)
        session.end_step()
        number += 1
        with contextlib.suppress(Exception):  # a writer that is gone is the session's to notice
            writer.poll()
        if writer.steps != said:
            said = writer.steps
            os.write(out, f"wrote {said}\n".encode())
    summary = session.end_pass()
    assert any("the writer process ended prematurely" in text for text in summary["errors"]), summary
    os.write(out, b"on 1\n")


# -- the parent ---------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """One that is under way."""

    seed: int
    kind: str
    path: Path
    child: int
    pipe: int
    delay: float
    early: bool
    begun: float = field(default_factory=time.monotonic)
    said: dict[str, int] = field(default_factory=dict)  # the last number of each kind of line
    rest: bytes = b""
    deadline: float | None = None
    killed: bool = False

    def hear(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for kind, number in (line.decode().split() for line in lines):
            self.said[kind] = int(number)

    def due(self) -> float | None:
        """When to kill it: at a random time after its first acknowledged step, some after its very start."""
        if self.deadline is None and (self.early or "wrote" in self.said):
            self.deadline = time.monotonic() + self.delay
        return self.deadline

    def kill(self) -> None:
        self.killed = True
        writer = [self.said["pid"]] if "pid" in self.said else []
        targets = [self.child] if self.kind != "writer" or not writer else []
        targets += writer if self.kind != "engine" else []
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def begin(folder: Path, seed: int, chance: random.Random) -> Recording:
    kind, early = KINDS[seed % 3], chance.random() < 0.15
    directory = TraceDirectory(folder / f"{seed}.trace", {"kind": "recording"})
    theirs, ours = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        try:
            record(directory.path / "record-rank0.seg", seed, ours)
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
    os.close(ours)
    os.set_blocking(theirs, False)
    delay = chance.random() ** 2 * LONGEST * (2 if early else 1)
    return Recording(seed, kind, directory.path, child, theirs, delay, early)


def finished(recording: Recording) -> bool:
    """Reads what it says, kills it when it is time; True once the child and its writer are gone."""
    with contextlib.suppress(BlockingIOError):
        data = os.read(recording.pipe, 1 << 16)
        if not data:
            os.close(recording.pipe)
            _, status = os.waitpid(recording.child, 0)
            # An engine outlives its writer; one that was killed before it had one has nothing to outlive.
            expected = 0 if "on" in recording.said else signal.SIGKILL
            assert status == expected, f"recording {recording.seed} ended with {status}"
            assert recording.kind != "writer" or "on" in recording.said or recording.early
            return True
        recording.hear(data)
    due = recording.due()
    if not recording.killed and due is not None and time.monotonic() >= due:
        recording.kill()
    assert time.monotonic() < recording.begun + PATIENCE, f"recording {recording.seed} does not end"
    return False


def wait_for_the_writer(path: Path) -> None:
    """The writer holds a lock as long as it writes."""
    with path.open("rb") as file:
        for _ in range(1000):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            time.sleep(0.02)
    raise AssertionError(f"the writer of {path} does not end")


def check(recording: Recording) -> dict[str, int]:
    """Raises unless what is left is all that was acknowledged, whole, and can be repaired."""
    segment = recording.path / "record-rank0.seg"
    acknowledged = recording.said.get("wrote", 0)
    if not segment.exists():
        assert acknowledged == 0
        return {"never begun": 1}
    wait_for_the_writer(segment)
    trace = open_trace(recording.path)
    assert not trace.complete
    steps = trace.steps("record")
    check_steps(steps, recording.seed)
    assert len(steps) >= acknowledged, f"{acknowledged} acknowledged, {len(steps)} there"
    (report,) = verify(trace)
    assert report.state == "recoverable", report
    trace.close()
    torn = report.size - report.kept if report.frames else 0
    closed = trace_is_closed(recording.path)  # by a writer that outlived its engine
    assert closed or recording.kind != "engine" or recording.early
    assert (segment.name in repair(open_trace(recording.path))) == (not closed)
    mended = open_trace(recording.path)
    assert mended.segment("record").summary is not None
    assert not mended.complete
    check_steps(mended.steps("record"), recording.seed)
    assert len(mended.steps("record")) == len(steps)
    (report,) = verify(mended)
    assert (report.state, report.kept) == ("recoverable", report.size - 16), report
    return {"acknowledged": acknowledged, "committed": len(steps), "torn": int(torn > 0), recording.kind: 1}


def trace_is_closed(path: Path) -> bool:
    return open_trace(path).segment("record").summary is not None


def checked(recording: Recording) -> int:
    """Checks in a process of its own, so that the next kill is not late; returns where the result can be read."""
    theirs, ours = os.pipe()
    if os.fork() == 0:
        try:
            os.write(ours, json.dumps(check(recording)).encode())
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        os._exit(0)
    os.close(ours)
    return theirs


def check_steps(steps: list[Step], seed: int) -> None:
    assert [step.number for step in steps] == list(range(len(steps)))
    for step in steps:
        (call,) = step.calls
        x = given(seed, step.number)
        assert call.inputs[0].load() == x.numpy().tobytes()
        assert call.outputs[0].load() == (x * 2).numpy().tobytes()


def main(count: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance = random.Random(seed)
    totals: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        waiting, running, checks = list(range(count)), [], []
        try:
            while waiting or running or checks:
                while waiting and len(running) + len(checks) < SIDE_BY_SIDE:
                    running.append(begin(Path(folder), waiting.pop(0), chance))
                for recording in [r for r in running if finished(r)]:
                    running.remove(recording)
                    checks.append(checked(recording))
                for found in [c for c in checks if select.select([c], [], [], 0)[0]]:
                    checks.remove(found)
                    with os.fdopen(found) as file:
                        totals.update({**json.loads(file.read()), "recordings": 1})
                time.sleep(0.002)
        finally:
            for recording in running:
                os.kill(recording.child, signal.SIGKILL)
    print(json.dumps({**totals, "seconds": round(time.monotonic() - begun, 1)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
