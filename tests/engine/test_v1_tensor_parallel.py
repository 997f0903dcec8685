"""Real vLLM V1 on two ranks: one segment a rank, joined for comparing, cut for feeding."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from engine_support import Engines, Running, prompts_of

from tracereplay.calibrator.noise import earn, measure_noise
from tracereplay.comparator import Policy, compare_traces
from tracereplay.comparator.numbers.tolerance import DEFAULTS
from tracereplay.trace import Trace

pytestmark = pytest.mark.engine

BIND = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


@pytest.fixture
def two(engines: Engines) -> Running:
    return engines.start("v1", env=BIND, tensor_parallel_size=2)


def by_class(verdict: Mapping[str, object]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for operator in verdict["operators"]:  # type: ignore[attr-defined]
        found.setdefault(operator["operator"], set()).add(operator["class"])
    return found


def test_one_rank_to_two_blames_only_what_is_summed_over_ranks(golden_v1: Trace, two: Running) -> None:
    candidate = two.replay(golden_v1)
    verdict = compare_traces(golden_v1, candidate).as_dict()
    found = by_class(verdict)
    assert verdict["first_divergence"] is None
    for exact in ("QKVParallelLinear", "MergedColumnParallelLinear", "Attention", "RMSNorm", "SiluAndMul"):
        assert found[exact] == {"identical"}
    assert found["RowParallelLinear"] == {"rounding"}
    assert {e["class"] for e in verdict["edges"]} == {"identical"}
    # as noise, which a calibration would measure, it is below the default
    earned = earn([measure_noise(golden_v1, candidate)])
    assert [(e.kind.operator, e.factors) for e in earned] == [("RowParallelLinear", DEFAULTS["bfloat16"])]
    assert 0.1 < earned[0].noise < 1


def test_what_is_summed_over_ranks_explains_all_of_it(golden_v1: Trace, two: Running) -> None:
    """Closure needs each rank to be given its part of golden, and holds whatever batches the passes make."""
    verdict = two.bisect_operators(golden_v1, policy=Policy(logprob_max_abs=1e-3), max_passes=3)
    assert verdict.closure is not None
    assert (verdict.closure.held, verdict.closure.rows) == (True, 64), verdict.closure
    by_role = {part.role: part for part in verdict.attribution or ()}
    assert by_role["class"].operators == ("RowParallelLinear",)
    assert (by_role["class"].explains, by_role["class"].logprob_max) == (1.0, 0.0)


def test_two_ranks_recorded_give_two_segments_and_match_themselves(committed: Trace, two: Running) -> None:
    golden = two.record(*prompts_of(committed))
    assert golden.ranks("record") == (0, 1)
    qkv = "model.layers.0.self_attn.qkv_proj"
    assert golden.sites("record", 1)[qkv].layouts["out0"].parts == (2, 1, 1)
    verdict = two.verdict(golden).as_dict()
    assert verdict["verdict"] == "match"
    assert {o["class"] for o in verdict["operators"]} == {"identical"}
