"""What a lean means: a rounding convention that siblings share, or a fault that stands apart from them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulations import pair, rmsnorm, scaled, tally, truncated, truncating

from tracereplay.comparator.numbers.leans import judge_leans
from tracereplay.comparator.numbers.tally import SIGN_ULP, Tally

Tallies = list[Tally]


def leaning(count: int = 1, sign: int = 1, rows: int = 16) -> Tallies:
    """Tensors that one side truncates."""
    found = [truncated(np.random.default_rng(i), rows, 256, "normal", "bfloat16") for i in range(count)]
    return [tally((g, c, dtype) if sign < 0 else (c, g, dtype)) for g, c, dtype in found]


def off_by(factor: float, count: int = 1) -> Tallies:
    """Tensors that are wrong by a factor before they are rounded."""
    return [tally(scaled(np.random.default_rng(i), 64, 256, factor, "bfloat16")) for i in range(count)]


def norms(count: int = 1) -> Tallies:
    """Fused norms that truncate three times against those that round three times."""
    return [tally(truncating(np.random.default_rng(i), 64, 256, "normal", "bfloat16")) for i in range(count)]


def pulled_back(factor: float = 0.9969) -> Tally:
    """Such a norm whose fault takes most of the lean away: too small by a factor against one that truncates."""
    golden, candidate, dtype = truncating(np.random.default_rng(9), 64, 256, "normal", "bfloat16")
    return tally(pair(golden, candidate.astype(np.float64) * factor, dtype))


def honest(count: int = 1) -> Tallies:
    return [tally(rmsnorm(np.random.default_rng(i), 16, 256, "normal", "bfloat16")) for i in range(count)]


def identical(count: int = 1) -> Tallies:
    x = np.random.default_rng(0).standard_normal((16, 256))
    return [tally(pair(x, x, "bfloat16")) for _ in range(count)]


def faults(siblings: Sequence[Tally]) -> list[int]:
    """Which of them are biased, judged among each other."""
    judge_leans(siblings, "bfloat16", SIGN_ULP)
    assert all(one.ratio <= 1 for one in siblings)
    return [i for i, one in enumerate(siblings) if one.error_class == "biased"]


CASES: dict[str, tuple[Callable[[], Tallies], list[int]]] = {
    "all of a class truncate": (lambda: leaning(5), []),
    "one of a kind truncates": (lambda: leaning(1), []),
    "two that truncate, as a model of two layers has": (lambda: leaning(2), []),
    "either side may truncate": (lambda: leaning(3, sign=-1), []),
    "fused norms that truncate": (lambda: norms(6), []),
    "one fused norm that truncates": (lambda: norms(1), []),
    "honest differences": (lambda: honest(6), []),
    "one of many truncates, the others are identical": (lambda: [*identical(5), *leaning(1)], [5]),
    "one of many truncates, the others differ honestly": (lambda: [*honest(5), *leaning(1)], [5]),
    "two of nine truncate": (lambda: [*identical(7), *leaning(2)], [7, 8]),
    "one of two truncates, the other is identical": (lambda: [*identical(1), *leaning(1)], [1]),
    "one of three truncates, the others differ honestly": (lambda: [*honest(2), *leaning(1)], [2]),
    "a fault that takes a lean away": (lambda: [*norms(9), pulled_back()], [9]),
    "two such faults": (lambda: [*norms(9), pulled_back(), pulled_back()], [9, 10]),
    "a factor of 1 + 2^-10 in one of many": (lambda: [*identical(5), *off_by(1 + 2**-10)], [5]),
    "a factor of 1 + 2^-10 in one of a kind": (lambda: off_by(1 + 2**-10), [0]),
    "a factor of 1 + 2^-10 in all of many": (lambda: off_by(1 + 2**-10, 5), [0, 1, 2, 3, 4]),
    "a factor of 1.002 in all of two": (lambda: off_by(1.002, 2), [0, 1]),
    "too few rows to tell": (lambda: leaning(3, rows=8), []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_siblings_tell_a_way_of_rounding_from_a_fault(name: str) -> None:
    make, expected = CASES[name]
    assert faults(make()) == expected


@pytest.fixture(scope="module")
def simulated() -> Any:
    """The simulation of the benchmarks, whose tables TOLERANCES.md has."""
    benchmarks = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, benchmarks)
    try:
        return importlib.import_module("siblings")
    finally:
        sys.path.remove(benchmarks)


@pytest.mark.parametrize("siblings", ["normal", "uniform", "two kinds", "a trend with depth"])
@pytest.mark.parametrize(("layers", "verdicts"), [(4, 100), (24, 12)])
def test_no_honest_verdict_has_an_operator_apart_from_its_siblings(
    simulated: Any, siblings: str, layers: int, verdicts: int
) -> None:
    assert simulated.false_alarms(verdicts, layers, simulated.DISTRIBUTIONS[siblings], seed=1) == 0


def test_hundreds_of_truncating_casts_and_norms_are_not_taken_for_factors(simulated: Any) -> None:
    random = np.random.default_rng(5)
    for make in (simulated.norms, lambda r: simulated.casts(r, simulated.towards_zero)):
        alone = [[make(random)] for _ in range(200)]
        assert all(faults(one) == [] for one in alone)


@pytest.mark.parametrize("layers", [4, 12])
def test_a_fault_that_takes_a_lean_away_is_found_by_the_number_of_layers_that_are_stated(
    simulated: Any, layers: int
) -> None:
    assert simulated.power("norm: +0.8 ulp pulled back to +0.24", layers, 20) == (1.0, 0.0)
