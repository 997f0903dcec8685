"""Who are siblings, and how far from them is far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tracereplay.comparator.numbers.profiles import Mean, Profile
from tracereplay.comparator.numbers.siblings import Groups, standing
from tracereplay.comparator.numbers.tables import PassIndex, TableKey
from tracereplay.comparator.numbers.tally import BIAS_ULP
from tracereplay.event import Site
from tracereplay.sitemap import Pair

Signature = tuple[str, int]
WIDE: Signature = ("bfloat16", 64)
OUT = WIDE


def index(sites: Mapping[str, tuple[Mapping[str, Any], Sequence[Signature]]]) -> PassIndex:
    """A pass of norms, each with a configuration and inputs."""
    tables = {
        TableKey(site, side, i): SimpleNamespace(signature=lambda form=form: form)
        for site, (_, inputs) in sites.items()
        for side, i, form in [*(("in", i, form) for i, form in enumerate(inputs)), ("out", 0, OUT)]
    }
    known = {site: Site(site, "RMSNorm", 1, config=config, role="norm") for site, (config, _) in sites.items()}
    return cast(PassIndex, SimpleNamespace(tables=tables, sites=known, pairs={}))


@pytest.mark.parametrize(
    ("other", "siblings"),
    [
        (({"eps": 1e-6, "prefix": "layers.1.norm"}, [WIDE, WIDE]), True),
        (({"eps": 1e-6, "prefix": "layers.1"}, [WIDE, WIDE]), True),
        (({"eps": 1e-5, "prefix": "layers.1.norm"}, [WIDE, WIDE]), False),
        (({"eps": 1e-6, "prefix": "elsewhere"}, [WIDE, WIDE]), False),
        (({"eps": 1e-6, "prefix": "layers.1.norm"}, [WIDE]), False),  # without a residual
        (({"eps": 1e-6, "prefix": "layers.1.norm"}, [WIDE, ("float32", 64)]), False),
        (({"eps": 1e-6, "prefix": "layers.1.norm"}, [WIDE, ("bfloat16", 32)]), False),
    ],
)
def test_siblings_are_built_and_called_alike(other: Any, siblings: bool) -> None:
    both = index(
        {"layers.0.norm": ({"eps": 1e-6, "prefix": "layers.0.norm"}, [WIDE, WIDE]), "layers.1.norm": other}
    )
    groups = Groups(both, both)
    first, second = (groups.group_of(TableKey(f"layers.{i}.norm", "out", 0), "bfloat16") for i in (0, 1))
    assert (first == second) == siblings


def test_a_norm_that_was_given_x_and_residual_on_one_side_only_is_no_sibling_of_others() -> None:
    """Both tables have their sum then, and two kernels computed it: V0's GLM against transformers'."""
    both = index({f"layers.{i}.norm": ({}, [WIDE]) for i in (0, 1)})
    both.pairs["layers.1.norm"] = Pair("layers.1.norm", ("layers.1.norm",), "sum", "name")  # type: ignore[index]
    groups = Groups(both, both)
    first, second = (groups.group_of(TableKey(f"layers.{i}.norm", "out", 0), "bfloat16") for i in (0, 1))
    assert first != second


def test_outputs_of_one_operator_are_no_siblings() -> None:
    one = index({"layers.0.norm": ({}, [WIDE, WIDE])})
    groups = Groups(one, one)
    keys = [TableKey("layers.0.norm", "in", 0), TableKey("layers.0.norm", "in", 1)]
    assert len({groups.group_of(key, "bfloat16") for key in keys}) == 2


def profile(bias: float = 0.8, differing: float = 0.7, l2: float = 0.75, error: float = 0.0) -> Profile:
    return Profile(Mean(bias, error), Mean(differing, 0.0), Mean(l2, 0.0), Mean(0.0, 0.0))


OTHERS = [profile(0.8 + lean) for lean in np.linspace(-0.05, 0.05, 9)]


@pytest.mark.parametrize(
    ("own", "measure", "apart"),
    [
        (profile(0.24), "bias_ulp", True),
        (profile(1.2), "bias_ulp", True),
        (profile(0.55), "bias_ulp", False),  # a quarter of an ulp
        (profile(differing=0.2), "bias_ulp", False),  # nearer to golden
        (profile(l2=0.0), "bias_ulp", False),
        (profile(differing=0.95), "differing", False),
        (profile(l2=7.0), "relative_l2", True),
        (profile(0.24, error=0.2), "bias_ulp", False),  # few rows tell little
    ],
)
def test_what_is_far_from_its_siblings_stands_apart(own: Profile, measure: str, apart: bool) -> None:
    stands, found = standing(own, OTHERS, BIAS_ULP)
    assert (stands.measure, found) == (measure, apart)
    assert stands.median == pytest.approx({"bias_ulp": 0.8, "differing": 0.7, "relative_l2": 0.75}[measure])


def test_a_larger_limit_of_the_policy_lets_it_pass() -> None:
    assert standing(profile(0.24), OTHERS, 0.55)[1]
    assert not standing(profile(0.24), OTHERS, 0.57)[1]
