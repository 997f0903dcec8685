"""The real writer process above a disk that fails: what was acknowledged is there, and what is lacking is said.

The engine's end is played by the test, which needs no torch for that: it speaks the protocol.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_disk import faulty_disk

from tracereplay.event import Site, make_rows
from tracereplay.recorder.protocol import Descriptor, Inbox, StepMessage, send
from tracereplay.trace import TraceDirectory, codec, open_trace, records, segment_path
from tracereplay.trace.verify import verify

STEPS, SIZE = 30, 20_000  # steps of a recording, and bytes of each


class Engine:
    """A recording over a real writer process; afterwards ``acknowledged`` and ``failed`` have what that said."""

    def __init__(self, path: Path, library: Path, mode: str) -> None:
        theirs_in, self._to = os.pipe()
        mine, theirs_out = os.pipe()
        self._inbox = Inbox(mine)
        self._arena = os.memfd_create("arena")
        os.ftruncate(self._arena, 1 << 20)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tracereplay.recorder.writer_process", str(theirs_in), str(theirs_out)],
            pass_fds=[theirs_in, theirs_out, self._arena],
            env={**os.environ, "LD_PRELOAD": str(library), "FAULTY_DISK": mode},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.acknowledged = 0
        self.failed: list[str] = []
        self._ask("open", str(path), {"rank": 0}, codec.PLANES, None, [self._arena])
        self._hear("wrote")
        self._ask("sites", [records.write_site(Site("model.norm", "RMSNorm", 77, ("x",)))])

    def step(self, number: int, data: bytes) -> None:
        os.pwrite(self._arena, data, 0)
        self._ask("tensors", 0, 1 << 20, [Descriptor("uint8", (SIZE,), (1,), 0, SIZE, 0, 0)], [])
        rows = records.write_rows(make_rows([(0, 0, number)]))
        self._ask("step", *StepMessage(number, [rows], [(77, 0, 0, 0, {0: 0}, {0: 0}, {}, None)], [], [], [], 0))
        self._hear("free")

    def close(self) -> int:
        self._ask("close", {}, not self.failed)
        self._hear("closed")
        os.close(self._to)
        return self._process.wait(timeout=20)

    def _ask(self, *message: Any) -> None:
        send(self._to, list(message))

    def _hear(self, last: str) -> None:
        """Listens until a message of this kind has come."""
        while (message := self._inbox.next()) is not None:
            if message[0] == "wrote":
                self.acknowledged = message[1]
            if message[0] == "failed":
                self.failed.append(message[1])
            if message[0] == last:
                return
        raise AssertionError(f"the writer ended and never said {last!r}")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_disk(tmp_path_factory.mktemp("library"))


def data_of(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


def recorded(path: Path, library: Path, mode: str) -> Engine:
    """A recording of all steps; the engine goes on whatever the disk does."""
    directory = TraceDirectory(path, {"kind": "recording"})
    engine = Engine(segment_path(directory.path, "record", 0), library, mode)
    for number in range(STEPS):
        engine.step(number, data_of(number))
    assert engine.close() == 0
    if not engine.failed:
        directory.complete()
    return engine


def check_steps(path: Path, count: int) -> None:
    steps = open_trace(path).steps("record")
    assert [step.number for step in steps] == list(range(count))
    assert [step.calls[0].inputs[0].load() for step in steps] == list(map(data_of, range(count)))


@pytest.mark.parametrize("mode", ["short", "eintr", "none"])
def test_short_and_interrupted_writes_lose_nothing(tmp_path: Path, library: Path, mode: str) -> None:
    engine = recorded(tmp_path / "a.trace", library, mode)
    assert (engine.acknowledged, engine.failed) == (STEPS, [])
    assert open_trace(tmp_path / "a.trace").complete
    check_steps(tmp_path / "a.trace", STEPS)


@pytest.mark.parametrize(
    ("mode", "words"),
    [("enospc", "No space left on device"), ("eio", "Input/output error"), ("dead", "Input/output error")],
)
@pytest.mark.parametrize("limit", [20_500, 100_000, 333_333])
def test_a_disk_that_fails_keeps_the_steps_before(
    tmp_path: Path, library: Path, mode: str, words: str, limit: int
) -> None:
    path = tmp_path / "a.trace"
    engine = recorded(path, library, f"{mode}:{limit}")
    assert engine.failed == [f"{words} (while writing the trace)"]
    assert 0 < engine.acknowledged < STEPS
    assert engine.acknowledged >= limit // SIZE - 1
    trace = open_trace(path)
    assert not trace.complete
    check_steps(path, engine.acknowledged)
    (report,) = verify(trace)
    assert (report.state, report.steps) == ("recoverable", engine.acknowledged)


def test_a_recording_that_the_disk_did_not_take_is_no_complete_one(tmp_path: Path, library: Path) -> None:
    engine = recorded(tmp_path / "a.trace", library, "fsync")
    assert engine.failed == ["Input/output error (while writing the trace)"]
    assert not open_trace(tmp_path / "a.trace").complete
    check_steps(tmp_path / "a.trace", STEPS)
