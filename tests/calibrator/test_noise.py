"""What noise earns: margins, kinds and single sites."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracereplay.calibrator.noise import Noise, NoiseKind, bound, earn
from tracereplay.comparator.numbers.tolerance import DEFAULTS
from tracereplay.verdict.measures import rounded_up

NORM = NoiseKind("RMSNorm", "operator", "bfloat16")
EDGE = NoiseKind("RMSNorm", "edge", "float32")


def run(kind: NoiseKind = NORM, **sites: float) -> Noise:
    return Noise({kind: sites}, {}, None, 0, 0, 1.0)


def test_noise_below_the_default_keeps_the_default() -> None:
    (earned,) = earn([run(a=0.1, b=0.2), run(a=0.05, b=0.0)])
    assert (earned.noise, earned.at, earned.sites, earned.runs) == (0.2, "b", 2, 2)
    assert earned.factors == DEFAULTS["bfloat16"]
    assert (earned.rule.operator, earned.rule.site, earned.rule.kind) == ("RMSNorm", "*", "operator")
    assert "noise 0.2 of the default at most, at b, 2 sites differ, 2 runs" in earned.rule.because


def test_above_the_default_both_factors_grow_alike() -> None:
    (earned,) = earn([run(EDGE, a=2.0)])
    assert earned.multiple == 4.0  # twice, as one value shows no spread
    assert earned.factors == (64.0, 1024.0)


def test_bitwise_equal_operators_get_no_tolerance() -> None:
    assert earn([run(a=0.0), run(a=0.0)]) == ()


def test_one_much_noisier_site_has_a_rule_of_its_own_before_that_of_its_kind() -> None:
    quiet = {f"quiet{i}": 0.2 + 0.01 * i for i in range(9)}
    single, others = earn([run(**quiet, loud=5.0)])
    assert (single.site, single.noise, others.site) == ("loud", 5.0, "*")
    assert others.noise == pytest.approx(0.28)
    assert others.factors == DEFAULTS["bfloat16"]
    assert single.factors[0] == 2 * 5.0 * DEFAULTS["bfloat16"][0]


@pytest.mark.parametrize("loud", [0.9, 1.5])
def test_a_site_that_is_hardly_noisier_gets_no_rule_of_its_own(loud: float) -> None:
    # below the default it needs none, and just above it is like the others
    (earned,) = earn([run(**{f"quiet{i}": 0.2 for i in range(9)}, loud=loud)])
    assert (earned.site, earned.at) == ("*", "loud")


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_the_bound_is_above_all_noise_and_grows_with_its_spread(noise: list[float]) -> None:
    assert bound(noise) >= 1.5 * max(noise)
    assert bound([*noise, 0.0]) == bound(noise)  # a site that is equal is no sample of noise


def test_fewer_than_eight_values_double_the_largest_noise() -> None:
    assert bound([1.0] * 7) == 2.0
    assert bound([1.0] * 8) == 1.5
    assert bound([]) == 0.0


def exceeded(sites: int, runs: int, scatter: float, draws: int = 4000) -> float:
    """Share of further runs with a site above the bound; noise scatters as largest values do (Gumbel)."""
    random = np.random.default_rng(sites * runs)
    seen = np.abs(0.1 + scatter * random.gumbel(size=(draws, sites * runs)))
    later = np.abs(0.1 + scatter * random.gumbel(size=(draws, sites))).max(axis=1)
    limits = np.array([bound(row.tolist()) for row in seen])
    return float((later > limits).mean())


@pytest.mark.parametrize(
    ("sites", "runs", "scatter", "stated"),
    [(1, 1, 0.01, 0.01), (4, 1, 0.01, 0.01), (5, 3, 0.01, 0.01), (11, 3, 0.01, 0.01),
     (1, 1, 0.05, 0.18), (4, 1, 0.05, 0.08), (5, 3, 0.05, 0.01), (11, 3, 0.05, 0.01)],
)  # fmt: skip
def test_a_further_run_exceeds_the_bound_as_rarely_as_stated(
    sites: int, runs: int, scatter: float, stated: float
) -> None:
    assert exceeded(sites, runs, scatter) <= stated  # TOLERANCES.md


@given(st.floats(1e-12, 1e12))
def test_rounding_up_never_rounds_down(value: float) -> None:
    up = rounded_up(value)
    assert value * (1 - 1e-9) <= up <= value * 1.011
    assert float(f"{up:.3g}") == up
    assert math.isclose(rounded_up(up), up)
