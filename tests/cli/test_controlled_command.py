"""The verbs for a recording that runs, with a command that only waits: no engine, but the real parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from program import Program

pytestmark = pytest.mark.program

# Leaves the segment that a worker would have written in each trace that it is told to write to, until it is ended.
COMMAND = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
data = (pathlib.Path(sys.argv[1]) / "record-rank0.seg").read_bytes()
orders = pathlib.Path(os.environ["TRACEREPLAY_CONTROL"]) / "orders"
traces = [os.environ["TRACEREPLAY_RECORD"]]
while True:
    for trace in traces:
        segment = pathlib.Path(trace) / "record-rank0.seg"
        if not segment.exists():
            segment.write_bytes(data)
    given = map(json.loads, orders.read_text().splitlines())
    traces = [order["trace"] for order in given if order["do"] == "cut"]
    time.sleep(0.02)
"""


@pytest.fixture
def run(golden: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*options: object) -> subprocess.Popen[str]:
        words = ["record", *map(str, options), "--", sys.executable, "-c", COMMAND, str(golden)]
        command = [sys.executable, "-m", "tracereplay.cli.main", *words]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c").resolve() / "t"


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def traces(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.trace"))


def test_a_collection_is_controlled(
    tracereplay: Program, run: Callable[..., subprocess.Popen[str]], folder: Path, tmp_path: Path
) -> None:
    process = run("-o", folder, "--rotate", "1GB", "--keep", "2", "--paused")
    until(lambda: tracereplay("status", folder).code == 0)
    assert (folder / "control.sock").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    found = json.loads(tracereplay("status", folder, "--json").out)
    assert (found["state"], found["collection"], found["steps"]) == ("starting", True, 0)
    metrics = tmp_path / "x.prom"
    assert tracereplay("status", folder, "--textfile", metrics).code == 0
    assert tracereplay("status", folder, "--prometheus").out.startswith("# HELP tracereplay_state")
    assert 'state="starting"} 1' in metrics.read_text()
    assert tracereplay("status", folder / "000001.trace").code == 0
    assert tracereplay("status", folder, "--json", "--watch").code == 2
    assert "next step" in tracereplay("start", folder).out
    assert "already" in tracereplay("start", folder).out
    assert tracereplay("set", folder, "--sites", "*.mlp*", "--sides", "out").code == 0
    for words, said in (
        (["--option", "level=kernel"], "decided when a recording starts"), (["--option", "speed"], "NAME=JSON"),
        (["--sides", "up"], "must be"), ([], "No option"), (["--option", "site=1"], "did you mean sites"),
    ):  # fmt: skip
        ended = tracereplay("set", folder, *words)
        assert (ended.code, said in ended.err) == (2, True), ended
    begun = Path(tracereplay("trigger", folder, "looked odd").out.strip())
    assert begun == folder / "000002.trace"
    process.send_signal(signal.SIGUSR2)
    until(lambda: traces(folder)[-1] == "000003.trace")
    tracereplay("trigger", folder, "again")
    until(lambda: traces(folder) == ["000002.trace", "000003.trace", "000004.trace"])  # two, and the current one
    second = subprocess.run(
        [sys.executable, "-m", "tracereplay.cli.main", "record", "-o", folder, "--rotate", "1h", "--", "true"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (second.returncode, "is being recorded into" in second.stderr) == (2, True), second.stderr
    process.terminate()
    assert process.wait(timeout=60) in (0, 4)
    assert not (folder / "control.sock").exists()
    assert tracereplay("status", folder).code == 4
    assert "looked odd" in tracereplay("show", folder / "000002.trace").out
    assert not list(Path("/dev/shm").glob(f"tracereplay-room-*/{os.getpid()}"))


def test_a_single_trace_is_controlled(
    tracereplay: Program, run: Callable[..., subprocess.Popen[str]], folder: Path
) -> None:
    out = folder.with_suffix(".trace")
    process = run("-o", out)
    until(lambda: tracereplay("status", out).code == 0)
    assert tracereplay("stop", out).code == 0
    ended = tracereplay("trigger", out, "x")
    assert (ended.code, "--ring" in ended.err) == (2, True)
    process.kill()  # the socket is left behind
    process.wait()
    ended = tracereplay("stop", out)
    assert (ended.code, "killed" in ended.err) == (4, True)
    until(
        lambda: tracereplay("record", "-o", out, "--force", "--", "true").code == 2
    )  # it is replaced all the same


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "{}.trace", "--rotate", "1GB"], "without .trace"),
        (["-o", "{}", "--rotate", "1XB"], "no amount"),
        (["-o", "{}", "--rotate", "1GB", "--keep", "0"], "--keep 0"),
        (["-o", "{}", "--keep", "3"], "--rotate or --ring too"),
        (["-o", "{}", "--ring", "1MB", "--rotate", "1h"], "give one"),
        (["-o", "{}" + "a" * 110], "too long for a socket"),
        (["-o", "{}", "--paused", "--no-control"], "never record"),
        (["-o", "/dev", "--rotate", "1h"], "contains"),
        (["-o", "{}", "--rotate", "1h", "--force"], "--force replaces a trace"),
        (["-o", "{}", "--rotat", "1h"], "No such option"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_starts(
    tracereplay: Program, folder: Path, options: list[str], said: str
) -> None:
    words = [word.format(folder) for word in options]
    started = folder.parent / "started"
    ended = tracereplay("record", *words, "--", "touch", started)
    assert (ended.code, said in ended.err) == (2, True), ended
    assert not started.exists()
    assert not folder.exists()
