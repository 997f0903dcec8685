"""A real HTTP server, recorded under load and ended in every way; killed_servers.py does it many times."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from engine_support import Engines, find_engine

sys.path.insert(0, str(Path(__file__).parent))

from killed_servers import killed
from recorded_server import KINDS, Server, compared

from tracereplay.errors import EngineFailed
from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine


@pytest.fixture
def serve(tmp_path: Path, engines: Engines) -> Iterator[Callable[[], Server]]:
    find_engine("v1")
    engines.stop()
    started: list[Server] = []

    def start() -> Server:
        started.append(Server(tmp_path / "served.trace"))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_end_loses_nothing_that_a_client_has(
    serve: Callable[[], Server], engines: Engines, single_process: Mapping[str, str], number: int
) -> None:
    server = serve()
    server.wait_until_ready()
    chance = random.Random(int(number))
    for kind in KINDS:
        assert server.ask(kind, f"once: {kind}", 8, chance).finished
    assert server.ask(KINDS[1], "cut off", 64, chance, abort=2).aborted
    server.start_clients(4, chance, tokens=48)
    time.sleep(2)
    assert server.running() > 0
    server.kill(number, "parent")
    # vLLM's front end may kill an engine that has requests still: the segment is whole then, and not complete.
    code = server.wait()
    assert code in (0, EngineFailed.exit_code)
    assert server.left_over() == ([], set())
    trace = open_trace(server.out)
    assert trace.complete == (code == 0)
    assert {report.state for report in verify(trace)} == {"complete" if code == 0 else "recoverable"}
    assert compared(trace, server.answers) >= len(KINDS)
    assert trace.raw_run["workload"]["settings"]["max_model_len"] == 256
    if number == signal.SIGTERM:
        verdict = engines.start("v1", env=single_process).verdict(trace).as_dict()
        assert verdict["first_divergence"] is None
        assert verdict["tokens"]["first_divergence"] is None


@pytest.mark.parametrize("kind", ["parent", "worker", "writer"])
def test_what_a_client_has_is_in_the_trace_of_a_server_that_was_killed(
    tmp_path: Path, engines: Engines, kind: str
) -> None:
    find_engine("v1")
    engines.stop()
    found = killed(tmp_path, kind, random.Random(kind))
    assert found["running"] > 0
    assert found["steps"] > 0
