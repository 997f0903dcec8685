"""Which leans are a convention of the engines, and which stand alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from simulations import pair, rmsnorm, tally, truncated

from tracereplay.comparator.numbers.leans import Group, conventions
from tracereplay.comparator.numbers.metrics import Tally

NORM, ACT, LINEAR = (Group(name, "out", 0, "bfloat16") for name in ("RMSNorm", "SiluAndMul", "RowParallelLinear"))


def leaning(count: int = 1, sign: int = 1, rows: int = 16) -> list[Tally]:
    """Tensors that truncate on one side."""
    found = [truncated(np.random.default_rng(i), rows, 256, "normal", "bfloat16") for i in range(count)]
    return [tally((g, c, dtype) if sign < 0 else (c, g, dtype)) for g, c, dtype in found]


def honest(count: int = 1) -> list[Tally]:
    return [tally(rmsnorm(np.random.default_rng(i), 16, 256, "normal", "bfloat16")) for i in range(count)]


def identical(count: int = 1) -> list[Tally]:
    x = np.random.default_rng(0).standard_normal((16, 256))
    return [tally(pair(x, x, "bfloat16"))] * count


CASES: dict[str, tuple[dict[Group, Sequence[Tally]], set[Group]]] = {
    "an engine that truncates wherever it rounds": (
        {NORM: leaning(5), ACT: leaning(4), LINEAR: identical(9)}, {NORM, ACT},
    ),
    "each side truncates in other kernels": ({NORM: leaning(3), ACT: leaning(3, sign=-1)}, {NORM, ACT}),
    "one operator of many": ({NORM: identical(4) + leaning(1), ACT: identical(4)}, set()),
    "one operator among honest differences": ({NORM: honest(4) + leaning(1), ACT: honest(4)}, set()),
    "one operator of each of two classes": (
        {NORM: identical(4) + leaning(1), ACT: identical(3) + leaning(1)}, set(),
    ),
    "all operators of one class": ({NORM: leaning(5), ACT: identical(4)}, set()),
    "two classes of five that differ": (
        {NORM: leaning(2), ACT: leaning(2), **{Group(n, "out", 0, "bfloat16"): honest(2) for n in "abc"}}, set(),
    ),
    "one operator beside an engine that truncates": (
        {NORM: leaning(5), ACT: leaning(4), LINEAR: identical(9) + leaning(1)}, {NORM, ACT},
    ),
    "another dtype's convention": (
        {NORM: leaning(3), ACT: leaning(3), Group("LogitsProcessor", "out", 0, "float32"): leaning(1)},
        {NORM, ACT},
    ),
    "both directions in one class": ({NORM: leaning(2) + leaning(2, sign=-1), ACT: leaning(2)}, set()),
    "too few rows to tell": ({NORM: leaning(3, rows=8), ACT: leaning(3)}, set()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_convention_is_what_most_operators_show(name: str) -> None:
    kinds, expected = CASES[name]
    assert conventions(kinds) == expected


def test_an_input_joins_a_convention_and_makes_none() -> None:
    edge = Group("RMSNorm", "in", 0, "bfloat16")
    assert conventions({edge: leaning(3), NORM: leaning(3)}) == set()
    assert conventions({edge: leaning(3), NORM: leaning(3), ACT: leaning(3)}) == {edge, NORM, ACT}
