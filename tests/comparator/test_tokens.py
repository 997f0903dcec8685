"""Tokens and logprobs, forced and free."""

from __future__ import annotations

import math

from tracereplay.comparator.tokens.generation import Generation, compare_tokens, first_differences
from tracereplay.event import RowKey, Sampled


def sampled(*tokens: tuple[int, int, float | None], request: int = 0, start: int = 2) -> dict[RowKey, Sampled]:
    """(token, choice, logprob) at each position."""
    keys = [RowKey(request, 0, start + i) for i in range(len(tokens))]
    return {key: Sampled(key, *values) for key, values in zip(keys, tokens, strict=True)}


def generation(*ids: int, greedy: bool = True, prompt: tuple[float | None, ...] = ()) -> Generation:
    return Generation(((1, 2),), (greedy,), {(0, 0): (1, 2, *ids)}, {(0, 0): prompt} if prompt else {})


def test_each_forced_position_stands_for_itself() -> None:
    golden = sampled((5, 5, -1.0), (6, 6, -2.0), (7, 7, -3.0))
    candidate = sampled((5, 5, -1.5), (6, 9, -2.0), (7, 7, -3.0))
    found = compare_tokens(golden, candidate, generation(5, 6, 7), generation(5, 6, 7), forced=True)
    assert (found.compared, found.differing, found.logprobs) == (3, 1, 3)
    assert found.first_divergence is not None
    assert (found.first_divergence.position, found.first_divergence.candidate) == (3, 9)
    assert (found.logprob_max, found.logprob_mean) == (0.5, 0.5 / 3)


def test_a_free_sequence_is_compared_up_to_its_first_differing_token() -> None:
    golden = sampled((5, 5, -1.0), (6, 6, -2.0), (7, 7, -3.0))
    candidate = sampled((5, 5, -1.0), (9, 9, -9.0), (1, 1, -9.0))
    found = compare_tokens(golden, candidate, generation(5, 6, 7), generation(5, 9, 1), forced=False)
    assert (found.compared, found.differing) == (2, 1)
    assert (found.logprobs, found.logprob_max) == (1, 0.0)


def test_drawn_tokens_are_not_compared_and_their_logprobs_are() -> None:
    golden, candidate = sampled((5, 5, -1.0)), sampled((5, 8, -1.25))
    found = compare_tokens(
        golden, candidate, generation(5, greedy=False), generation(5, greedy=False), forced=True
    )
    assert (found.compared, found.first_divergence, found.logprob_max) == (0, None, 0.25)


def test_a_logprob_that_is_no_number_is_infinitely_far() -> None:
    found = compare_tokens(
        sampled((5, 5, -1.0)), sampled((5, 5, math.nan)), generation(5), generation(5), forced=True
    )
    assert found.logprob_max == math.inf


def test_missing_logprobs_are_passed_over() -> None:
    found = compare_tokens(sampled((5, 5, None)), sampled((5, 5, -1.0)), generation(5), generation(5), forced=True)
    assert (found.logprobs, found.logprob_max, found.logprob_mean) == (0, None, None)


def test_prompt_logprobs_count() -> None:
    mine, theirs = generation(5, prompt=(None, -1.0)), generation(5, prompt=(None, -1.5))
    assert compare_tokens({}, {}, mine, theirs, forced=True).logprob_max == 0.5


def test_prompts_that_differ_part_at_once() -> None:
    other = Generation(((3, 2),), (True,), {(0, 0): (3, 2, 5)}, {})
    assert first_differences(generation(5), other) == {(0, 0): 0}
    assert first_differences(generation(5, 6), generation(5)) == {}
