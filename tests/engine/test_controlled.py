"""A real server whose recording is stopped, started, changed, cut and filled up while clients stream."""

from __future__ import annotations

import itertools
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import ROOT, Engines

sys.path.insert(0, str(Path(__file__).parent))

from recorded_server import Server, tokens_of

from tracereplay.launch.control import ask
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

CLIENTS = 8


@pytest.fixture
def serve(tmp_path: Path, start_server: Callable[..., Server]) -> Callable[..., Server]:
    return lambda *options, **more: start_server(tmp_path / "c", options=options, **more)


def program(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracereplay.cli.main", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def status(path: Path) -> Mapping[str, Any]:
    return ask(path, {"do": "status"})


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def finished(folder: Path) -> list[Trace]:
    return [open_trace(path) for path in sorted(folder.glob("*.trace"))]


def test_a_server_is_stopped_started_changed_and_cut_under_load(
    serve: Callable[..., Server], engines: Engines, single_process: Mapping[str, str]
) -> None:
    server = serve("--rotate", "2MB", "--when-behind", "block")
    server.wait_until_ready()
    chance = random.Random(4)
    server.start_clients(CLIENTS, chance, tokens=64, aborts=0)
    until(lambda: status(server.out)["traces"]["finished"] >= 2)
    assert program("status", server.out).returncode == 0
    metrics = program("status", server.out, "--prometheus").stdout
    assert f'tracereplay_state{{path="{server.out}",state="recording"}} 1' in metrics
    assert json.loads(program("status", server.out, "--json").stdout)["cost"]["taps"] > 0

    assert program("stop", server.out).stdout == "Paused.\n"
    before = status(server.out)
    until(lambda: status(server.out)["unrecorded"] > before["unrecorded"] + 50)
    assert status(server.out)["recorded"] == before["recorded"]
    assert status(server.out)["state"] == "paused"
    assert program("start", server.out).stdout == "It is being recorded.\n"
    until(lambda: status(server.out)["recorded"] > before["recorded"] + 50)

    assert program("set", server.out, "--sites", "*.mlp.*", "--sides", "out").returncode == 0
    refused = program("set", server.out, "--option", "level=kernel")
    assert (refused.returncode, "decided when a recording starts" in refused.stderr) == (2, True)
    begun = Path(program("trigger", server.out, "looked odd").stdout.strip())
    server.kill(signal.SIGUSR2, "parent")
    until(lambda: Path(status(server.out)["trace"]).name > begun.name)
    until(lambda: status(server.out)["recorded"] > before["recorded"] + 100)
    server.stop_clients()
    server.kill(signal.SIGTERM, "parent")
    code = server.wait()
    assert server.left_over() == ([], set())
    assert program("status", server.out).returncode == 4
    assert not (server.out / "control.sock").exists()

    traces = finished(server.out)
    assert len(traces) >= 5
    # A server that takes too long to end kills its engine, whose last trace is not closed then.
    whole = traces if code == 0 else traces[:-1]
    assert {report.state for trace in whole for report in verify(trace)} == {"complete"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in server.out.rglob("*"))
    unbroken(traces, gaps=1)
    assert "looked odd" in str(open_trace(begun).run.notes)
    lacking = [trace for trace in whole if not trace.complete]
    assert lacking  # those in which requests ran while it was paused, and say so
    assert all("not whole" in str(trace.run.notes) for trace in lacking)
    tokens_in_order(traces, server)
    golden = next(trace for trace in traces[1:] if trace.complete and len(trace.steps("record")) > 20)
    verdict = engines.start("v1", env=single_process).verdict(golden)
    assert verdict.first_divergence is None, verdict.reasons
    assert verdict.tokens.differing == 0


def unbroken(traces: list[Trace], gaps: int) -> None:
    """From one trace to the next no step is missing, but for pauses."""
    numbers = [step.number for trace in traces for step in trace.steps("record") if step.calls or len(step.rows)]
    assert numbers == sorted(set(numbers))
    assert sum(b != a + 1 for a, b in itertools.pairwise(numbers)) <= gaps


def tokens_in_order(traces: list[Trace], server: Server) -> None:
    """Each finished answer whose prompt a trace has, and that is whole there, has the client's tokens."""
    compared = 0
    answers = {answer.prompt: answer for answer in server.answers if answer.finished}
    for trace in traces:
        for prompt, tokens, first in tokens_of(trace):
            answer = answers.get(prompt)
            if answer is not None and trace.complete:
                assert first == len(prompt)
                assert answer.tokens[: len(tokens)] == tokens, (trace.path, prompt)
                compared += 1
    assert compared > CLIENTS


def test_a_full_disk_ends_the_recording_and_not_the_server(serve: Callable[..., Server]) -> None:
    """A limit on the size of files is a full disk to the writer; lifting it is room."""
    server = serve("--rotate", "100MB", "--resume-when-room")
    server.wait_until_ready()
    chance = random.Random(5)
    server.start_clients(4, chance, tokens=32, aborts=0)
    until(lambda: status(server.out)["recorded"] > 20)
    (writer,) = server.family["writer"]
    before = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (status(server.out)["ranks"][0]["trace_bytes"], before[1]))
    until(lambda: status(server.out)["last_error"] is not None)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, before)
    until(lambda: status(server.out)["state"] == "recording" and status(server.out)["last_error"] is None)
    before_kill = status(server.out)["recorded"]
    until(lambda: status(server.out)["recorded"] > before_kill + 20)
    server.kill(signal.SIGKILL, "writer")
    until(lambda: "writer" in str(status(server.out)["last_error"]))
    until(lambda: status(server.out)["state"] == "recording" and status(server.out)["last_error"] is None)
    recorded = status(server.out)["recorded"]
    until(lambda: status(server.out)["recorded"] > recorded + 20)
    assert all(answer.finished for answer in server.answers if answer.ended is not None)
    server.stop_clients()
    server.kill(signal.SIGTERM, "parent")
    server.wait()
    assert all(answer.finished for answer in server.answers)
    traces = finished(server.out)
    # Ended by the limit, the killed writer and the server; one more if it began before the limit was lifted.
    assert len(traces) in (3, 4)
    assert {report.state for trace in traces for report in verify(trace)} <= {"complete", "recoverable"}
