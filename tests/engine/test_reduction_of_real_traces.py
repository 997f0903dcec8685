"""Reduction of what real engines recorded: a tenth at most, and a replay of that shows the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from engine_support import FAULTS, TINY, Engines, Running, find_engine, greedy

from tracereplay.comparator import compare_traces
from tracereplay.launch import Configured
from tracereplay.recorder.options import Options
from tracereplay.reduction import reduce
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict import Verdict

pytestmark = pytest.mark.engine

MB = 1_000_000
FAULTS_PLANTED = {
    "scale": ("operator", "model.layers.1.input_layernorm"),
    "soft_attention": ("operator", "model.layers.3.self_attn.attn"),
    "scaled_residual": ("edge", "model.layers.2.post_attention_layernorm"),
}


@pytest.fixture(scope="module")
def large_v0(engines: Engines) -> Trace:
    """More than 10 MB under vLLM 0.8.5."""
    return engines.start("v0").record(*greedy(160, 150, 140, 130, 120, 110, max_tokens=24))


@pytest.fixture(scope="module")
def large_v1(engines: Engines, fault_file: Path, single_process: Mapping[str, str]) -> Trace:
    """More than 10 MB under vLLM 0.32.0."""
    env = {**single_process, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}
    return engines.start("v1", env=env).record(*greedy(160, 150, 140, 130, 120, 110, max_tokens=24))


def place(verdict: Verdict) -> tuple[object, ...]:
    first = verdict.first_divergence
    at = (None, None, None) if first is None else (first.kind, first.site, first.error_class)
    return verdict.verdict, verdict.cause, *at


def test_v0_to_v1_is_reduced_to_a_token(v1: Running, large_v0: Trace, tmp_path: Path) -> None:
    candidate = v1.replay(large_v0)
    whole = compare_traces(large_v0, candidate)
    found = reduce(large_v0, candidate, tmp_path / "small")
    assert (found.same, place(found.verdict)) == (True, place(whole)), found.what
    with open_trace(found.golden) as golden:
        assert large_v0.size > 10 * MB
        assert golden.size < large_v0.size / 10
        again = v1.verdict(golden)
    assert place(again) == place(whole)
    assert again.tokens.first_divergence == found.verdict.tokens.first_divergence


@pytest.mark.parametrize("fault", FAULTS_PLANTED)
def test_a_planted_fault_is_named_in_a_replay_of_what_is_left(
    v1: Running, large_v1: Trace, plant: Callable[[str], None], fault: str, tmp_path: Path
) -> None:
    plant(fault)
    candidate = v1.replay(large_v1)
    whole = compare_traces(large_v1, candidate)
    found = reduce(large_v1, candidate, tmp_path / "small")
    assert place(whole)[2:4] == FAULTS_PLANTED[fault]
    assert (found.same, place(found.verdict)) == (True, place(whole)), found.what
    with open_trace(found.golden) as golden:
        assert large_v1.size > 10 * MB
        assert golden.size < large_v1.size / 10
        assert place(v1.verdict(golden)) == place(whole)


@pytest.mark.long
def test_an_engine_leaves_the_faulty_operator_alone(
    engines: Engines, v1: Running, large_v1: Trace, plant: Callable[[str], None], fault_file: Path,
    single_process: Mapping[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    plant("scale")
    candidate = v1.replay(large_v1)
    engines.stop()
    env = {**single_process, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}
    found_engine = find_engine("v1")
    engine = Configured("v1", found_engine.python, {**found_engine.env, **env}, found_engine.settings)
    lines: list[str] = []
    found = reduce(large_v1, candidate, tmp_path / "small", engine=engine, model=TINY, progress=lines.append)
    assert found.same, found.what
    assert sum(line.startswith("Starting the engine") for line in lines) == 1
    with open_trace(found.golden) as golden:
        sites = {call.site for step in golden.steps("record") for call in step.calls}
    assert sites == {FAULTS_PLANTED["scale"][1]}


@pytest.mark.long
def test_a_kernel_is_named_in_a_replay_of_what_is_left(
    v1_kernel_faults: Running, plant: Callable[[str], None], tmp_path: Path
) -> None:
    running = v1_kernel_faults
    golden = running.record(*greedy(60, 40, 20, max_tokens=6), options=Options(level="kernel"))
    plant("wrong_silu")
    candidate = running.replay(golden)
    found = reduce(golden, candidate, tmp_path / "small")
    assert found.same, found.what
    with open_trace(found.golden) as small:
        assert small.size < golden.size / 10
        first = running.verdict(small).first_divergence
    assert first is not None
    assert (first.site, first.kernel) == ("model.layers.0.mlp.act_fn", "aten.silu.default")


@pytest.mark.long
def test_two_ranks_are_replayed_from_what_is_left(
    engines: Engines, plant: Callable[[str], None], fault_file: Path, tmp_path: Path
) -> None:
    env = {
        "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file),
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    }  # fmt: skip
    running = engines.start("v1", env=env, tensor_parallel_size=2)
    golden = running.record(*greedy(60, 40, 20, max_tokens=6), settings=running.settings)
    plant("scale")
    candidate = running.replay(golden)
    whole = compare_traces(golden, candidate)
    found = reduce(golden, candidate, tmp_path / "small")
    assert (found.same, place(found.verdict)) == (True, place(whole)), found.what
    with open_trace(found.golden) as small:
        assert small.ranks("record") == (0, 1)
        assert small.size < golden.size / 10
        assert place(running.verdict(small)) == place(whole)
