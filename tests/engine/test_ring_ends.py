"""What a recording has of ends that no step follows, and of steps that were left out: scripts, an idle server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import TINY, Engines, find_engine

sys.path.insert(0, str(Path(__file__).parent))

from recorded_server import ENVIRONMENT, Server

from tracereplay.launch.control import ask
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.listing import listed
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

SCRIPT = Path(__file__).with_name("offline_ring.py")
STAND_IN = Path(__file__).parent / "stand_in"
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
V2 = {**IN_PROCESS, "PYTHONPATH": str(STAND_IN), "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
ALL = os.environ.get("TRACEREPLAY_RUNNERS") == "all"
MORE = [
    pytest.param("v1", "", {}, id="V1 in several processes"), pytest.param("v1", "at once", V2, id="V2")
]  # fmt: skip


def recorded(out: Path, engine: str, how: str, env: Mapping[str, str], *options: str) -> list[list[int]]:
    """Runs the script; returns its answers."""
    answers = out.with_suffix(".json")
    command = [
        sys.executable, "-m", "tracereplay.cli.main", "record", "--engine", engine, "-o", str(out), *options, "--",
        "python", str(SCRIPT), str(TINY), engine, how,
    ]  # fmt: skip
    given = {**os.environ, **ENVIRONMENT, **env, "ANSWERS": str(answers)}
    ended = subprocess.run(command, env=given, capture_output=True, text=True, timeout=300)
    codes = (128 + signal.SIGKILL,) if "killed" in how else (0, 4)
    assert ended.returncode in codes, ended.stderr[-3000:]
    found: list[list[int]] = json.loads(answers.read_text())
    return found


def tokens(trace: Trace, request: int) -> list[int]:
    sampled = [s for step in trace.steps("record") for s in step.sampled if s.key.request == request]
    return [token for _, token in sorted({s.key.position: s.token for s in sampled}.items())]


@pytest.mark.parametrize(
    ("engine", "how", "env"),
    [
        pytest.param("v1", "at once", IN_PROCESS, id="V1 in one process, which ends at once"),
        pytest.param("v0", "", {}, id="V0"),
        *(MORE if ALL else []),
    ],
)
def test_the_end_of_a_scripts_last_request_sets_off_its_ring(
    tmp_path: Path, engines: Engines, engine: str, how: str, env: Mapping[str, str]
) -> None:
    find_engine(engine)
    engines.stop()
    options = ("--ring", "64MB", "--trigger", "tokens>30", "--when-behind", "block")
    answers = recorded(tmp_path / "r", engine, how, env, *options)
    (path,) = (tmp_path / "r").glob("*.trace")
    trace = open_trace(path)
    assert trace.complete
    trigger = trace.run.trigger
    assert trigger is not None
    assert (trigger["kind"], trigger["detail"]) == ("tokens", "it ended with 32 tokens, more than 30")
    assert tokens(trace, trigger["request"]) == answers[2]
    if how != "at once":  # then nobody is left who could say who asked
        assert {one.reason for one in listed(trace, "record")[0]} == {"length"}


@pytest.mark.parametrize(
    ("how", "states"),
    [
        ("behind", {"complete"}),
        # Its writer catches up while the engine idles, and no step and no end comes with what is missing.
        ("behind and killed", {"recoverable", "complete"}),  # complete: what its front end says of requests
    ],
)
def test_a_request_of_which_every_step_was_left_out_is_in_the_trace_and_marked(
    tmp_path: Path, engines: Engines, how: str, states: set[str]
) -> None:
    find_engine("v1")
    engines.stop()
    answers = recorded(tmp_path / "t.trace", "v1", how, IN_PROCESS, "--when-behind", "drop")
    trace = open_trace(tmp_path / "t.trace")
    assert {report.state for report in verify(trace)} == states
    assert not trace.complete
    found, count = listed(trace, "record")
    assert count == 3
    if how == "behind":  # numbers are in the end mark, which a killed recording has not
        assert [one.lacking for one in found][1:] == [True, True]  # the first, too, where the machine is too slow
    notes = [note for step in trace.steps("record") for note in step.notes]
    assert any("2 are not whole: steps were left out" in note for note in notes), notes
    assert [one.tokens for one in found] == answers
    assert [one.prompt for one in found] == [tuple(5 + first + i for i in range(4)) for first in (0, 20, 40)]
    rows = {row for step in trace.steps("record") for row in step.rows[:, 0].tolist()}
    assert (1 in rows, 2 in rows) == (True, False)


def until(what: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_a_quiet_servers_ring_sees_ends_signals_and_what_was_left_out(tmp_path: Path, engines: Engines) -> None:
    find_engine("v1")
    engines.stop()
    options = ("--ring", "64MB", "--when-behind", "block", "--trigger-every", "0s", "--trigger-after", "0")
    triggers = ("--trigger", "finish=stop", "--trigger", "finish=abort")
    server = Server(tmp_path / "ring", options=(*options, *triggers))

    def made(number: int) -> Path | None:
        path = server.out / f"{number:06}.trace"
        return path if any(path.glob("*.seg")) else None

    try:
        server.wait_until_ready()
        chance = random.Random(7)
        long = server.ask("completion", "it has a length", 9, chance, temperature=0.0)
        stops = {"stop_token_ids": [long.tokens[5]]}
        stopped = server.ask("completion", "it has a length", 40, chance, temperature=0.0, **stops)
        until(lambda: made(1), 3)  # nobody asks for anything else
        server.ask("streamed completion", "its client hangs up", 200, chance, 4, temperature=0.0)
        until(lambda: made(2), 5)
        server.kill(signal.SIGUSR2, "parent")
        until(lambda: made(3), 5)
        ask(server.out, {"do": "set", "options": {"when_behind": "drop"}})
        server.kill(signal.SIGSTOP, "writer")  # a disk that hangs
        begun = time.monotonic()
        late = server.ask("completion", "its steps are left out", 60, chance, temperature=0.0)
        assert time.monotonic() - begun < 30
        server.kill(signal.SIGCONT, "writer")
        after = server.ask("completion", "this comes after", 30, chance, temperature=0.0)
        time.sleep(2)  # an idle engine gives what it owes as soon as the writer has caught up
        server.kill(signal.SIGUSR2, "parent")
        until(lambda: made(4), 5)
    finally:
        server.kill(signal.SIGCONT, "writer")
        server.kill(signal.SIGTERM, "parent")
        server.wait()
        server.close()
    traces = [open_trace(path) for path in sorted(server.out.glob("*.trace"))]
    assert {report.state for trace in traces for report in verify(trace)} == {"complete"}
    said = [trace.run.trigger or {} for trace in traces]
    assert [(s["kind"], s.get("detail", "").partition(",")[0]) for s in said] == [
        ("finish", "it ended because of stop"), ("finish", "it ended because of abort"),
        ("signal", "SIGUSR2"), ("signal", "SIGUSR2"),
    ]  # fmt: skip
    assert not traces[3].complete  # others, too, where the machine is too slow for this
    assert tokens(traces[0], said[0]["request"]) == stopped.tokens
    found, _ = listed(traces[3], "record")
    by_prompt = {one.prompt: one for one in found}
    assert by_prompt[late.prompt].lacking
    assert by_prompt[late.prompt].tokens == late.tokens
    assert by_prompt[after.prompt].tokens == after.tokens
    assert traces[3].dropped > 30
