"""The signature of a lean: a cast's is the same at every mantissa, a factor's grows with it."""

from __future__ import annotations

import numpy as np
import pytest
from simulations import pair, scaled, tally, towards_zero, truncating

from tracereplay.comparator.numbers.metrics import row_errors
from tracereplay.comparator.numbers.profiles import Profile, pooled, profile_of, signature_of

DTYPES = ["bfloat16", "float16"]


def of_cast(dtype: str, zeros: float = 0.0, scale: float = 1.0) -> Profile:
    """Truncated against rounded to nearest, a share of the values being zero."""
    random = np.random.default_rng(0)
    exact = scale * random.standard_normal((64, 256)) * (random.random((64, 256)) >= zeros)
    return profile_of(tally(pair(exact, towards_zero(exact, dtype), dtype)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_truncating_cast_does_not_grow_with_the_mantissa(dtype: str, zeros: float, scale: float) -> None:
    found = of_cast(dtype, zeros, scale)
    assert found.bias_ulp.value == pytest.approx(-0.5 * (1 - zeros), abs=0.02)
    assert abs(found.growth.value) < 0.06
    assert signature_of(found) == "truncation"


@pytest.mark.parametrize(
    ("factor", "dtype"),
    [(1 + 2**-10, "bfloat16"), (1.002, "bfloat16"), (0.998, "bfloat16"), (1 + 2**-13, "float16")],
)
def test_a_factor_grows_by_all_of_its_lean(factor: float, dtype: str) -> None:
    found = profile_of(tally(scaled(np.random.default_rng(1), 64, 256, factor, dtype)), dtype)
    assert found.growth.value == pytest.approx(found.bias_ulp.value, rel=0.25)
    assert signature_of(found) == "factor"


def test_of_several_truncations_all_but_half_an_ulp_grows() -> None:
    golden, candidate, dtype = truncating(np.random.default_rng(2), 64, 1024, "normal", "bfloat16")
    found = profile_of(tally((golden, candidate, dtype)), dtype)
    assert found.bias_ulp.value > 0.7
    assert found.growth.value > 0.2
    assert signature_of(found) == "truncation"


def test_rows_of_one_mantissa_tell_nothing() -> None:
    golden = np.ones((2, 4), np.float32)
    errors = row_errors(golden, golden * np.float32(1.5), "float32", "float32", (16, 256))
    assert errors.growth.tolist() == [0.0, 0.0]


def test_equal_rows_have_a_profile_of_zeros() -> None:
    x = np.random.default_rng(0).standard_normal((16, 8))
    found = profile_of(tally(pair(x, x, "bfloat16")), "bfloat16")
    assert (found.bias_ulp, found.differing, found.relative_l2) == ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))


def test_pooling_averages_and_is_surer() -> None:
    one, other = of_cast("bfloat16"), of_cast("bfloat16", zeros=0.5)
    both = pooled([one, other])
    assert both.bias_ulp.value == pytest.approx((one.bias_ulp.value + other.bias_ulp.value) / 2)
    assert both.growth.error < max(one.growth.error, other.growth.error)
