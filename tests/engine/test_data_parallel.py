"""A server whose engines share its requests: all of them are in one trace."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_support import Engines, find_engine

sys.path.insert(0, str(Path(__file__).parent))

from recorded_server import Server, compared

from tracereplay.errors import EngineFailed
from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify

pytestmark = [pytest.mark.engine, pytest.mark.long]

CLIENTS = 8


def test_engines_that_share_a_servers_requests_write_one_trace(
    tmp_path: Path, engines: Engines, single_process: Mapping[str, str]
) -> None:
    find_engine("v1")
    engines.stop()
    arguments = ("--data-parallel-size", "2", "--api-server-count", "1")  # not two
    server = Server(tmp_path / "served.trace", arguments=arguments)
    try:
        server.wait_until_ready()
        chance = random.Random(3)
        asking = [
            threading.Thread(target=server.ask, args=("completion", f"client {number}", 12, chance))
            for number in range(CLIENTS)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        server.kill(signal.SIGTERM, "parent")
        code = server.wait()
    finally:
        server.close()
    assert code in (0, EngineFailed.exit_code), server.log.read_text()[-3000:]
    assert server.left_over() == ([], set())
    trace = open_trace(server.out)
    assert trace.complete == (code == 0)
    assert trace.joined("record") == ("record", "record-engine1")
    assert all(report.steps > 1 for report in verify(trace) if report.name.endswith(".seg"))
    assert compared(trace, server.answers) == CLIENTS
    verdict = engines.start("v1", env=single_process).verdict(trace)
    assert verdict.first_divergence is None
    assert verdict.tokens.differing == 0
