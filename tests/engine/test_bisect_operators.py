"""Causes proved on real engines: closure bit for bit, and planted faults in the minimal set."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from engine_support import Engines, Running

from tracereplay.trace import Trace
from tracereplay.verdict import Attribution, Verdict

pytestmark = pytest.mark.engine

TWO = {"other_activation": "model.layers.3.mlp.act_fn", "rounded_logits": "logits_processor"}


def minimal(verdict: Verdict) -> set[str]:
    assert verdict.bisection is not None
    assert verdict.bisection.minimal is not None
    return {member.name for member in verdict.bisection.minimal}


def by_role(verdict: Verdict) -> Mapping[str, Attribution]:
    return {part.role: part for part in verdict.attribution or ()}


def check_v0_to_v1(verdict: Verdict) -> None:
    """Closure holds bit for bit, and the set does what its complement does not."""
    assert verdict.closure is not None
    assert verdict.closure.held, verdict.closure
    assert verdict.closure.rows == 64
    assert by_role(verdict)["all"].explains == 1.0
    assert verdict.tokens.differing > 0
    set_, rest = by_role(verdict)["minimal"], by_role(verdict)["complement"]
    assert (set_.restores, set_.tokens_differ) == (True, 0)
    assert (rest.restores, rest.tokens_differ > 0) == (False, True)


def test_v0_to_v1_closes_bit_for_bit_and_norms_explain_most(v1: Running, golden_v0: Trace) -> None:
    verdict = v1.bisect_operators(golden_v0)
    check_v0_to_v1(verdict)
    classes = {part.operators[0]: part.explains for part in verdict.attribution or () if part.role == "class"}
    assert max(classes, key=lambda name: classes[name]) == "RMSNorm"
    assert verdict.bisection is not None
    assert {m.error_class for m in verdict.bisection.minimal or ()} == {"rounding"}
    assert verdict.bisection.class_passes <= 10


def test_two_faults_between_equal_versions_are_the_minimal_set(
    v1: Running, golden_v1: Trace, plant: Callable[[str], None]
) -> None:
    plant(" ".join(TWO))
    verdict = v1.bisect_operators(golden_v1)
    assert verdict.closure is not None
    assert verdict.closure.held
    assert minimal(verdict) == set(TWO.values())
    assert by_role(verdict)["minimal"].explains == 1.0


@pytest.mark.long
def test_the_same_two_over_v0_are_in_it_and_the_largest_of_the_rest_is_rounding(
    v1: Running, golden_v0: Trace, plant: Callable[[str], None]
) -> None:
    plant(" ".join(TWO))
    verdict = v1.bisect_operators(golden_v0)
    assert verdict.closure is not None
    assert verdict.closure.held
    assert set(TWO.values()) <= minimal(verdict)
    assert verdict.bisection is not None
    rest = [m for m in verdict.bisection.minimal or () if m.name not in TWO.values()]
    assert {m.error_class for m in rest} <= {"rounding"}
    assert verdict.bisection.largest_left is not None
    assert verdict.bisection.largest_left.error_class == "rounding"


@pytest.mark.long
def test_v0_to_0_18_closes_bit_for_bit(
    engines: Engines, golden_v0: Trace, single_process: Mapping[str, str]
) -> None:
    check_v0_to_v1(engines.start("v1-0.18", env=single_process).bisect_operators(golden_v0))
