"""The socket of a recording: who may use it, and what it says to those who ask wrongly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tracereplay.errors import NothingRuns, UsageError
from tracereplay.launch.budget import Budget, budget_of
from tracereplay.launch.collection import Traces, check_collection
from tracereplay.launch.control import ControlSocket, ask, check_socket
from tracereplay.launch.recording import Recording
from tracereplay.launch.room import Room
from tracereplay.launch.shown import prometheus
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import Orders
from tracereplay.recorder.status import StatusPage

HEADER = {"kind": "recording", "command": ["serve"], "notes": []}
OTHER = 65534  # a user's id


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s").resolve()


def answer(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message["do"] == "refuse":
        raise UsageError("No.")
    return {"said": message["do"]}


def test_it_answers_its_owner_only(short: Path) -> None:
    served = ControlSocket(short, answer)
    try:
        served.serve()
        assert served.path.stat().st_mode & 0o777 == 0o600
        assert ask(short, {"do": "x"}) == {"said": "x"}
        assert ask(short / "000001.trace", {"do": "x"}) == {"said": "x"}
        with pytest.raises(UsageError, match=r"^No\.$"):
            ask(short, {"do": "refuse"})
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(served.path))
            peer.sendall(b"nonsense\n")
            assert json.loads(peer.makefile().readline())["exit_code"] == 2
        with pytest.raises(UsageError, match="is being recorded into"):
            ControlSocket(short, answer)
        if os.geteuid() == 0:
            _as_another_user(short, served.path)
    finally:
        served.close()
    assert not served.path.exists()


def _as_another_user(folder: Path, path: Path) -> None:
    for parent in (folder, *folder.parents):
        if not os.stat(parent).st_mode & 0o001:
            os.chmod(parent, 0o711)
    program = (
        "import os; from pathlib import Path; from tracereplay.launch.control import ask\n"
        f"os.setuid({OTHER})\n"
        f"try: ask(Path({str(folder)!r}), {{'do': 'x'}})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    for mode, said in ((0o600, "UsageError"), (0o666, "NothingRuns")):  # by the file's mode, and by who asks
        os.chmod(path, mode)
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert ended.stdout.startswith(said), ended


def test_a_socket_that_was_left_behind_is_no_recording(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(short / "control.sock"))
    with pytest.raises(NothingRuns, match="killed"):
        ask(short, {"do": "x"})
    with pytest.raises(NothingRuns, match="which does not exist"):
        ask(short / "a" / "b", {"do": "x"})
    ControlSocket(short, answer).close()


def test_paths_that_are_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long for a socket"):
        check_socket(tmp_path / ("a" * 107))


def test_budgets() -> None:
    assert budget_of("1GB", "3", None, resume=False) == Budget(bytes=10**9, keep=3)
    assert budget_of("90m", "50GiB", "1.5GB", resume=True) == Budget(
        seconds=5400, keep_bytes=50 << 30, leave_free=1_500_000_000, resume=True
    )
    for rotate, keep, free, said in (
        ("1XB", None, None, "no amount"), ("0.1s", None, None, "too short"), ("12", None, None, "too little"),
        ("1h", "0", None, "--keep 0"), ("1GB", "2MB", None, "less than one trace"), ("9", "1", None, "too little"),
        ("1h", None, "much", "--leave-free much"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            budget_of(rotate, keep, free, resume=False)


def test_what_can_be_a_collection(tmp_path: Path) -> None:
    check_collection(tmp_path / "new")
    check_collection(tmp_path)
    with pytest.raises(UsageError, match=r"without \.trace"):
        check_collection(tmp_path / "a.trace")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"contains 'mine\.txt'"):
        check_collection(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        check_collection(tmp_path / "mine.txt")


def test_a_room_whose_owner_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from tracereplay.launch.room import Room; print(Room().path, flush=True); "
        "sys.stdin.read(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    left = Path(owner.stdout.readline().strip())
    Room().remove()
    assert left.is_dir()  # its owner lives
    owner.stdin.write("x")
    owner.stdin.close()
    owner.wait()
    owner.stdout.close()
    page = StatusPage(left, "record-rank0")  # of an engine that lives on
    page.say({"pid": os.getpid()})
    Room().remove()
    assert left.is_dir()
    page.say({"pid": owner.pid})
    (left / "owner").write_text((left / "owner").read_text().rpartition(" ")[0] + " 1")  # another container's
    Room().remove()
    assert left.is_dir()
    (left / "owner").write_text(
        f"{os.getpid()} 1 {os.stat('/proc/self/ns/pid').st_ino}"
    )  # its number is another's
    Room().remove()
    assert not left.exists()


def test_a_recording_that_is_asked_and_told(short: Path) -> None:
    room = Room()
    traces = Traces(short / "c", HEADER, collection=True)
    recording = Recording(traces, room, Options(), Budget(bytes=1 << 20), ["serve"], paused=True)
    try:
        recording.start()
        orders = Orders(room.path, "record")
        assert ask(short / "c", {"do": "status"})["state"] == "starting"
        page = StatusPage(room.path, "record-rank0")
        page.say({"trace": str(traces.current), "error": None, "pid": os.getpid()})
        page.counters.step_ns, page.counters.tap_ns, page.counters.hand_ns = 1000, 100, 50
        page.counters.trace_bytes = 2 << 20
        page.show()
        status = ask(short / "c", {"do": "status"})
        assert (status["state"], status["cost"]) == ("paused", {"taps": 0.1, "hand_over": 0.05})
        assert 'tracereplay_state{path="' in prometheus(status)
        assert ask(short / "c", {"do": "start"})["changed"]
        assert not ask(short / "c", {"do": "start"})["changed"]
        with pytest.raises(UsageError, match="decided when"):
            ask(short / "c", {"do": "set", "options": {"level": "kernel"}})
        assert ask(short / "c", {"do": "set", "options": {"sides": ["out"]}})["options"]["sides"] == ["out"]
        with pytest.raises(UsageError, match="does not know"):
            ask(short / "c", {"do": "fly"})
        begun = Path(ask(short / "c", {"do": "trigger", "why": "smoke"})["trace"])
        said = [order["do"] for order in orders.due(0)]
        assert said[:3] == ["pause", "resume", "options"]
        assert said[3:] in (["cut", "cut"], ["cut"])  # it was full, too
        assert begun.name in ("000002.trace", "000003.trace")
        assert "smoke" in (begun / "manifest.json").read_text()
    finally:
        recording.stop()
        room.remove()
    traces.finish()
    assert traces.finished == []  # no engine wrote into them
    assert list((short / "c").iterdir()) == []


def test_triggers_of_workers_are_rate_limited(short: Path) -> None:
    room = Room()
    traces = Traces(short / "a.trace", HEADER, collection=False)
    recording = Recording(traces, room, Options(), Budget(), ["serve"])
    try:
        recording.start()
        message = {"do": "triggered", "kind": "nonfinite", "request": "cmpl-1", "detail": "NaN in logits"}
        assert [ask(short / "a.trace", message)["held_back"] for _ in range(3)] == [False, True, True]
        assert ask(short / "a.trace", {"do": "status"})["triggers_held_back"] == 2
        with pytest.raises(UsageError, match="needs a flight recorder"):
            ask(short / "a.trace", {"do": "trigger", "why": "x"})
    finally:
        recording.stop()
        room.remove()
        traces.let_go()


def test_the_oldest_traces_are_removed(short: Path) -> None:
    traces = Traces(short / "c", HEADER, collection=True)
    for _ in range(4):
        (traces.current / "record-rank0.seg").write_bytes(bytes(1000))
        traces.next()
    traces._ending.clear()
    traces.tidy(Budget(keep=3), None)
    assert sorted(p.name for p in (short / "c").iterdir()) == [f"{n:06}.trace" for n in (2, 3, 4, 5)]
    traces.tidy(Budget(keep_bytes=2600), None)
    assert len(list((short / "c").iterdir())) == 3
    traces.tidy(Budget(leave_free=1 << 40), 5)
    assert sorted(p.name for p in (short / "c").iterdir()) == ["000004.trace", "000005.trace"]
    assert traces.removed == 3


def test_a_trigger_orders_a_trace_of_a_ring(short: Path) -> None:
    room = Room()
    traces = Traces(short / "c", HEADER, collection=True, ring=True)
    recording = Recording(traces, room, Options(), Budget(), ["serve"])
    try:
        recording.start()
        assert traces.current == short / "c"  # where workers record to, and make no trace by themselves
        message = {
            "do": "triggered",
            "kind": "nonfinite",
            "request": "cmpl-1",
            "detail": "NaN",
            "step": 40,
            "after": 9,
        }
        trace = ask(short / "c", message)["trace"]
        (order,) = Orders(room.path, "record").due(0)
        assert (order["do"], order["trace"], order["after"]) == ("dump", trace, 9)
        assert {name: order["trigger"][name] for name in ("kind", "request", "step")} == {
            "kind": "nonfinite", "request": "cmpl-1", "step": 40,
        }  # fmt: skip
        assert Path(trace).name == "000001.trace"
    finally:
        recording.stop()
        room.remove()
        traces.let_go()
