"""Prefix caching and weights that are updated under way: what is kept in the cache, and whether the tool finds it.

Asynchronous scheduling is the other default that came with V1. vLLM's CPU platform switches it off whatever one
asks for, so that its half can only be shown on a GPU; the test that says so is the one to extend there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import FAULTS, TINY, Engines, Running, find_engine, token_ids

from tracereplay.bisector.settings import bisect_settings
from tracereplay.comparator import Policy, compare_traces
from tracereplay.launch import Configured
from tracereplay.trace import Trace
from tracereplay.workload import Prompt

pytestmark = pytest.mark.engine

SAMPLING: Mapping[str, Any] = {"max_tokens": 8, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}
# The second prompt begins as the first does; 256 tokens are two blocks of the CPU's cache.
PROMPTS = [
    Prompt(token_ids(300), None, SAMPLING),
    Prompt(token_ids(280) + token_ids(10, 5), None, {**SAMPLING, "max_tokens": 4}),
]
UNCACHED = {"enable_prefix_caching": False, "max_num_seqs": 1}
CACHED = {"enable_prefix_caching": True, "async_scheduling": True, "max_num_seqs": 1}


@pytest.fixture
def env(fault_file: Path, single_process: Mapping[str, str]) -> Mapping[str, str]:
    return {**single_process, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}


@pytest.fixture
def goldens(
    engines: Engines, env: Mapping[str, str], recordings: dict[str, Trace], plant: Callable[[str], None]
) -> dict[str, Trace]:
    """Recorded without prefix caching: with the weights as they are, and updated under way."""
    if "updated_weights" not in recordings:
        uncached: Running = engines.start("v1", env=env, **UNCACHED)
        for fault in ("steady", "updated_weights"):
            plant(fault)
            recordings[fault] = uncached.record(*PROMPTS, settings=uncached.settings)
        plant("none")
    return recordings


def test_a_cached_prefix_gives_the_same_bits_on_a_cpu(
    engines: Engines, env: Mapping[str, str], goldens: dict[str, Trace]
) -> None:
    """Where rows do not depend on their batch, a row out of the cache is the row that would have been computed.

    So prefix caching by itself shows in no logprob here, not in the last bit; that it was at work is seen.
    """
    cached = engines.start("v1", env=env, **CACHED)
    candidate = cached.replay(goldens["steady"])
    assert candidate.results["rerun"]["requests"][1]["num_cached_tokens"] >= 256
    verdict = compare_traces(goldens["steady"], candidate, Policy(logprob_max_abs=0.0))
    assert (verdict.verdict, verdict.tokens.logprob_max) == ("match", 0)
    assert "enable_prefix_caching" in {d.name for d in verdict.settings_diff}


@pytest.mark.long
def test_the_cpu_platform_switches_asynchronous_scheduling_off(engines: Engines, env: Mapping[str, str]) -> None:
    running = engines.start("v1", env=env, async_scheduling=True)
    if not running.process.info["device"].startswith("cpu"):
        pytest.fail("asynchronous scheduling can be shown on this device: bisect it here as prefix caching is")
    assert running.process.info["settings"]["async_scheduling"] is False


def test_a_prefix_that_older_weights_cached_makes_rows_stale(
    engines: Engines, env: Mapping[str, str], plant: Callable[[str], None]
) -> None:
    """The second prompt begins with 256 tokens that were cached before the update.

    Three rows of the first request and all 37 that the second computes are stale, unless the cache was cleared.
    """
    cached = engines.start("v1", env=env, **CACHED)
    traces = {}
    for update in ("update_cleared", "update_kept"):
        plant(update)
        traces[update] = cached.record(*PROMPTS, settings=cached.settings)
    plant("none")
    verdict = compare_traces(traces["update_cleared"], traces["update_kept"], Policy(logprob_max_abs=0.0))
    assert (verdict.verdict, verdict.cause) == ("diverged", "setting")
    found = next(d for d in verdict.settings_diff if d.name == "weights_update")
    assert (found.golden, found.candidate) == ("before step 5; 0 stale rows", "before step 5; 40 stale rows")


@pytest.mark.long
def test_updated_weights_with_a_cache_that_was_kept(
    engines: Engines,
    env: Mapping[str, str],
    goldens: dict[str, Trace],
    plant: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """The second prompt meets keys and values that the old weights left; without the cache it does not."""
    plant("updated_weights")
    engines.stop()
    engine = find_engine("v1")
    launch = Configured("v1", engine.python, {**engine.env, **env}, engine.settings)
    verdict = bisect_settings(
        launch, goldens["updated_weights"].path, tmp_path / "work", settings={"enable_prefix_caching": True},
        model=TINY, policy=Policy(logprob_max_abs=1e-4),
    )  # fmt: skip
    assert verdict.verdict == "diverged"
    assert verdict.bisection is not None
    assert [m.name for m in verdict.bisection.minimal or ()] == ["enable_prefix_caching"]
    assert verdict.bisection.arguments == ("--set enable_prefix_caching=false",)
