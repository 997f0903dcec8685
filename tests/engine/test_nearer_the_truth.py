"""Which of two real engines is nearer the truth, checked here with formulas and a reading of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_support import TINY, Running, greedy
from safetensors.numpy import load_file

import tracereplay
from tracereplay.comparator import compare_traces
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict
from tracereplay.verdict.oracle import OracleFinding

pytestmark = pytest.mark.engine

NORM = "model.layers.2.post_attention_layernorm"


def findings(verdict: Verdict, operator: str) -> list[OracleFinding]:
    assert verdict.oracle is not None
    return [f for f in verdict.oracle.findings if f.operator == operator]


@pytest.fixture(scope="module")
def candidates() -> dict[str, Trace]:
    return {}


@pytest.fixture
def replayed(v1: Running, committed: Trace, candidates: dict[str, Trace]) -> Trace:
    """vLLM 0.32.0 on the committed golden trace of 0.8.5 V0."""
    if "v1" not in candidates:
        candidates["v1"] = v1.replay(committed)
    return candidates["v1"]


def test_v1_is_nearer_where_v0_truncates_and_equal_where_both_round(committed: Trace, replayed: Trace) -> None:
    verdict = compare_traces(committed, replayed, oracle=True, model=TINY)
    norms, rotaries = findings(verdict, "RMSNorm"), findings(verdict, "RotaryEmbedding")
    assert {f.nearer for f in norms} == {"candidate nearer"}
    assert all(f.golden.lean_ulp < -0.2 for f in (*norms, *rotaries))
    assert all(abs(f.candidate.lean_ulp) < 0.1 for f in norms)
    # vLLM's rotary kernel truncates in V1 too where the processor has no AVX-512.
    rounds = abs(rotaries[0].candidate.lean_ulp) < 0.1
    assert {f.nearer for f in rotaries} == {"candidate nearer" if rounds else "equal"}
    assert {abs(f.candidate.lean_ulp) < 0.1 for f in rotaries} == {rounds}
    assert {f.nearer for f in findings(verdict, "VocabParallelEmbedding")} == {"equal"}
    assert {f.nearer for f in findings(verdict, "RowParallelLinear")} == {"equal"}


def test_the_norms_errors_are_those_of_numpy(committed: Trace, replayed: Trace) -> None:
    """Steps, rows and errors by another way: the public reader, the checkpoint's file, plain numpy."""
    bits = load_file(TINY / "model.safetensors")[f"{NORM}.weight"]
    weight = bits.astype(np.float64)
    errors: dict[str, dict[tuple[int, ...], float]] = {}
    inputs: dict[tuple[int, ...], np.ndarray] = {}
    for trace, name in ((tracereplay.open_trace(committed.path), "record"), (replayed, "injected")):
        for step in trace.steps(name):
            for call in step.calls:
                if call.site != NORM:
                    continue
                x, residual = (value.numpy().astype(np.float64) for value in call.inputs)
                given = call.outputs[0].numpy().astype(np.float64)
                for i, key in enumerate(map(tuple, call.rows_out.tolist())):
                    total = inputs.setdefault(key, x[i] + residual[i])  # golden's: those that both were fed
                    exact = total * (np.mean(total * total) + 1e-5) ** -0.5 * weight
                    errors.setdefault(name, {})[key] = float(np.sum((given[i] - exact) ** 2) / np.sum(exact**2))
    verdict = compare_traces(committed, replayed, oracle=True, model=TINY)
    found = next(f for f in findings(verdict, "RMSNorm") if f.site == NORM and f.output == 0)
    shared = sorted(set(errors["record"]) & set(errors["injected"]))
    assert found.rows == len(shared) > 100
    for side, name in ((found.golden, "record"), (found.candidate, "injected")):
        mean = np.mean([errors[name][key] for key in shared])
        assert side.relative_l2 == pytest.approx(np.sqrt(mean), rel=1e-9)
    assert found.golden.relative_l2 > 1.5 * found.candidate.relative_l2
    assert found.nearer == "candidate nearer"


def test_attention_is_held_against_its_recorded_keys_and_values(v1: Running, tmp_path: Path) -> None:
    golden = v1.record(*greedy(24, 7, max_tokens=4))
    verdict = compare_traces(golden, v1.replay(golden), oracle=True, model=TINY)
    found = findings(verdict, "Attention")
    assert len(found) == 5
    assert {f.nearer for f in found} == {"equal"}
    assert {f.rows for f in found} == {24 + 3 + 7 + 3}
    assert all(1e-3 < f.golden.relative_l2 < 4e-3 for f in found)  # one rounding to bfloat16, and some on the way
    assert verdict.oracle is not None
    assert verdict.oracle.not_covered == ()
