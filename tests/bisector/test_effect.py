"""What is left, what it explains, and when parity is restored."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tracereplay.bisector.effect import Criterion, Effect, effect_of, explains
from tracereplay.comparator import Policy
from tracereplay.comparator.tokens.generation import Generation
from tracereplay.event import RowKey, Sampled


def effect(*differences: float, wrong: int = 0) -> Effect:
    return Effect(differences, wrong)


def test_all_of_it_none_of_it_and_worse() -> None:
    before = effect(*([0.1, -0.2] * 32))
    assert explains(before, effect(*([0.0] * 64))) == (1.0, (1.0, 1.0))
    assert explains(before, before) == (0.0, (0.0, 0.0))
    assert explains(before, effect(*([0.2, -0.4] * 32)))[0] == pytest.approx(-3)


def test_without_a_difference_nothing_is_explained() -> None:
    share, interval = explains(effect(0.0, 0.0), effect(0.0, 0.1))
    assert math.isnan(share)
    assert all(map(math.isnan, interval))


def test_the_interval_covers_the_true_share_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        own, rest = random.standard_normal((2, 64))
        low, high = explains(Effect(tuple(own + rest), 0), Effect(tuple(rest), 0))[1]
        covered += low <= 0.5 <= high
    assert covered >= 85


def test_positions_without_a_logprob_are_left_out_on_both_sides() -> None:
    before, after = effect(math.nan, 0.2, 0.4), effect(0.1, math.nan, 0.2)
    assert explains(before, after)[0] == pytest.approx(0.75)


def test_an_infinite_difference_does_not_spoil_the_sentence() -> None:
    assert explains(effect(0.1, math.inf), effect(0.1, 0.1))[1] == (-math.inf, 1.0)


def test_a_visible_difference_is_judged_by_the_policy() -> None:
    criterion = Criterion(Policy(), effect(0.01, 0.02, wrong=1))
    assert criterion.visible
    assert criterion.restores(effect(0.05, -0.05))
    assert not criterion.restores(effect(0.051))
    assert not criterion.restores(effect(0.0, wrong=1))
    assert "no greedy tokens differ and no logprob by more than 0.05" in criterion.words


def test_a_fault_that_no_token_shows_must_be_explained_itself() -> None:
    criterion = Criterion(Policy(), effect(0.01, 0.02))
    assert not criterion.visible
    assert not criterion.restores(effect(0.01, 0.02))
    assert criterion.restores(effect(0.001, 0.002))


def test_a_logprob_that_is_no_number_is_infinitely_far_and_not_left_out() -> None:
    generation, key = Generation(((1,),), (True,), {}, {}), RowKey(0, 0, 1)
    golden, broken = {key: Sampled(key, 7, 7, -1.0)}, {key: Sampled(key, 7, 7, math.nan)}
    assert effect_of(golden, broken, generation).largest == math.inf
    assert effect_of(broken, broken, generation).largest == 0
    assert not Criterion(Policy(), effect(0.2)).restores(effect_of(golden, broken, generation))


def test_what_the_sampler_itself_did_is_taken_away_and_exactly_so_where_it_repeats_itself() -> None:
    generation = Generation(((1,),), (True,), {}, {})
    keys = [RowKey(0, 0, 1), RowKey(0, 0, 2)]
    golden = {key: Sampled(key, 7, 7, -1.0) for key in keys}
    run = {keys[0]: Sampled(keys[0], 7, 7, -1.3), keys[1]: Sampled(keys[1], 7, 8, -1.5)}
    own = dict.fromkeys(keys, -1.3 - -1.0)
    found = effect_of(golden, run, generation, own)
    assert found.differences == pytest.approx((0.0, -0.2))
    assert found.differences[0] == 0.0
    assert found.wrong == 1
