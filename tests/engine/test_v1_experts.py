"""Mixtures of experts on real vLLM V1, eager: the router's logits are seen, and rows that go elsewhere are named.

V0 0.8.5 cannot run them on a CPU: its experts need intel_extension_for_pytorch, which its builds do not carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_support import Engines, greedy

from tracereplay.comparator import Policy, compare_traces

pytestmark = pytest.mark.engine

EXPERTS = [f"model.layers.{layer}.block_sparse_moe.experts" for layer in (0, 1)]
PROMPTS = greedy(40, 25, max_tokens=8)
ROWS = 40 + 25 + 2 * 7


def test_experts_are_fed_and_flips_are_counted_over_versions(
    engines: Engines, single_process: Mapping[str, str], mixtral: Path
) -> None:
    """From 0.32 on the experts' layer is another class; the site and its inputs are the same."""
    golden = engines.start("v1-0.18", mixtral, single_process).record(*PROMPTS)
    operators = {site.operator for site in golden.sites("record").values() if site.name in EXPERTS}
    assert operators == {"FusedMoE"}
    newer = engines.start("v1", mixtral, single_process)
    candidate = newer.replay(golden)
    assert {candidate.sites("rerun")[name].operator for name in EXPERTS} == {"MoERunner"}
    verdict = compare_traces(golden, candidate, Policy(logprob_max_abs=1e-3))
    assert [(router.site, router.rows) for router in verdict.routing] == [(name, ROWS) for name in EXPERTS]
    assert all(router.near_ties is not None for router in verdict.routing)
    experts = [o for o in verdict.operators if o.site in EXPERTS]
    assert len(experts) == len(EXPERTS)
    # Without AVX-512 one of the two versions truncates the experts' sum: a lean, and within what rounding allows.
    assert {o.error_class for o in experts} <= {"identical", "rounding", "biased"}
    assert all(o.metrics.allowance_ratio < 1 for o in experts)


@pytest.mark.long
def test_rounding_turns_rows_to_other_experts_and_cancelling_it_turns_them_back(
    engines: Engines, single_process: Mapping[str, str], mixtral: Path
) -> None:
    """The compiler rounds norms otherwise; on golden inputs the routers are exact, in the rerun some rows flip."""
    golden = engines.start("v1", mixtral, single_process).record(*greedy(200, 150, 120, 80))
    compiled = engines.start("v1", mixtral, single_process, enforce_eager=False)
    verdict = compiled.bisect_operators(golden, policy=Policy(logprob_max_abs=1e-3), max_passes=1)
    assert sum(router.flips for router in verdict.routing) > 0
    assert any(reason.startswith("Routing flips: ") for reason in verdict.reasons)
    assert {o.error_class for o in verdict.operators if o.operator == "GateLinear"} == {"identical"}
    assert verdict.closure is not None
    assert (verdict.closure.held, verdict.closure.rows) == (True, 32), verdict.closure
