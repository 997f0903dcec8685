"""Ends of requests as front ends tell them to rings: each once, in time, and after the steps that it ends."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tracereplay.recorder import endings
from tracereplay.recorder.endings import Endings
from tracereplay.recorder.ends import End, EndsHeard, EndsTold
from tracereplay.recorder.ring import SAMPLED, KeptStep
from tracereplay.recorder.triggers import Ended
from tracereplay.trace.plain import pack

NAME = "record-rank0"


class Ring:
    """What a writer process has: steps of requests that are called r0, r1 and so on."""

    def __init__(self, room: Path) -> None:
        self.heard = EndsHeard(room, NAME)
        self.endings = Endings(self.heard)
        self.at: dict[int, int] = {}

    def step(self, *requests: int) -> None:
        begun = [pack([r, 0, [1], {}, f"r{r}"]) for r in requests if r not in self.at]
        for r in requests:
            self.at[r] = self.at.get(r, 0) + 1
        sampled = np.zeros(len(requests), SAMPLED)
        sampled["key"] = [(r, 0, self.at[r]) for r in requests]
        self.endings.step(KeptStep(0.0, 0, b"", (), (), tuple(begun), sampled, (), None, 0, 0))


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path)


@pytest.fixture
def front(tmp_path: Path, ring: Ring) -> EndsTold:
    return EndsTold(tmp_path)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits."""
    monkeypatch.setattr(endings, "MOMENT", 0.0)


def test_an_end_waits_for_the_last_step_and_is_looked_at_once(ring: Ring, front: EndsTold) -> None:
    ring.step(0, 1)
    front.tell(End("r0", "stop", 2))
    assert ring.endings.due(idle=True) == []
    ring.step(0, 1)
    assert ring.endings.due(idle=False) == [Ended(0, 0, "stop", 2)]
    assert ring.endings.said([Ended(0, 0, "abort", 2)]) == []
    assert ring.endings.due(idle=True, last=True) == []


def test_a_request_that_was_given_up_ends_when_nothing_arrives(ring: Ring, front: EndsTold, at_once: None) -> None:
    ring.step(0)
    front.tell(End("r0", "abort", None))
    assert ring.endings.due(idle=False) == []
    assert ring.endings.due(idle=True) == [Ended(0, 0, "abort", 1)]


def test_what_is_left_is_looked_at_when_nothing_comes_any_more(ring: Ring, front: EndsTold) -> None:
    ring.step(0, 1)
    front.tell(End("r0", "length", 9))  # its last steps were left out
    assert ring.endings.said([Ended(1, 0, "", 1)]) == [Ended(1, 0, "", 1)]  # no front end has said anything yet
    assert ring.endings.due(idle=True) == []
    assert ring.endings.due(idle=True, last=True) == [Ended(0, 0, "length", 9)]


def test_a_front_end_knows_better_than_a_worker_unless_tokens_decide(ring: Ring, front: EndsTold) -> None:
    ring.step(0, 1, 2)
    front.tell(End("r9", "stop", 1))
    assert ring.endings.due(idle=False) == []  # of another ring's request; but now it is known that they talk
    assert ring.endings.said([Ended(0, 0, "length", 1), Ended(1, 0, "abort", 1)]) == [Ended(0, 0, "length", 1)]
    front.tell(End("r1", "stop", 1))
    front.tell(End("r0", "length", 1))
    assert ring.endings.due(idle=False) == [Ended(1, 0, "stop", 1)]
    front.tell(End("r2", "stop", 5))
    assert ring.endings.due(idle=False) == []
    assert ring.endings.said([Ended(2, 0, "abort", 1)]) == [Ended(2, 0, "stop", 5)]  # all its steps are here


def test_a_worker_is_believed_when_no_front_end_says_more(ring: Ring, front: EndsTold, at_once: None) -> None:
    ring.step(0)
    front.tell(End("r9", "stop", 1))
    ring.endings.due(idle=False)
    assert ring.endings.said([Ended(0, 0, "abort", 1)]) == []
    assert ring.endings.due(idle=False) == [Ended(0, 0, "abort", 1)]


def test_a_full_pipe_and_one_that_nobody_reads_make_nobody_wait(
    tmp_path: Path, ring: Ring, front: EndsTold
) -> None:
    end = End("r" * 200, "length", 1)
    told = 0
    while not front.tell(end):
        told += 1
    assert told > 1000
    assert front.tell(end) == 1
    assert ring.heard.read() == [end] * told
    assert front.tell(end) == 0
    os.write(front._fds[f"ends-{NAME}"], b'{"no": "end"}\n["r0", "stop"]\n\xff\n')
    assert ring.heard.read() == [end]
    assert front.tell(End("r" * 5000, "length", 1)) == 1
    ring.endings.close()
    assert front.tell(end) == 0  # there is no pipe any more
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_has_said_so_lacks_no_tokens_that_its_front_end_counts(ring: Ring, front: EndsTold) -> None:
    ring.step(0)
    front.tell(End("r9", "stop", 1))
    ring.endings.due(idle=False)
    assert ring.endings.said([Ended(0, 0, "abort", 1)]) == []
    front.tell(End("r0", "stop", 5))  # steps were left out
    assert ring.endings.due(idle=False) == [Ended(0, 0, "stop", 5)]


def test_ends_that_wait_are_not_looked_at_again_with_each_message(ring: Ring, front: EndsTold) -> None:
    """Other engines' requests end too, by thousands, and steps come all the time."""
    ring.step(*range(3))
    for number in range(20_000):
        front.tell(End(f"x{number}", "stop", 1))
        if number % 500 == 0:
            ring.endings.due(idle=False)
    ring.endings.due(idle=False)
    looked = 0

    class Counted(dict):  # type: ignore[type-arg]
        def items(self):  # type: ignore[no-untyped-def]
            nonlocal looked
            for item in super().items():
                looked += 1
                yield item

    ring.endings._fronts = Counted(ring.endings._fronts)
    assert len(ring.endings._fronts) == 20_000
    for _ in range(100):
        ring.step(*range(3))
        assert ring.endings.due(idle=False) == []
    assert looked <= 200
    front.tell(End("r2", "length", 1))
    assert ring.endings.due(idle=False) == [Ended(2, 0, "length", 1)]


def test_no_more_is_remembered_than_runs(ring: Ring, front: EndsTold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "MOST", 100)
    for number in range(300):
        ring.step(number)
    assert len(ring.endings._live) == len(ring.endings._named) == 100
