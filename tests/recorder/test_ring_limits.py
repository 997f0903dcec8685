"""How much a flight recorder keeps, and what sets it off, as users say it."""

from __future__ import annotations

import numpy as np
import pytest

from tracereplay.errors import UsageError
from tracereplay.recorder import ring_limits
from tracereplay.recorder.options import Options
from tracereplay.recorder.ring import SAMPLED
from tracereplay.recorder.ring_limits import RingLimits, memory_of_machine, read_ring, read_seconds
from tracereplay.recorder.triggers import Ended, RateLimit, Triggers, check_trigger


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256MB", RingLimits(256 * 10**6)),
        ("1.5 mib", RingLimits(3 << 19)),
        ("500steps,256MB", RingLimits(256 * 10**6, 500)),
        ("60s,2MB", RingLimits(2 * 10**6, None, 60.0)),
        ("2min, 1step, 10MB", RingLimits(10**7, 1, 120.0)),
    ],
)
def test_sizes_are_read(text: str, expected: RingLimits) -> None:
    assert read_ring(text.replace(" mib", "MiB")) == expected


def test_steps_alone_are_held_in_a_bounded_memory() -> None:
    found = read_ring("500steps")
    assert found.steps == 500
    assert found.bytes <= min(1 << 30, memory_of_machine() // 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0MB", "keeps nothing"),
        ("0steps", "keeps nothing"),
        ("100B", "holds no step"),
        ("900000GB", "larger than this machine's memory"),
        ("many", "no size of a ring"),
        ("256", "no size of a ring"),
        ("1MB,2MB", "twice"),
        ("-1MB", "no size of a ring"),
    ],
)
def test_rings_that_cannot_be_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_ring(text)
    with pytest.raises(UsageError, match=words):
        Options.from_dict({"ring": text})


def test_a_container_has_less_memory_than_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    limit = ring_limits.Path(str(tmp_path)) / "memory.max"
    limit.write_text(f"{64 << 20}\n")
    monkeypatch.setattr(ring_limits, "_CGROUP", limit)
    assert memory_of_machine() == 64 << 20
    with pytest.raises(UsageError, match="larger than this machine's memory"):
        read_ring("65MiB")


def test_times_are_read() -> None:
    assert [read_seconds(text) for text in ("0s", "60s", "1.5min", "1h")] == [0, 60, 90, 3600]
    with pytest.raises(UsageError, match="no time"):
        read_seconds("60")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonfinit", "did you mean nonfinite"),
        ("logprob", "not one of"),
        ("logprob>-3", "not one of"),
        ("logprob<0", "every token"),
        ("logprob<x", "no bound"),
        ("logprob<nan", "no bound"),
        ("finish=boredom", "never fires"),
        ("tokens>many", "needs a number"),
        ("error=1", "not one of"),
        ("", "no trigger"),
    ],
)
def test_triggers_that_cannot_be_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_trigger(text)
    with pytest.raises(UsageError, match=words):
        Options.from_dict({"ring": "1MB", "triggers": [text]})


def test_a_token_below_the_bound_is_seen_and_one_without_a_logprob_is_not() -> None:
    sampled = np.zeros(3, SAMPLED)
    sampled["key"] = [(0, 0, 7), (1, 0, 8), (2, 1, 9)]
    sampled["logprob"] = [np.nan, -3, -20.5]
    found = Triggers(["logprob<-20"]).of_sampled(5, sampled)
    assert found is not None
    assert (found.kind, found.request, found.sequence, found.position, found.step) == ("logprob", 2, 1, 9, 5)
    assert Triggers(["logprob<-21"]).of_sampled(5, sampled) is None
    assert Triggers(["nonfinite"]).of_sampled(5, sampled) is None


def test_ends_are_seen() -> None:
    triggers = Triggers(["finish=length", "tokens>10"])
    assert [
        None if found is None else found.kind
        for found in map(triggers.of_end, (Ended(0, 0, "length", 3), Ended(0, 0, "", 11), Ended(0, 0, "stop", 10)))
    ] == ["finish", "tokens", None]


def test_one_kind_of_trigger_does_not_use_up_another_ones_traces() -> None:
    limit = RateLimit(every=3600, most=5)
    assert [limit.lets(kind) for kind in ("mark", "mark", "error", "mark")] == [True, False, True, False]
    assert limit.suppressed == {"mark": 2}
    limit = RateLimit(every=0, most=2)
    assert [limit.lets("mark") for _ in range(3)] == [True, True, False]
