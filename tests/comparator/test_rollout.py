"""The rollout numbers against formulas written out by hand, and which quantity a sampler reports."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tracereplay.comparator import compare_traces
from tracereplay.comparator.tokens.generation import Generation, Sampling
from tracereplay.comparator.tokens.quantity import quantities
from tracereplay.comparator.tokens.rollout import compare_rollouts, effective_share, rollout_numbers
from tracereplay.engines import toy
from tracereplay.errors import UsageError
from tracereplay.event import RowKey, Sampled
from tracereplay.trace import open_trace
from tracereplay.verdict import Verdict
from tracereplay.verdict.rollout import Rollout


def sampling(*sequences: list[float | None], prompt: int = 2) -> Sampling:
    """Sequences of one prompt of two tokens; every token is 7."""
    return {
        (key := RowKey(0, sequence, prompt + place)): Sampled(key, 7, 7, logprob)
        for sequence, values in enumerate(sequences)
        for place, logprob in enumerate(values)
    }


def generation(greedy: bool = False) -> Generation:
    return Generation(((1, 2),), (greedy,), {}, {})


@pytest.fixture
def numbers(golden: Path) -> Callable[[Sampling, Sampling], Rollout]:
    """The numbers of what was sampled, with a greedy trace at hand that cannot tell quantities apart."""
    trace = open_trace(golden)

    def found(mine: Sampling, theirs: Sampling) -> Rollout:
        sides = (trace, "record"), (trace, "record")
        result = rollout_numbers(mine, theirs, generation(), generation(), forced=True, sides=sides)
        assert result is not None
        return result

    return found


def test_the_numbers_are_those_of_the_formulas(numbers: Callable[..., Rollout]) -> None:
    mine, theirs = [[-1.0, -2.0, -0.5], [-3.0, -1.0]], [[-1.3, -1.9, -0.5], [-2.7, -1.05]]
    found = numbers(sampling(*mine), sampling(*theirs))
    ratios = [c - g for a, b in zip(mine, theirs, strict=True) for g, c in zip(a, b, strict=True)]
    r = [math.exp(x) for x in ratios]
    assert (found.tokens, found.sequences, found.drawn) == (5, 2, 5)
    assert found.k1 == pytest.approx(-sum(ratios) / 5)
    assert found.k3 == pytest.approx(sum(w - 1 - x for w, x in zip(r, ratios, strict=True)) / 5)
    assert found.clipped == pytest.approx(2 / 5)  # exp(-0.3) and exp(0.3)
    assert (found.ratio_min, found.ratio_max) == pytest.approx((min(r), max(r)))
    assert found.effective_tokens == pytest.approx(sum(r) ** 2 / sum(w * w for w in r) / 5)
    sums = [-0.2, 0.25]
    weights = [math.exp(x) for x in sums]
    assert found.effective_sequences == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights) / 2)
    assert found.abs_diff.mean == pytest.approx((0.3 + 0.1 + 0 + 0.3 + 0.05) / 5)
    assert [row.length for row in found.by_length] == [1, 2, 3]
    assert [row.sequences for row in found.by_length] == [2, 2, 1]
    assert found.by_length[0].log_ratio_rms == pytest.approx(0.3)
    assert [(b.first, b.last, b.tokens) for b in found.by_position] == [(0, 0, 2), (1, 1, 2), (2, 2, 1)]


def test_equal_logprobs_are_on_policy(numbers: Callable[..., Rollout]) -> None:
    same = sampling([-1.0, -math.inf], [-3.0])
    found = numbers(same, same)
    assert (found.k1, found.k3, found.clipped, found.abs_diff.max) == (0, 0, 0, 0)
    assert (found.effective_tokens, found.effective_sequences) == (1, 1)


def test_k3_is_unbiased_for_tokens_that_were_drawn(numbers: Callable[..., Rollout]) -> None:
    random = np.random.default_rng(0)
    p, q = (np.exp(x) / np.exp(x).sum() for x in random.standard_normal((2, 6)) * 0.3)
    tokens = random.choice(6, 20000, p=p)
    found = numbers(sampling(list(np.log(p[tokens]))), sampling(list(np.log(q[tokens]))))
    divergence = float((p * np.log(p / q)).sum())
    assert found.k3 == pytest.approx(divergence, rel=0.05)
    assert found.k1 == pytest.approx(divergence, abs=0.02)


def test_a_token_that_the_candidate_filters_out_is_infinitely_far(numbers: Callable[..., Rollout]) -> None:
    found = numbers(sampling([-1.0, -1.0]), sampling([-1.0, -math.inf]))
    assert (found.k3, found.ratio_min, found.effective_tokens) == (math.inf, 0, 0.5)
    again = Rollout.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False)))
    assert again.as_dict() == found.as_dict()


def test_an_effective_sample_size_survives_large_exponents() -> None:
    assert effective_share(np.array([5000.0, 5000.0, -5000.0])) == pytest.approx(2 / 3)
    assert effective_share(np.array([-900.0, -900.0])) == 1


def test_a_replay_and_its_verdict_have_the_same_numbers(golden: Path, tmp_path: Path) -> None:
    candidate = toy.replay(golden, tmp_path / "c.trace", rounding="twice")
    found = compare_rollouts(open_trace(golden), open_trace(candidate))
    verdict = compare_traces(golden, candidate)
    assert verdict.rollout == found
    assert found.abs_diff.max == verdict.tokens.logprob_max
    assert Verdict.from_dict(json.loads(json.dumps(verdict.as_dict()))).rollout == found


def test_traces_without_logprobs_are_refused_in_a_sentence(tmp_path: Path) -> None:
    work = toy.workload(max_tokens=2)
    golden = toy.record(work, tmp_path / "g.trace")
    injected = toy.replay(golden, tmp_path / "i.trace", passes=("injected",))
    with pytest.raises(UsageError, match="no pass in which it generated freely"):
        compare_rollouts(open_trace(golden), open_trace(injected))
    with pytest.raises(UsageError, match="not a recording"):
        compare_rollouts(open_trace(injected), open_trace(golden))


# -- which quantity --------------------------------------------------------------------------------------------


def test_raw_scaled_and_filtered_are_what_their_names_say() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1]))
    sampled = {"temperature": 0.5, "top_p": 0.9}
    squared = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    raw, scaled, filtered, logit = quantities(logits, 1, sampled)
    assert raw == pytest.approx(math.log(0.25))
    assert scaled == pytest.approx(math.log(squared[1] / squared.sum()))
    assert filtered == pytest.approx(math.log(squared[1] / squared[:2].sum()))  # two reach 0.9
    assert logit == logits[1]
    assert quantities(logits, 3, {"top_k": 2})[2] == -math.inf
    assert quantities(logits, 2, {"min_p": 0.3})[2] == pytest.approx(math.log(0.15 / 0.9))
    assert quantities(logits, 3, {"min_p": 0.3})[2] == -math.inf


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Tokens drawn at temperature 0.7, of which raw logprobs are reported."""
    return toy.record(toy.workload(sampling={"temperature": 0.7, "seed": 1}), tmp_path / "drawn.trace")


@pytest.mark.parametrize("rounding", ["once", "twice"])
def test_logprobs_that_mean_something_else_are_named_as_such(drawn: Path, tmp_path: Path, rounding: str) -> None:
    settings = {"logprobs_mode": "processed_logprobs"}
    candidate = toy.replay(drawn, tmp_path / "c.trace", settings=settings, rounding=rounding)
    verdict = compare_traces(drawn, candidate)
    assert verdict.rollout is not None
    reported = verdict.rollout.reported
    assert reported is not None
    assert (reported.golden, reported.candidate) == ("raw", "scaled")
    assert (verdict.verdict, verdict.cause) == ("diverged", "setting")
    assert (
        "golden reports raw logprobs (log-softmax of the logits), the candidate temperature-scaled"
        in verdict.reasons[0]
    )
    assert (reported.raw_max_diff == pytest.approx(0, abs=1e-6)) == (rounding == "once")


def test_the_same_quantity_on_both_sides_is_no_setting(drawn: Path, tmp_path: Path) -> None:
    candidate = toy.replay(drawn, tmp_path / "c.trace", rounding="twice")
    verdict = compare_traces(drawn, candidate)
    assert verdict.rollout is not None
    assert verdict.rollout.reported is not None
    assert not verdict.rollout.reported.differ
    assert verdict.cause != "setting"


def test_a_wrong_logprob_is_no_known_quantity(drawn: Path, tmp_path: Path) -> None:
    candidate = toy.replay(drawn, tmp_path / "c.trace", flaw=toy.Flaw("sampler", "scale"))
    verdict = compare_traces(drawn, candidate)
    assert verdict.rollout is not None
    assert verdict.rollout.reported is not None
    assert verdict.rollout.reported.candidate == "other"
