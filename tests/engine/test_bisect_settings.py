"""Which setting made the difference, found on real engines without being told; two of the published causes.

The published migration from V0 to V1 had four causes, three of them settings or semantics. Two are here as they
are, raw against processed logprobs and the head's precision; prefix caching and updated weights are in
test_bisect_caches.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import TINY, Engines, Running, find_engine, greedy, token_ids

from tracereplay.bisector.settings import bisect_settings
from tracereplay.comparator import Policy
from tracereplay.launch import Configured
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict
from tracereplay.workload import Prompt

pytestmark = pytest.mark.engine

Bisect = Callable[..., Verdict]


@pytest.fixture
def bisect(engines: Engines, single_process: Mapping[str, str], tmp_path: Path) -> Bisect:
    """Bisects vLLM 0.32.0 by settings; the engine that other tests share is ended first."""

    def run(golden: Trace, policy: Policy, env: Mapping[str, str] = single_process, **given: Any) -> Verdict:
        engines.stop()
        engine = find_engine("v1")
        launch = Configured("v1", engine.python, {**engine.env, **env}, engine.settings)
        return bisect_settings(launch, golden.path, tmp_path / "work", settings=given, model=TINY, policy=policy)

    return run


def named(verdict: Verdict) -> list[str]:
    assert verdict.bisection is not None
    assert verdict.bisection.minimal is not None, verdict.bisection
    return [member.name for member in verdict.bisection.minimal]


def test_eager_to_compiled_names_that_setting(golden_v1: Trace, bisect: Bisect) -> None:
    verdict = bisect(golden_v1, Policy().made_strict(), enforce_eager=False)
    assert named(verdict) == ["enforce_eager"]
    assert verdict.bisection is not None
    assert verdict.bisection.arguments == ("--set enforce_eager=true",)
    assert verdict.bisection.engine_starts == 2


@pytest.mark.long
def test_one_rank_to_two_names_that_setting(golden_v1: Trace, bisect: Bisect) -> None:
    bind = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    verdict = bisect(golden_v1, Policy().made_strict(), bind, tensor_parallel_size=2)
    assert named(verdict) == ["tensor_parallel_size"]


@pytest.mark.long
def test_raw_against_processed_logprobs(engines: Engines, v1: Running, bisect: Bisect) -> None:
    drawn = {"max_tokens": 16, "temperature": 0.7, "top_p": 0.9, "seed": 1, "logprobs": 0, "ignore_eos": True}
    golden = v1.record(*(Prompt(token_ids(n, n), None, drawn) for n in (12, 20, 31, 9)))
    verdict = bisect(golden, Policy(), logprobs_mode="processed_logprobs")
    assert verdict.rollout is not None
    assert verdict.rollout.reported is not None
    assert (verdict.rollout.reported.golden, verdict.rollout.reported.candidate) == ("raw", "filtered")
    assert verdict.rollout.reported.raw_max_diff < 1e-4
    assert named(verdict) == ["logprobs_mode"]
    assert verdict.cause == "setting"
    assert "golden reports raw logprobs (log-softmax of the logits), the candidate filtered logprobs" in " ".join(
        verdict.reasons
    )


@pytest.mark.long
def test_the_precision_of_the_head(engines: Engines, single_process: Mapping[str, str], bisect: Bisect) -> None:
    """Golden's engine computes logits in float32; the candidate is told nothing and uses bfloat16."""
    head = {"hf_overrides": {"head_dtype": "float32"}}
    golden = engines.start("v1", env=single_process, **head).record(*greedy(11, 14, 25, 32, max_tokens=16))
    verdict = bisect(golden, Policy(logprob_max_abs=0.001))
    assert named(verdict) == ["head_dtype"]
    assert verdict.bisection is not None
    assert verdict.bisection.arguments == ('--set hf_overrides={"head_dtype":"float32"}',)
