"""Invariance of a real engine on a CPU: it holds, and a norm that is planted is named with its number of rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_support import EAGER, FAULTS, TINY, Engines, find_engine, greedy

from tracereplay.invariance import check_invariance
from tracereplay.launch import Configured
from tracereplay.verdict.invariance import Invariance, Varied
from tracereplay.workload import Workload

pytestmark = pytest.mark.engine

CROWD = 200  # as in the faults
NORM = "model.layers.2.post_attention_layernorm"


@pytest.fixture
def workload() -> Workload:
    """Three requests, two of them longer than a block of the prefix cache (128 tokens)."""
    return Workload(str(TINY), tuple(greedy(20, 150, 210, max_tokens=4)), EAGER)


@pytest.fixture
def v1_alone(engines: Engines, fault_file: Path, single_process: Mapping[str, str]) -> Configured:
    """vLLM 0.32.0 to be started by the check, with faults that can be planted."""
    engines.stop()
    engine = find_engine("v1")
    faults = {"PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}
    return Configured("v1", engine.python, {**engine.env, **single_process, **faults}, engine.settings)


def by_name(found: Invariance) -> dict[str, Varied]:
    return {varied.what: varied for varied in found.varied}


def test_batches_order_chunks_and_cache_hold(v1_alone: Configured, workload: Workload) -> None:
    """Two ranks, which take another minute to start, are in `benchmarks/INVARIANCE.md`."""
    found = check_invariance(v1_alone, workload, ["batch", "order", "chunks", "cache"])
    varied = by_name(found)
    assert {name: v.held for name, v in varied.items()} == dict.fromkeys(varied, True)
    assert list(varied) == ["repeat", "batch", "order", "chunks", "cache"]
    assert varied["chunks"].values[1] == 105
    # The warm pass took 256 of 389 rows from the cache, 128 of each of the two longer prompts.
    assert varied["repeat"].rows < varied["cache"].rows < 1.4 * varied["repeat"].rows
    assert (found.first, found.operators) == (None, ())
    assert (found.invariant, found.exit_code) == (True, 0)


def test_a_norm_that_rounds_otherwise_from_some_number_of_rows_on_is_named(
    v1_alone: Configured, workload: Workload, plant: object, fault_file: Path
) -> None:
    fault_file.write_text("crowded_norm")
    found = check_invariance(v1_alone, workload, ["batch", "order"])
    varied = by_name(found)
    assert (varied["repeat"].held, varied["batch"].held, varied["order"].held) == (True, False, True)
    first = found.first
    assert first is not None
    assert (first.operator, first.site, first.varied) == ("RMSNorm", NORM, "batch")
    assert first.rows.flips_at == CROWD
    assert {own.site for own in found.operators} == {NORM}
    assert Invariance.from_dict(json.loads(json.dumps(found.as_dict(), default=str))).first == first


@pytest.mark.long
def test_graphs_of_other_sizes_hold(engines: Engines, single_process: Mapping[str, str]) -> None:
    """Model Runner V2 on the stand-in for a GPU: a step of one request is padded to 16 rows, or to none."""
    engines.stop()
    engine, here = find_engine("v1"), Path(__file__).parent
    stand_in = {
        "PYTHONPATH": os.pathsep.join(map(str, (here / "stand_in", here))), "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_USE_BREAKABLE_CUDAGRAPH": "1", "STAND_IN_LATE": "5",
        "STAND_IN_GRAPHS": "FULL_AND_PIECEWISE",
    }  # fmt: skip
    launched = Configured("v1", engine.python, {**engine.env, **single_process, **stand_in}, engine.settings)
    compilation = {"mode": 0, "cudagraph_capture_sizes": [1, 2, 4, 8]}
    settings = {**EAGER, "enforce_eager": False, "compilation_config": compilation}
    found = check_invariance(
        launched, Workload(str(TINY), tuple(greedy(7, 12, max_tokens=4)), settings), ["graphs"]
    )
    varied = by_name(found)
    assert varied["graphs"].values == ("as given", "captured for 16 rows", "no graphs")
    assert varied["graphs"].reason == ""
    assert (varied["repeat"].held, varied["graphs"].held, found.exit_code) == (True, True, 0)
