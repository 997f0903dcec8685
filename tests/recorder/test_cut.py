"""A writer process ends one segment and begins the next, with the requests that are live."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tracereplay.event import Request, RowKey, Sampled, Site, make_rows
from tracereplay.passes import RECORD
from tracereplay.recorder.protocol import Descriptor, Inbox, SampledBytes, StepMessage, send
from tracereplay.trace import TraceDirectory, codec, open_trace, records, segment_path
from tracereplay.trace.verify import verify

SIZE = 1 << 16
SLOT = 77
RUN = {"kind": "recording", "command": ["x"], "notes": []}


class Engine:
    """An engine without torch: it hands steps over as `WriterClient` does."""

    def __init__(self) -> None:
        theirs_in, self.to = os.pipe()
        mine, theirs_out = os.pipe()
        self.arena = os.memfd_create("arena")
        os.truncate(self.arena, SIZE)
        command = [sys.executable, "-m", "tracereplay.recorder.detached", str(theirs_in), str(theirs_out)]
        subprocess.run(command, pass_fds=[theirs_in, theirs_out, self.arena], start_new_session=True, check=True)
        os.close(theirs_in)
        os.close(theirs_out)
        self.inbox = Inbox(mine)
        self.said: list[list[object]] = []
        self.until("here")

    def until(self, kind: str) -> None:
        while (message := self.inbox.next()) is not None:
            self.said.append(message)
            if message[0] == kind:
                return
        raise AssertionError(self.said)

    def begin(self, path: Path) -> None:
        send(
            self.to, ["open", str(path), {"rank": 0, "world": 1}, codec.PLANES, None, [self.arena], [], None, True]
        )
        send(self.to, ["sites", [records.write_site(Site("model.norm", "RMSNorm", SLOT, ("x",)))]])

    def step(self, number: int, tokens: dict[tuple[int, int], int], requests: list[Request] = []) -> None:  # noqa: B006
        """One row for each request: its position and token."""
        values = np.array([*tokens.values()], np.int64)
        os.pwrite(self.arena, bytes(64) + values.tobytes(), 0)
        send(self.to, ["tensors", 0, SIZE, [Descriptor("uint8", (64,), (1,), 0, 64, 0, 0)], [(64, values.nbytes)]])
        rows = [records.write_rows(make_rows([(r, 0, p - 1) for r, p in tokens]))]
        sampled = [SampledBytes([(r, 0, p) for r, p in tokens], 0, 0, -1)]
        calls = [(SLOT, 0, 0, 0, {0: 0}, {0: 0}, {}, None)]
        written = [records.write_request(request) for request in requests]
        send(self.to, ["step", *StepMessage(number, rows, calls, sampled, [], written, 0)])
        self.until("free")

    def cut(self, path: Path, moved: list[list[int]], number: int, *, whole: bool = True) -> None:
        meta = {"rank": 0, "world": 1, "continues": {"trace": "000001.trace", "step": number}}
        send(self.to, ["cut", {"dropped": 0}, whole, str(path), meta, moved, number])

    def close(self) -> None:
        send(self.to, ["close", {"dropped": 0}, True])
        self.until("closed")
        os.close(self.to)


def test_the_next_trace_begins_with_what_is_live(tmp_path: Path) -> None:
    one, two = (TraceDirectory(tmp_path / f"00000{n}.trace", RUN) for n in (1, 2))
    engine = Engine()
    engine.begin(segment_path(one.path, RECORD, 0))
    engine.step(0, {(0, 2): 11, (1, 3): 12}, [Request(0, 0, (1, 2), {}), Request(1, 0, (1, 2, 3), {"seed": 4})])
    engine.step(1, {(0, 3): 13, (1, 4): 14})
    engine.cut(segment_path(two.path, RECORD, 0), [[1, 0, 0, 0]], 2)  # request 0 has ended
    engine.step(2, {(0, 5): 15, (1, 1): 16}, [Request(1, 0, (9,), {})])
    engine.close()
    first, second = open_trace(one.path), open_trace(two.path)
    assert {report.state for trace in (first, second) for report in verify(trace)} == {"complete"}
    assert [step.number for step in first.steps(RECORD)] == [0, 1]
    begins, goes_on = second.steps(RECORD)
    assert (begins.number, len(begins.rows), begins.calls) == (1, 0, ())
    assert begins.requests == (Request(0, 0, (1, 2, 3), {"seed": 4}),)
    assert begins.sampled == (Sampled(RowKey(0, 0, 3), 12, 12, None), Sampled(RowKey(0, 0, 4), 14, 14, None))
    assert "begins while requests run" in begins.notes[0]
    assert (goes_on.number, goes_on.calls[0].site) == (2, "model.norm")
    assert [p.token_ids for p in second.run.prompts] == [(1, 2, 3), (9,)]
    assert second.part((RECORD, 0)).meta["continues"] == {"trace": "000001.trace", "step": 2}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.glob("*/*"))


def test_a_trace_that_cannot_be_begun_costs_no_other(tmp_path: Path) -> None:
    one, two = (TraceDirectory(tmp_path / f"00000{n}.trace", RUN) for n in (1, 3))
    engine = Engine()
    engine.begin(segment_path(one.path, RECORD, 0))
    engine.step(0, {(0, 1): 11}, [Request(0, 0, (1,), {})])
    engine.cut(segment_path(tmp_path / "000002.trace", RECORD, 0), [[0, 0, 0, 0]], 1)  # there is no such directory
    engine.step(1, {(0, 2): 12})
    engine.until("wrote")
    assert [message for message in engine.said if message[0] == "failed"]
    engine.cut(segment_path(two.path, RECORD, 0), [], 2, whole=False)
    engine.step(2, {(0, 3): 13}, [Request(0, 0, (1,), {})])
    engine.close()
    assert [step.number for step in open_trace(one.path).steps(RECORD)] == [0]
    assert [step.number for step in open_trace(two.path).steps(RECORD)] == [2]
    assert [report.state for report in verify(open_trace(two.path))] == ["complete"]
