"""When a recording that outlived its purpose ends: the file by which workers and front ends know."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from tracereplay.engines.variables import ENDED, RECORD_TO
from tracereplay.engines.vllm.guest import front as front_module
from tracereplay.engines.vllm.guest.ending import end_when_told, is_over, recorded_to
from tracereplay.engines.vllm.guest.front import Front
from tracereplay.recorder.ends import EndsHeard, EndsTold
from tracereplay.recorder.last_step import LastStep
from tracereplay.recorder.orders import ORDERS, Orders
from tracereplay.trace.requests import Identity


class Session:
    """One that is in the middle of a step twice."""

    def __init__(self) -> None:
        self.asked = 0
        self.ended = threading.Event()

    def end_between_steps(self, last: LastStep) -> bool:
        self.asked += 1
        if self.asked < 3:
            return False
        self.ended.set()
        return True


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RECORD_TO, str(tmp_path))
    monkeypatch.setenv(ENDED, str(tmp_path / ".ended"))
    return tmp_path / ".ended"


def test_a_session_is_ended_between_two_steps_once_the_file_is_there(ended: Path) -> None:
    session: Any = Session()
    end_when_told(session, ended.parent / "record-rank0.seg", 1)
    assert not session.ended.wait(0.5)
    ended.touch()
    assert session.ended.wait(5)
    assert session.asked == 3


def test_a_session_that_is_gone_is_not_waited_for(ended: Path) -> None:
    session: Any = Session()
    end_when_told(session, ended.parent / "record-rank0.seg", 1)
    (thread,) = [one for one in threading.enumerate() if one.name == "tracereplay-ending"]
    gone = weakref.ref(session)
    del session
    assert gone() is None
    thread.join(5)
    assert not thread.is_alive()


def test_an_engine_that_comes_too_late_is_not_recorded(ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded_to() == ended.parent
    ended.touch()
    assert recorded_to() is None
    monkeypatch.delenv(ENDED)
    assert recorded_to() == ended.parent
    assert not is_over()


def test_a_front_end_notes_nobody_any_more(ended: Path) -> None:
    front = Front(ended.parent)
    front.begun(Identity("a"))
    ended.touch()
    before = {path: path.stat().st_size for path in ended.parent.glob("*.req")}
    front.begun(Identity("b"))
    front.ended("a", "stop")
    assert {path: path.stat().st_size for path in ended.parent.glob("*.req")} == before
    assert len(before) == 1


def test_a_front_end_that_is_closed_keeps_no_file_open_and_no_hook(tmp_path: Path) -> None:
    (tmp_path / ORDERS).touch()
    heard = EndsHeard(tmp_path, "record-rank0")

    def record() -> None:
        front = Front(tmp_path, Orders(tmp_path, "front"), rings=EndsTold(tmp_path))
        front.begun(Identity("a"))
        front.ended("a", "stop")
        front.close()
        assert [end.id for end in heard.read()] == ["a"]

    record()
    gc.collect()
    watched, before = len(front_module._forking), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        record()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(front_module._forking) == watched
    heard.close()


def test_a_fork_does_not_wait_for_a_lock_that_another_thread_had(tmp_path: Path) -> None:
    (tmp_path / ORDERS).touch()
    front = Front(tmp_path, Orders(tmp_path, "front"), rings=EndsTold(tmp_path))
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with front._lock:
            held.set()
            go_on.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if front._lock.acquire(timeout=5) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    go_on.set()
    thread.join()
    front.close()
