"""A server that records to a disk that is slow, and at times hangs: its clients notice nothing of that."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from engine_support import ROOT, Engines, find_engine

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(ROOT / "tests" / "recorder"))

from faulty_disk import faulty_disk
from recorded_server import Server

from tracereplay.launch.control import ask
from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify

pytestmark = [pytest.mark.engine, pytest.mark.long]

RATE = 200_000  # bytes a second, of several megabytes that are recorded
SECONDS = 20.0, 40.0  # before anything is recorded, and then
CLIENTS = 4
LONGER = 1.0  # seconds; the disk hangs for two, and more


def longest_answers(server: Server, seconds: float) -> list[float]:
    """How long answers took, the longest first."""
    took: list[float] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        for count in range(10_000):
            begun = time.monotonic()
            if begun > end:
                return
            assert server.ask("completion", f"{number}.{count}", 16, chance, temperature=0.0).finished
            took.append(time.monotonic() - begun)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(took, reverse=True)


@pytest.mark.parametrize("how", ["slow", "stopped"])
def test_answers_do_not_wait_for_the_disk(
    tmp_path: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    find_engine("v1")
    engines.stop()
    out = tmp_path / "c"
    if how == "slow":
        monkeypatch.setenv("LD_PRELOAD", str(faulty_disk(tmp_path)))
        monkeypatch.setenv("FAULTY_FOLDER", f"{out}/")
        monkeypatch.setenv("FAULTY_DISK", f"slow:{RATE}")
    server = Server(out, options=("--rotate", "2MB", "--when-behind", "drop", "--paused"))
    over = threading.Event()

    def stop_the_writer() -> None:
        chance = random.Random(7)
        while not over.wait(chance.uniform(0.1, 1.0)):
            server.kill(signal.SIGSTOP, "writer")
            over.wait(chance.uniform(0.5, 4.0))
            server.kill(signal.SIGCONT, "writer")

    stopping = threading.Thread(target=stop_the_writer)
    try:
        server.wait_until_ready()
        server.family = server.find_family()
        before = longest_answers(server, SECONDS[0])
        ask(out, {"do": "start"})
        if how == "stopped":
            stopping.start()
        took = longest_answers(server, SECONDS[1])
        status = ask(out, {"do": "status"})
        over.set()
        if how == "stopped":
            stopping.join()
        server.kill(signal.SIGTERM, "parent")
        server.wait()
    finally:
        over.set()
        with contextlib.suppress(ProcessLookupError):
            server.kill(signal.SIGCONT, "writer")
        server.close()
    print(
        how, len(before), before[:5], len(took), took[:5], status["recorded"], status["dropped"], os.getloadavg()
    )
    assert len(took) > 50
    assert took[0] < before[0] + LONGER
    assert status["dropped"] > 0
    assert status["recorded"] > 0
    for path in sorted(out.glob("*.trace")):
        with open_trace(path) as trace:
            assert {report.state for report in verify(trace)} <= {"complete", "recoverable"}
