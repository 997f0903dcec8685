"""A ring around a command: how it ends, whichever way the engine in it does. The engine is a stand-in without a
model, which hands its steps to a real writer process under the real parent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from program import Program

from tracereplay.trace import Trace, open_trace

pytestmark = pytest.mark.program

ENGINE = """
import os, pathlib, signal, subprocess, sys, time
from tracereplay.event import Request, Site, make_rows
from tracereplay.recorder.ends import End, EndsTold
from tracereplay.recorder.options import Options
from tracereplay.recorder.protocol import Inbox, SampledBytes, StepMessage, send
from tracereplay.recorder.triggers import ERROR, Ended, Fired
from tracereplay.trace import records
import json
how = sys.argv[1]
room = pathlib.Path(os.environ["TRACEREPLAY_CONTROL"])
(room / ".engine-0").touch()
theirs_in, to = os.pipe()
mine, theirs_out = os.pipe()
arena = os.memfd_create("arena")
os.truncate(arena, 1 << 16)
command = [sys.executable, "-m", "tracereplay.recorder.detached", str(theirs_in), str(theirs_out)]
subprocess.run(command, pass_fds=[theirs_in, theirs_out, arena], start_new_session=True)
os.close(theirs_in)
os.close(theirs_out)
inbox = Inbox(mine)
inbox.next()
options = Options.from_dict(json.loads(os.environ["TRACEREPLAY_OPTIONS"]))
path = os.path.join(os.environ["TRACEREPLAY_RECORD"], "record-rank0.seg")
send(to, ["ring", path, {"rank": 0, "world": 1}, options.as_dict(), [arena], str(room)])
inbox.next()
send(to, ["sites", [records.write_site(Site("model.norm", "RMSNorm", 77, ("x",)))]])
for number in range(6):
    rows = records.write_rows(make_rows([(0, 0, number)]))
    begun = [[*records.write_request(Request(0, 0, (1,), {})), "r0-01234567"]] if number == 0 else []
    send(to, ["tensors", 0, 1 << 16, [], [(0, 8), (8, 8)]])
    sampled = [SampledBytes([(0, 0, number + 1)], 0, 1, -1)]
    send(to, ["step", *StepMessage(number, [rows], [], sampled, [], begun, 0)])
if "ends" in how:
    EndsTold(room).tell(End("r0-01234567", "length", 6))
if "idle" in how:
    end = time.monotonic() + 20
    while not any(pathlib.Path(path).parent.glob("*.trace/*.seg")):
        assert time.monotonic() < end
        time.sleep(0.02)
if "broken" in how:
    send(to, ["fired", *Fired(ERROR, "it broke", step=5)])
if "close" in how:
    send(to, ["close", {"ended": None, "dropped": 0}, True])
    while inbox.next()[0] != "closed":
        pass
os._exit(3 if "fails" in how else 0)
"""


def rung(tracereplay: Program, folder: Path, how: str, *options: str) -> tuple[int, str, list[Trace]]:
    ended = tracereplay("record", "--ring", "1MB", "-o", folder, *options, "--", sys.executable, "-c", ENGINE, how)
    return ended.code, ended.err, [open_trace(path) for path in sorted(folder.glob("*.trace"))]


@pytest.mark.parametrize(("how", "code"), [("close", 0), ("close fails", 3)])
def test_a_ring_in_which_no_trigger_fired_ends_well(
    tracereplay: Program, tmp_path: Path, how: str, code: int
) -> None:
    ended = rung(tracereplay, tmp_path / "r", how)
    assert ended == (code, f"No trigger fired: {tmp_path / 'r'} has no trace.\n", [])


def test_a_ring_around_a_command_without_an_engine_says_so(tracereplay: Program, tmp_path: Path) -> None:
    ended = tracereplay("record", "--ring", "1MB", "-o", tmp_path / "r", "--", "true")
    assert (ended.code, "no engine of vLLM" in ended.err) == (2, True)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("how", "kind", "options"),
    [
        ("", "gone", ()),
        ("broken", "error", ()),
        ("broken close", "error", ()),
        ("ends", "finish", ("--trigger", "finish=length")),
        ("ends close", "finish", ("--trigger", "finish=length")),
        ("ends idle close", "tokens", ("--trigger", "tokens>5")),
    ],
)
def test_whichever_way_an_engine_ends_its_ring_makes_the_trace(
    tracereplay: Program, tmp_path: Path, how: str, kind: str, options: tuple[str, ...]
) -> None:
    """It is made before the parent ends, though nothing but the writer process is left of the command."""
    for number in range(3):
        code, said, traces = rung(tracereplay, tmp_path / str(number), how, *options)
        assert code == 0, said
        assert [(trace.run.trigger or {})["kind"] for trace in traces] == [kind]
        assert traces[0].complete
        tokens = [sampled.token for step in traces[0].steps("record") for sampled in step.sampled]
        assert len(tokens) == 6
