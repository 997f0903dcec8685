"""Ranks that are told to end at moments of their own have all recorded the same steps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tracereplay.recorder import last_step
from tracereplay.recorder.last_step import LastStep
from tracereplay.trace.directory import segment_path


class Rank:
    """What a worker does: it begins and ends steps, and a thread of its own looks whether all is over."""

    def __init__(self, folder: Path, rank: int, world: int, engine: str = "record") -> None:
        self.asked = LastStep(folder, segment_path(folder, engine, rank), world)
        self.told = self.over = self.running = False
        self.begun = self.recorded = 0

    def begin(self) -> None:
        if self.told and not self.over:
            self.over = not self.asked.may_begin(self.begun)
        self.begun += 1
        self.recorded += not self.over
        self.running = True

    def end(self) -> None:
        self.running = False

    def look(self) -> None:
        self.told = True
        self.over = self.over or self.asked.is_over(self.begun, idle=not self.running)


def run(ranks: list[Rank], chance: random.Random, steps: int) -> None:
    """The engine takes so many steps and idles then; ranks that share work are at most a step apart."""
    told_at = chance.randrange(steps + 3)
    while not all(rank.over for rank in ranks):
        rank = chance.choice(ranks)
        slowest = min(one.begun for one in ranks)
        if slowest >= told_at and chance.random() < 0.3:
            rank.look()
        elif rank.running:
            rank.end()
        elif rank.begun == slowest and rank.begun < steps:
            rank.begin()
        elif slowest >= steps:
            rank.look()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_ranks_record_the_same_steps(tmp_path: Path, world: int) -> None:
    in_the_middle = 0
    for seed in range(150):
        folder = tmp_path / str(seed)
        folder.mkdir()
        ranks = [Rank(folder, number, world) for number in range(world)]
        run(ranks, random.Random(seed), 8)
        assert len({rank.recorded for rank in ranks}) == 1, seed
        in_the_middle += 0 < ranks[0].recorded < 8
    assert in_the_middle > 50


def test_engines_ask_their_own_ranks_only(tmp_path: Path) -> None:
    one, other = Rank(tmp_path, 0, 2), Rank(tmp_path, 1, 2, "record-engine1")
    for rank in (one, other):
        rank.begin()
        rank.end()
        rank.look()
    assert not one.over
    assert not other.over
    partner = Rank(tmp_path, 1, 2)
    partner.look()  # has begun none, while the first has begun one
    one.look()
    assert one.over
    assert not partner.over
    partner.begin()
    partner.look()
    assert not partner.over  # within its last step
    partner.end()
    partner.look()
    assert (partner.over, partner.recorded, one.recorded) == (True, 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".engine-0-last", ".engine-1-last"]


def test_a_rank_does_not_wait_for_ever_for_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = Rank(tmp_path, 0, 2)
    rank.begin()
    rank.look()
    rank.end()
    rank.look()
    assert not rank.over
    monkeypatch.setattr(last_step, "PATIENCE", -1.0)
    rank.running = True
    rank.look()
    assert not rank.over
    rank.running = False
    rank.look()
    assert rank.over


@pytest.mark.parametrize("there", ["{", "[1]", '{"begun": 3, "last": null}'])
def test_what_cannot_be_agreed_on_ends_at_once(tmp_path: Path, there: str) -> None:
    (tmp_path / ".engine-0-last").write_text(there)
    ranks = [Rank(tmp_path, 0, 2), Rank(tmp_path / "nowhere", 1, 2)]
    for rank in ranks:
        rank.begin()
        rank.end()
        rank.look()
    assert [rank.over for rank in ranks] == [True, True]
