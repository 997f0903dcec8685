"""Orders to workers, what they say of themselves, and live requests: what needs no engine."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tracereplay.errors import UsageError
from tracereplay.event import Request, RowKey, Sampled
from tracereplay.recorder.lacking import Lacking
from tracereplay.recorder.live import LiveRequests
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import ORDERS, Orders, give
from tracereplay.recorder.status import PAUSED, StatusPage, read_status


def room(tmp_path: Path) -> Path:
    (tmp_path / ORDERS).touch()
    return tmp_path


def test_orders_are_due_at_their_step_and_in_order(tmp_path: Path) -> None:
    orders = Orders(room(tmp_path), "record")
    assert list(orders.due(0)) == []
    give(tmp_path, {"do": "pause", "at": {"record": 3, "record-engine1": 1}})
    give(tmp_path, {"do": "resume"})
    assert list(orders.due(2)) == []
    assert [order["do"] for order in orders.due(3)] == ["pause", "resume"]
    other = Orders(tmp_path, "record-engine1")
    assert [order["do"] for order in other.due(1)] == ["pause", "resume"]
    late = Orders(tmp_path, "record-engine7")  # began after these orders
    assert [order["do"] for order in late.due(0)] == ["pause", "resume"]


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    orders = Orders(room(tmp_path), "record")
    with (tmp_path / ORDERS).open("ab", buffering=0) as file:
        file.write(b'{"do": "pa')
        assert list(orders.due(0)) == []
        file.write(b'use"}\nnonsense\n[1]\n{"do": "cut"')
        assert [order["do"] for order in orders.due(0)] == ["pause"]


def test_orders_of_many_givers_are_whole(tmp_path: Path) -> None:
    orders = Orders(room(tmp_path), "record")
    threads = [
        threading.Thread(target=lambda: [give(tmp_path, {"do": "x" * 300}) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [order["do"] for order in orders.due(0)] == ["x" * 300] * 400
    assert (tmp_path / ORDERS).stat().st_mode & 0o777 in (0o600, 0o644)


def test_a_page_shows_counters_and_words(tmp_path: Path) -> None:
    page = StatusPage(tmp_path, "record-engine1-rank0")
    page.counters.steps, page.counters.state = 7, PAUSED
    page.say({"error": "x" * 10_000, "trace": "/t"})
    page.show()
    (status,) = read_status(tmp_path)
    assert (status.name, status.engine) == ("record-engine1-rank0", "record-engine1")
    assert (status.counters.steps, status.counters.state) == (7, PAUSED)
    assert status.words["error"].startswith("xxx")
    assert status.words["trace"] == "/t"
    assert os.stat(tmp_path / "status-record-engine1-rank0").st_mode & 0o777 == 0o600


def test_live_requests_go_on_under_other_numbers() -> None:
    live = LiveRequests()
    live.requested([Request(4, 0, (1, 2), {}), Request(4, 1, (1, 2), {}), Request(5, 0, (3,), {"seed": 1})])
    live.sampled([Sampled(RowKey(5, 0, 1), 9, 9, -0.5), Sampled(RowKey(-1, 0, 0), 8, 8, None)])
    live.sampled([Sampled(RowKey(5, 0, 2), 7, 6, -0.25)])
    live.ended([4])
    assert len(live) == 1
    begins = live.moved([(5, 0, 0, 0), (4, 0, 1, 0)]).beginning()
    assert begins.requests == [Request(0, 0, (3,), {"seed": 1})]
    assert begins.sampled == [Sampled(RowKey(0, 0, 1), 9, 9, -0.5), Sampled(RowKey(0, 0, 2), 7, 6, -0.25)]


def test_what_a_request_lacks_is_told_once_and_goes_on() -> None:
    lacking = Lacking()
    lacking.add([3, 1, -1])
    lacking.add([3])
    assert lacking.notes() == [
        "Requests 1, 3 are not whole: steps were left out while the recording was paused, or behind the engine."
    ]
    assert lacking.notes() == []
    assert lacking.summary() == {"lacking": [1, 3], "lacking_count": 2}
    following = lacking.moved([(3, 0, 0, 0), (7, 0, 1, 0)])
    assert following.requests == {0}


def test_no_more_is_kept_of_what_requests_lack_than_run() -> None:
    lacking = Lacking()
    for number in range(5000):
        lacking.add([number, number + 1])
        lacking.notes()
        lacking.ended([number])
    assert len(lacking.requests) == 1
    summary = lacking.summary()
    assert summary == {"lacking": list(range(1000)), "lacking_count": 5001}
    assert lacking.moved([(5000, 0, 2, 0), (7, 0, 3, 0)]).requests == {2}


def test_what_a_running_recording_can_change() -> None:
    changed = Options().changed({"sites": ["*.mlp*"], "when_behind": "drop"})
    assert (changed.sites, changed.when_behind, changed.level) == (("*.mlp*",), "drop", "operator")
    with pytest.raises(UsageError, match="'level' is decided when a recording starts"):
        Options().changed({"level": "kernel"})
    with pytest.raises(UsageError, match="unknown"):
        Options().changed({"site": ["*"]})
    with pytest.raises(UsageError, match="must be one of"):
        Options().changed({"when_behind": "wait"})
