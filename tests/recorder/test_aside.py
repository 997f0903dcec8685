"""What a front end has written while the disk takes it, and while it does not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracereplay.engines.vllm.guest.front import Front
from tracereplay.recorder import aside as module
from tracereplay.recorder.aside import Aside
from tracereplay.storage.files import LocalFile
from tracereplay.trace.requests import Identity, RequestFile, read_identities


@pytest.fixture
def aside() -> Iterator[Aside]:
    made = Aside()
    yield made
    made.close()


def test_what_is_quick_is_done_at_once_and_in_order(aside: Aside) -> None:
    done: list[int] = []
    for number in range(100):
        assert aside.do(lambda number=number: done.append(number))  # type: ignore[misc]
        assert done[-1] == number
    child = os.fork()
    if child == 0:
        aside.do(lambda: done.append(-1))
        os._exit(0 if done[-1] == -1 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nobody_waits_for_what_hangs_but_once(aside: Aside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 50)
    go_on, done = threading.Event(), list[int]()
    begun = time.monotonic()
    assert aside.do(lambda: go_on.wait(30) and None)
    taken = [aside.do(lambda n=number: done.append(n)) for number in range(100)]  # type: ignore[misc]
    assert time.monotonic() - begun < 10 * module.PATIENCE
    assert taken == [True] * 50 + [False] * 50
    assert done == []
    go_on.set()
    end = time.monotonic() + 10
    while len(done) < 50 and time.monotonic() < end:
        time.sleep(0.01)
    assert done == list(range(50))
    time.sleep(0.05)
    assert aside.do(lambda: done.append(50))
    assert done[-1] == 50


def test_a_thread_ends_when_it_has_done_what_it_was_given() -> None:
    before = threading.active_count()
    aside, done = Aside(), list[int]()
    aside.do(lambda: (time.sleep(0.3), done.append(1))[1])
    aside.close()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert (threading.active_count(), done) == (before, [1])


def test_a_front_end_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, add = threading.Event(), RequestFile.add

    def hanging(self: RequestFile, record: dict[str, object]) -> None:
        go_on.wait(30)
        add(self, record)

    monkeypatch.setattr(RequestFile, "add", hanging)
    front = Front(tmp_path)
    begun = time.monotonic()
    for number in range(200):
        front.begun(Identity(f"r{number}"))
        front.ended(f"r{number}", "stop")
    front.close()
    assert time.monotonic() - begun < 5
    go_on.set()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = {k: i for path in tmp_path.glob("*.req") for k, i in read_identities(LocalFile(path)).items()}
        if len(found) == 200 and all(i.reason == "stop" for i in found.values()):
            break
        time.sleep(0.05)
    assert [i.reason for i in found.values()] == ["stop"] * 200
    assert front.failures == 0
