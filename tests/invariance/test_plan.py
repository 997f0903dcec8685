"""What is varied follows from how the engine was started, and what cannot be varied is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tracereplay.engines.request import Serving
from tracereplay.errors import UsageError
from tracereplay.invariance.plan import NAMES, TOGETHER, Plan, plan
from tracereplay.launch import Configured
from tracereplay.trace.run import RecordedPrompt, Run

ENGINE = Configured("v1", Path("python"), {}, {})
GPU = "NVIDIA H100 (CUDA 13.0)"


def planned(
    *names: str, device: str = "cpu: x86_64", lengths: tuple[int, ...] = (31, 10, 24), seed: int = 0,
    given: Mapping[str, Any] | None = None, **settings: Any,
) -> Plan:  # fmt: skip
    prompts = tuple(RecordedPrompt(tuple(range(n)), None, {}) for n in lengths)
    run = Run(engine={"settings": settings, "device": device}, prompts=prompts)
    return plan(names, ENGINE, run, given or {}, seed)


def test_what_needs_no_other_arguments_shares_one_engine_start() -> None:
    found = planned("batch", "order", "cache", enable_prefix_caching=True)
    assert not found.starts
    assert [(p.what, p.value) for p in found.passes] == [
        ("repeat", "again"), ("cache", "cold"), ("cache", "warm"), ("batch", 2), ("batch", 3),
        ("order", "reversed"), ("order", "shuffled, seed 0"),
    ]  # fmt: skip
    assert [p.serving for p in found.passes[2:5]] == [
        Serving(((0,), (1,), (2,)), "never"), Serving(((0, 1), (2,)), "group"), Serving(((0, 1, 2),), "group"),
    ]  # fmt: skip


def test_another_order_is_compared_with_all_together() -> None:
    for names in (("order",), ("batch", "order")):
        found = planned(*names)
        kept = [p.kept_as for p in found.passes if p.kept_as]
        assert kept == [TOGETHER]
        assert {p.against for p in found.passes if p.what == "order"} == {TOGETHER}


@pytest.mark.parametrize("seed", range(8))
def test_a_shuffled_order_is_neither_as_given_nor_reversed(seed: int) -> None:
    order = planned("order", seed=seed).passes[-1].serving.order()
    assert sorted(order or ()) == [0, 1, 2]
    assert order not in ((0, 1, 2), (2, 1, 0))


def test_two_requests_have_one_other_order() -> None:
    assert planned("order", lengths=(3, 5)).values["order"] == ("as given", "reversed")


def test_a_cache_that_is_off_is_switched_on_in_another_engine() -> None:
    found = planned("cache", enable_prefix_caching=False)
    assert [(s.variation.settings, [p.value for p in s.passes]) for s in found.starts] == [
        ({"enable_prefix_caching": True}, ["cold", "warm"])
    ]


def test_prompts_that_were_cut_are_left_whole() -> None:
    start = planned("chunks", max_num_batched_tokens=16, max_model_len=64).starts[0]
    assert start.variation.settings == {"enable_chunked_prefill": False, "max_num_batched_tokens": 64}
    assert planned("chunks", lengths=(1,)).idle["chunks"].startswith("The workload's longest prompt has 1 tokens")


def test_two_ranks_on_a_cpu_have_cores_of_their_own() -> None:
    assert planned("tp").starts[0].variation.env == {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    gpu = planned("tp", device=GPU)
    assert (gpu.starts[0].variation.settings, gpu.starts[0].variation.env) == ({"tensor_parallel_size": 2}, {})
    one = planned("tp", tensor_parallel_size=4).starts[0].variation
    assert (one.settings, one.env) == ({"tensor_parallel_size": 1}, {})


def test_graphs_have_other_sizes_or_a_reason() -> None:
    assert planned("graphs").idle["graphs"] == "On a CPU the engine has no CUDA graphs."
    assert "enforce_eager" in planned("graphs", device=GPU, enforce_eager=True).idle["graphs"]
    assert "cudagraph_mode NONE" in planned("graphs", device=GPU, cudagraph_mode="NONE").idle["graphs"]
    odd = planned("graphs", device=GPU, cudagraph_mode="FULL", given={"compilation_config": 3})
    assert "compilation_config is 3" in odd.idle["graphs"]
    given = {"compilation_config": {"mode": 3}}
    found = planned("graphs", device=GPU, cudagraph_mode="FULL", given=given, lengths=(5,) * 20)
    assert found.values["graphs"] == ("as given", "captured for 32 rows", "no graphs")
    assert [start.variation.settings["compilation_config"] for start in found.starts] == [
        {"mode": 3, "cudagraph_capture_sizes": [32]}, {"mode": 3, "cudagraph_mode": "NONE"},
    ]  # fmt: skip


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing named 'threads' to vary; there are batch, order"):
        planned("threads")
    assert set(planned(*NAMES).values) == {"repeat", *NAMES}
