"""Weights that are updated in the middle of a generation, the cache kept or cleared: the tool is not told which.

The test plugin loads other weights into the running engine after its fourth decode step, through the model's own
``load_weights``, and clears the cache as ``pause_generation(clear_cache=True)`` does, or keeps it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_support import Running, greedy

from tracereplay.comparator import Policy, compare_traces
from tracereplay.trace import Trace
from tracereplay.verdict import SettingDifference, Verdict

pytestmark = pytest.mark.engine

STRICT = Policy(logprob_max_abs=0.0)
CLEARED, KEPT = "update_cleared", "update_kept"

Plant = Callable[[str], None]


@pytest.fixture
def goldens(v1: Running, recordings: dict[str, Trace], plant: Plant) -> dict[str, Trace]:
    for update in (CLEARED, KEPT):
        if update not in recordings:
            plant(update)
            recordings[update] = v1.record(*greedy(20, 35, max_tokens=12))
    plant("none")
    return recordings


def update_of(verdict: Verdict) -> SettingDifference:
    return next(d for d in verdict.settings_diff if d.name == "weights_update")


@pytest.mark.parametrize("update", [CLEARED, KEPT])
def test_the_same_update_gives_the_same_bits(
    v1: Running, goldens: dict[str, Trace], plant: Plant, update: str
) -> None:
    """Also where requests are preempted and computed again: rows are matched by their last computation."""
    plant(update)
    verdict = compare_traces(goldens[update], v1.replay(goldens[update]), STRICT)
    assert (verdict.verdict, verdict.tokens.logprob_max) == ("match", 0)
    assert {o.error_class for o in verdict.operators} == {"identical"}
    assert "weights_update" not in {d.name for d in verdict.settings_diff}


@pytest.mark.parametrize(
    ("golden", "candidate"),
    [(CLEARED, KEPT), pytest.param(KEPT, CLEARED, marks=pytest.mark.long), (CLEARED, "none")],
)
def test_another_update_under_way_is_the_cause(
    v1: Running, goldens: dict[str, Trace], plant: Plant, golden: str, candidate: str
) -> None:
    """Two requests, five steps with the old weights: the rows of the seven steps after are stale if kept."""
    values = {
        CLEARED: "before step 5; 0 stale rows", KEPT: "before step 5; 14 stale rows", "none": None,
    }  # fmt: skip
    plant(candidate)
    verdict = compare_traces(goldens[golden], v1.replay(goldens[golden]), STRICT)
    found = update_of(verdict)
    assert (verdict.verdict, verdict.cause, verdict.first_divergence) == ("diverged", "setting", None)
    assert (found.golden, found.candidate) == (values[golden], values[candidate])
    assert {o.error_class for o in verdict.operators if o.rows} <= {"identical"}  # no row is alike without update
    if candidate == KEPT:
        assert "14 rows attended to keys and values from older weights" in verdict.reasons[0]
        assert "the first in request 0 at position 24" in verdict.reasons[0]


def test_two_recordings_say_it_too(goldens: dict[str, Trace]) -> None:
    verdict = compare_traces(goldens[CLEARED], goldens[KEPT], STRICT)
    assert (verdict.verdict, verdict.cause, verdict.mode) == ("diverged", "setting", "compare")
    assert update_of(verdict).candidate == "before step 5; 14 stale rows"
