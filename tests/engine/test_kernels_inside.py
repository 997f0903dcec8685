"""From the operator to the kernel, on real engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_support import ROOT, Running, greedy

from tracereplay.comparator import Policy, Rule, compare_traces
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict import Verdict
from tracereplay.verdict.inside import Inside

pytestmark = pytest.mark.engine

KERNELS = ROOT / "fixtures" / "tiny-llama-v0-kernels.trace"
# V0 reports other logprobs than V1, which is a setting and not what is looked for here.
NO_SAMPLER = Policy(rules=(Rule(operator="Sampler", ignore=True),))
Plant = Callable[[str], None]


def inside(verdict: Verdict) -> Inside:
    assert verdict.kernels is not None
    assert verdict.kernels.not_compared is None
    return verdict.kernels


def test_v0s_fused_norm_beside_v1s_eleven_calls(v1_kernel_faults: Running) -> None:
    golden = open_trace(KERNELS)
    found = inside(compare_traces(golden, v1_kernel_faults.replay(golden), NO_SAMPLER))
    assert (found.operator, found.why, found.alike) == ("RMSNorm", "largest error", False)
    ours = [row.golden for row in found.rows if row.golden]
    theirs = [row.candidate for row in found.rows if row.candidate]
    assert ours == ["_C.fused_add_rms_norm.default"]
    assert len(theirs) == 11
    assert theirs.count("aten.rsqrt.default") == 1
    shared = {
        value.result.split(" ")[0]: (theirs[value.candidate - 1], value.error_class) for value in found.shared
    }
    assert shared == {
        "input": ("aten.mul.Tensor", "rounding"),  # the normed rows
        "residual": ("aten._to_copy.default", "rounding"),
    }


def test_a_planted_fault_in_a_kernel_is_named(v1_kernel_faults: Running, plant: Plant) -> None:
    golden = v1_kernel_faults.record(*greedy(9, 5, max_tokens=3), options=Options(level="kernel"))
    assert compare_traces(golden, v1_kernel_faults.replay(golden)).kernels is None  # nothing differs at all
    plant("wrong_silu")
    verdict = compare_traces(golden, v1_kernel_faults.replay(golden))
    first = verdict.first_divergence
    assert first is not None
    assert (first.operator, first.kernel) == ("SiluAndMul", "aten.silu.default")
    assert first.site == "model.layers.0.mlp.act_fn"
    found = inside(verdict)
    assert found.alike
    assert found.first is not None
    assert [row.inputs for row in found.rows[: found.first + 1]] == ["identical"] * (found.first + 1)
    later = found.rows[found.first + 1 :]
    assert {(row.golden, row.inputs != "identical") for row in later if row.error_class} == {
        ("aten.mul.Tensor", True)
    }


def test_operator_level_says_nothing_of_kernels(committed: Trace) -> None:
    assert compare_traces(committed, committed).kernels is None
