"""When a recording that outlived its purpose ends: the file by which workers and front ends know."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tracereplay.engines.variables import ENDED, RECORD_TO
from tracereplay.engines.vllm.guest.ending import end_when_told, is_over, recorded_to
from tracereplay.engines.vllm.guest.identity import Front
from tracereplay.trace.requests import Identity


class Session:
    """One that is in the middle of a step twice."""

    def __init__(self) -> None:
        self.asked = 0
        self.ended = threading.Event()

    def end_between_steps(self) -> bool:
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
    end_when_told(session)
    assert not session.ended.wait(0.5)
    ended.touch()
    assert session.ended.wait(5)
    assert session.asked == 3


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
