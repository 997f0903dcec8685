"""Weights that are updated under way: which rows attend to what older weights left, and what a verdict says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracereplay.comparator import compare_traces
from tracereplay.comparator.judging.staleness import Versions, read_versions
from tracereplay.comparator.numbers.tables import StepInfo
from tracereplay.comparator.tokens.generation import Generation
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw, Update
from tracereplay.event import RowKey, make_rows
from tracereplay.verdict import SettingDifference, Verdict

TOKENS = {(0, 0): tuple(range(8)), (1, 0): (*range(4), 50, 51, 52)}
GENERATION = Generation((TOKENS[0, 0][:5], TOKENS[1, 0][:6]), (True, True), TOKENS, {})


def steps(*given: tuple[int, dict[int, tuple[int, int]]]) -> list[StepInfo]:
    """Each step: how often the weights were updated before, and the positions of each request, from and to."""
    found = []
    for number, (updates, spans) in enumerate(given):
        rows = make_rows([(request, 0, p) for request, span in spans.items() for p in range(*span)])
        found.append(StepInfo(number, rows.tobytes(), updates))
    return found


def read(*given: tuple[int, dict[int, tuple[int, int]]]) -> Versions:
    return read_versions(steps(*given), GENERATION)


def test_without_an_update_nothing_is_stale() -> None:
    found = read((0, {0: (0, 5)}), (0, {0: (5, 6)}))
    assert (found.changes, found.stale, found.describe()) == ((), 0, None)


def test_rows_after_an_update_are_stale_where_the_cache_is_kept() -> None:
    found = read((0, {0: (0, 5)}), (0, {0: (5, 6)}), (1, {0: (6, 7)}), (1, {0: (7, 8)}))
    assert (found.changes, found.stale, found.first_stale) == ((2,), 2, RowKey(0, 0, 6))
    assert found.describe() == "before step 2; 2 stale rows"


def test_a_row_that_is_computed_again_counts_as_it_was_computed_last() -> None:
    found = read((0, {0: (0, 5)}), (0, {0: (5, 6)}), (1, {0: (0, 7)}), (1, {0: (7, 8)}))
    assert (found.changes, found.stale, found.first_stale) == ((2,), 0, None)


def test_a_context_that_is_computed_again_in_chunks_is_not_stale() -> None:
    found = read((0, {0: (0, 5)}), (1, {0: (0, 3)}), (1, {0: (3, 6)}), (1, {0: (6, 7)}))
    assert found.stale == 0


def test_a_cached_beginning_is_as_old_as_the_row_that_computed_it() -> None:
    """Request 1 never computes its first four tokens, which are those of request 0."""
    kept = read((0, {0: (0, 5)}), (1, {1: (4, 7)}))
    assert (kept.stale, kept.first_stale) == (3, RowKey(1, 0, 4))
    renewed = read((0, {0: (0, 5)}), (1, {0: (0, 6)}), (1, {1: (4, 7)}))
    assert renewed.stale == 0


def test_a_preempted_sequence_may_go_on_from_what_another_computed_again() -> None:
    found = read((0, {0: (0, 5), 1: (0, 6)}), (1, {0: (0, 6), 1: (4, 7)}))
    assert found.stale == 0


def test_rows_that_the_trace_lacks_are_taken_to_be_current() -> None:
    assert read((0, {0: (0, 2)}), (1, {1: (4, 7)}), (1, {0: (6, 8)})).first_stale == RowKey(0, 0, 6)
    assert read((0, {1: (5, 6)}), (1, {0: (6, 8)})).stale == 0


@pytest.mark.parametrize("other", [
    ((0, {0: (0, 3)}), (0, {0: (3, 6)}), (1, {0: (6, 8)})),
    ((0, {0: (0, 6)}), (4, {0: (6, 7)}), (4, {0: (7, 8)})),
])  # fmt: skip
def test_other_batches_and_more_calls_for_one_update_are_the_same(
    other: tuple[tuple[int, dict[int, tuple[int, int]]], ...],
) -> None:
    once = read((0, {0: (0, 5)}), (0, {0: (5, 6)}), (1, {0: (6, 7)}), (1, {0: (7, 8)}))
    assert once.same_as(read(*other))
    assert not once.same_as(read((0, {0: (0, 7)}), (1, {0: (7, 8)})))


def test_a_token_that_was_sampled_with_other_weights_is_not_the_same() -> None:
    """In the end all rows are of the new weights, but the token at position 6 was sampled with the old ones."""
    early = read((0, {0: (0, 5)}), (1, {0: (0, 6)}), (1, {0: (6, 7)}))
    late = read((0, {0: (0, 5)}), (0, {0: (5, 6)}), (1, {0: (0, 7)}))
    assert (early.stale, late.stale) == (0, 0)
    assert not early.same_as(late)


# Whole traces of the toy engine.

KEPT, CLEARED = Update(3, cleared=False), Update(3, cleared=True)


def replayed(folder: Path, golden: Update | None, candidate: Update | None, flaw: Flaw | None = None) -> Verdict:
    recorded = toy.record(toy.workload(), folder / "golden.trace", update=golden)
    return compare_traces(recorded, toy.replay(recorded, folder / "c.trace", update=candidate, flaw=flaw))


def update_of(verdict: Verdict) -> SettingDifference:
    return next(d for d in verdict.settings_diff if d.name == "weights_update")


@pytest.mark.parametrize("update", [KEPT, CLEARED])
def test_the_same_update_matches(tmp_path: Path, update: Update) -> None:
    verdict = replayed(tmp_path, update, update)
    assert (verdict.verdict, verdict.settings_diff) == ("match", ())


@pytest.mark.parametrize(("golden", "candidate", "values"), [
    (CLEARED, KEPT, ("before step 3; 0 stale rows", "before step 3; 15 stale rows")),
    (KEPT, CLEARED, ("before step 3; 15 stale rows", "before step 3; 0 stale rows")),
    (None, KEPT, (None, "before step 3; 15 stale rows")),
    (CLEARED, Update(5, cleared=True), ("before step 3; 0 stale rows", "before step 5; 0 stale rows")),
])  # fmt: skip
def test_an_update_that_differs_is_the_cause_and_no_operator_is_blamed(
    tmp_path: Path, golden: Update | None, candidate: Update | None, values: tuple[str | None, str]
) -> None:
    verdict = replayed(tmp_path, golden, candidate)
    assert (verdict.verdict, verdict.cause, verdict.first_divergence) == ("diverged", "setting", None)
    found = update_of(verdict)
    assert ((found.golden, found.candidate), found.effect) == (values, "semantic")
    assert verdict.reasons[0].startswith("Weights were updated during generation, but not alike: in golden ")


def test_the_reason_says_which_rows_attended_to_older_keys_and_values(tmp_path: Path) -> None:
    reason = replayed(tmp_path, CLEARED, KEPT).reasons[0]
    assert "in golden before step 3, and no row attended to keys and values from older weights" in reason
    assert "15 rows attended to keys and values from older weights, the first in request 0 at position 7" in reason


def test_a_fault_is_found_under_the_same_update_and_beside_another_one(tmp_path: Path) -> None:
    flaw = Flaw("model.layers.1.mlp.gate_up_proj", "scale")
    for number, candidate in enumerate((CLEARED, KEPT)):
        folder = tmp_path / str(number)
        folder.mkdir()
        verdict = replayed(folder, CLEARED, candidate, flaw)
        assert verdict.first_divergence is not None
        assert (verdict.cause, verdict.first_divergence.site) == ("operator", flaw.site)
        assert (candidate is KEPT) == any("not alike" in reason for reason in verdict.reasons)


def test_two_recordings_name_the_update_and_not_attention(tmp_path: Path) -> None:
    """Attention is the first to differ, on the same inputs; what it reads besides is the cache."""
    one, other = (
        toy.record(toy.workload(), tmp_path / f"{update.cleared}.trace", update=update)
        for update in (CLEARED, KEPT)
    )
    verdict = compare_traces(one, other)
    assert (verdict.verdict, verdict.cause, verdict.mode) == ("diverged", "setting", "compare")
