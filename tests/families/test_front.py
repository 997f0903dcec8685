"""What a front end notes of its requests, and where: `engines.vllm.guest.front.Front`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracereplay.engines.vllm.guest.front import Front, arrived, now
from tracereplay.recorder.ends import End, EndsHeard, EndsTold
from tracereplay.storage.files import LocalFile
from tracereplay.trace.requests import Identity, checked, read_identities


class Orders:
    """A recording's, as its parent gives them."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def due(self, step: int) -> Iterator[dict[str, Any]]:
        given, self.given = self.given, []
        yield from given


@pytest.fixture
def traces(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{number:06}.trace" for number in range(1, 5)]
    for path in found:
        path.mkdir()
    return found


def said(trace: Path) -> dict[str, Identity]:
    found: dict[str, Identity] = {}
    for path in sorted(trace.glob("requests-*.req")):
        found |= read_identities(LocalFile(path))
    return found


def test_a_request_that_runs_on_is_in_each_trace_with_its_end(traces: list[Path]) -> None:
    orders = Orders()
    front = Front(traces[0], orders)
    front.begun(Identity("a", "cmpl-a", now(), prompt=3))
    front.begun(Identity("b", "cmpl-b", now(), prompt=4))
    front.ended("a", "length", None, 7)
    orders.given = [{"do": "pause"}, {"do": "cut", "trace": str(traces[1]), "at": 7}]
    front.look()
    front.begun(Identity("c", "cmpl-c", now()))
    front.ended("b", "stop", "\n", 9)
    front.ended("b", "abort")
    first, second = said(traces[0]), said(traces[1])
    assert list(first) == ["a", "b"]
    assert list(second) == ["b", "c"]
    assert first["b"] == second["b"]
    assert (second["b"].name, second["b"].reason, second["b"].stop, second["b"].tokens) == (
        "cmpl-b",
        "stop",
        "\n",
        9,
    )
    assert second["c"].ended is None
    assert front.failures == 0


def test_what_is_dumped_has_requests_that_ended_lately_and_ends_that_come_later(traces: list[Path]) -> None:
    orders = Orders()
    front = Front(None, orders)
    front.begun(Identity("a", "cmpl-a", now()))
    front.begun(Identity("b", "cmpl-b", now()))
    front.ended("a", "length", None, 7)
    assert not any(said(trace) for trace in traces)
    orders.given = [{"do": "dump", "trace": str(traces[0]), "trigger": {}, "after": 3}]
    front.ended("b", "abort")
    assert {name: identity.reason for name, identity in said(traces[0]).items()} == {"a": "length", "b": "abort"}
    assert said(traces[0])["a"].name == "cmpl-a"


def test_a_trace_that_is_gone_or_full_is_counted_and_raises_nothing(traces: list[Path]) -> None:
    front = Front(traces[0])
    shutil.rmtree(traces[0])
    front.begun(Identity("a", "cmpl-a", now()))
    front.ended("a", "stop")
    front.copy_to(traces[0])
    assert front.failures == 3
    front.move(traces[1])
    front.begun(Identity("b", "cmpl-b", now()))
    assert list(said(traces[1])) == ["b"]
    assert checked(LocalFile(traces[1] / "requests-0.req"), None).lost == 3


def test_what_is_not_wanted_is_not_written(traces: list[Path]) -> None:
    front = Front(traces[0], withhold=True)
    for name, stop in (("a", "secret"), ("b", 7)):
        front.begun(Identity(name, name, now()))
        front.ended(name, "stop", stop, 3)
    assert [(i.reason, i.stop, i.tokens) for i in said(traces[0]).values()] == [("stop", None, 3)] * 2


def test_a_fork_writes_to_a_file_of_its_own(traces: list[Path]) -> None:
    front = Front(traces[0])
    front.begun(Identity("a", "cmpl-a", now()))
    child = os.fork()
    if child == 0:
        front.begun(Identity("b", "cmpl-b", now()))
        os._exit(0)
    os.waitpid(child, 0)
    front.begun(Identity("c", "cmpl-c", now()))
    files = [read_identities(LocalFile(traces[0] / f"requests-{number}.req")) for number in (0, 1)]
    assert [list(file) for file in files] == [["a", "c"], ["b"]]


def test_an_arrival_is_told_on_both_clocks() -> None:
    before = now()
    found = arrived(before.utc / 1e9 - 2.5)
    assert before.utc - found.utc == pytest.approx(2.5e9, abs=1e8)
    assert before.monotonic - found.monotonic == pytest.approx(2.5e9, abs=1e8)
    for wall in (None, 0.0, before.utc / 1e9 + 1000, 12345.0):  # another clock's, or one that was set back
        assert arrived(wall).utc >= before.utc


def test_rings_are_told_of_ends_and_their_traces_who_asked_though_nobody_asks_again(
    traces: list[Path], tmp_path: Path
) -> None:
    orders, ring = Orders(), EndsHeard(tmp_path, "record-rank0")
    front = Front(None, orders, rings=EndsTold(tmp_path))
    front.begun(Identity("a", "cmpl-a", now()))
    front.begun(Identity("b", "cmpl-b", now()))
    front.ended("a", "stop", "x", 7)
    front.all_ended(["b", "c"], "abort")
    front.ended("a", "abort")
    assert ring.read() == [End("a", "stop", 7), End("b", "abort", None)]
    orders.given = [{"do": "dump", "trace": str(traces[0]), "trigger": {}, "after": 3}]
    end = time.monotonic() + 20
    while set(said(traces[0])) != {"a", "b"}:
        assert time.monotonic() < end
        time.sleep(0.02)
