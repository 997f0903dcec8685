"""Noise between real engines that ought to agree: threads and batches in float32, versions in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from engine_support import EAGER, TINY, Engines, find_engine, greedy, random_model

from tracereplay.calibrator import Calibration, Variation, calibrate, named_variation
from tracereplay.comparator import Policy, compare_traces, load_policy
from tracereplay.comparator.numbers.tolerance import DEFAULTS
from tracereplay.launch import Configured
from tracereplay.trace import Trace, open_trace

pytestmark = pytest.mark.engine

WIDE = ("--layers", "2", "--hidden", "512", "--heads", "8", "--head-dim", "64", "--intermediate", "2048")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A Llama with random float32 weights, wide enough that a batch of one sums its products in another order."""
    out = tmp_path / "wide"
    return random_model(out, "llama", *WIDE, "--dtype", "float32")


@pytest.fixture
def v1_alone(engines: Engines, single_process: Mapping[str, str]) -> Configured:
    """vLLM 0.32.0 to be started by the calibration."""
    engine = find_engine("v1")
    return Configured("v1", engine.python, {**engine.env, **single_process}, engine.settings)


def noisy(found: Calibration, run: int) -> set[str]:
    """Operator classes that show noise in a run."""
    kinds = found.runs[run].noise.sites.items()
    return {kind.operator for kind, sites in kinds if kind.kind == "operator" and any(sites.values())}


def check_earned(found: Calibration, tmp_path: Path) -> Policy:
    """No tolerance is below its default or below what was measured; the file holds the policy."""
    assert not found.unfit
    for earned in found.earned:
        assert earned.factors >= DEFAULTS[earned.kind.dtype]
        assert earned.factors[0] >= earned.noise * DEFAULTS[earned.kind.dtype][0]
    (tmp_path / "policy.toml").write_text(found.text)
    assert load_policy(tmp_path / "policy.toml") == found.policy
    return found.policy


@pytest.mark.long
def test_threads_and_batches_in_float32(
    engines: Engines, wide: Path, v1_alone: Configured, single_process: Mapping[str, str], tmp_path: Path
) -> None:
    settings = {**EAGER, "dtype": "float32"}
    golden = engines.start("v1", wide, single_process, dtype="float32").record(
        *greedy(28, 14, 73, 40, max_tokens=8), settings=settings
    )
    engines.stop()
    variations = [named_variation(name, golden.run) for name in ("threads", "batch")]
    found = calibrate(v1_alone, golden.path, variations, keep=tmp_path)
    assert not found.skipped
    assert noisy(found, 0) == {"Attention"}
    batch = noisy(found, 1)  # whether a batch of one sums in another order depends on the processor
    assert batch <= {"RowParallelLinear", "QKVParallelLinear", "MergedColumnParallelLinear"}
    assert {(e.kind.dtype, e.site) for e in found.earned} == {("float32", "*")}
    assert all(0 < earned.noise < 1 for earned in found.earned)
    policy = check_earned(found, tmp_path)
    assert policy.logprob_max_abs == Policy().logprob_max_abs
    for name, noise in (("1-threads.trace", {"Attention"}), ("2-batch.trace", batch)):
        run = open_trace(tmp_path / name)
        assert compare_traces(golden, run, Policy().made_strict()).verdict == ("diverged" if noise else "match")
        assert compare_traces(golden, run, policy).verdict == "match"


@pytest.mark.long
def test_batches_and_another_version_in_bfloat16(
    engines: Engines, golden_v1: Trace, v1_alone: Configured, tmp_path: Path
) -> None:
    engines.stop()
    v0 = find_engine("v0")
    version = Variation("version", engine=Configured("v0", v0.python, v0.env, v0.settings))
    batch = named_variation("batch", golden_v1.run)
    found = calibrate(v1_alone, golden_v1.path, [batch, version], model=TINY, keep=tmp_path)
    assert not found.skipped
    alone, other = (run.noise for run in found.runs)
    assert (noisy(found, 0), alone.logprob_max, alone.tokens_differ) == (set(), 0.0, 0)
    assert {"RMSNorm", "SiluAndMul", "Attention"} <= noisy(found, 1)
    policy = check_earned(found, tmp_path)
    norm = next(e for e in found.earned if e.kind.operator == "RMSNorm" and e.kind.kind == "operator")
    assert 0.4 < norm.noise < 0.7

    # The noise passes the policy that it earned, but for tokens, which are for a person to weigh.
    golden, run = open_trace(golden_v1.path), open_trace(tmp_path / "2-version.trace")
    assert compare_traces(golden, run).verdict == "diverged"
    assert other.logprob_max is not None
    assert other.logprob_max < policy.logprob_max_abs
    assert compare_traces(golden, run, replace(policy, differing_tokens=other.tokens_differ)).verdict == "match"
    first = compare_traces(golden, run, replace(policy, bias_sign_max_ulp=0.1)).first_divergence
    assert first is not None
    assert first.error_class == "biased"  # what lets V0's truncation pass is that siblings share it
