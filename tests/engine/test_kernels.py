"""Kernel-level recordings on real engines: nothing changes, and every call is there with its operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_support import TINY

from tracereplay.event import Kernel, LeftOut, Named, Value
from tracereplay.storage.checkpoint import read_checkpoint
from tracereplay.trace import Trace
from tracereplay.trace.kernels import Kernels
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

Recorded = tuple[Trace, list[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["v1", "v0"])
def recorded(request: pytest.FixtureRequest, kernel_recordings: Callable[[str], Recorded]) -> Recorded:
    """A kernel-level trace, what was generated with it, and what without."""
    return kernel_recordings(str(request.param))


def kernels_of(trace: Trace, step: int, site: str) -> list[Kernel]:
    return [k for k in trace.segment("record", 0).step(step).kernels if k.site == site]


def test_tokens_and_logprobs_are_those_of_a_run_without(recorded: Any) -> None:
    _, plain, result = recorded
    keep = ("token_ids", "logprobs")
    assert [{k: r[k] for k in keep} for r in result] == [{k: r[k] for k in keep} for r in plain]
    assert all(len(r["token_ids"]) == 5 for r in result)


def test_every_operator_has_its_kernels(recorded: Any) -> None:
    trace = recorded[0]
    step = trace.segment("record", 0).step(1)
    ran = {k.site for k in step.kernels}
    assert ran == {call.site for call in step.calls}
    assert all(k.failed == "" and k.undeclared == () for k in step.kernels)
    assert [report.state for report in verify(trace)] == ["complete"]


def test_a_norm_is_one_kernel_in_v0_and_eleven_in_v1(recorded: Any) -> None:
    trace = recorded[0]
    names = [k.name for k in kernels_of(trace, 1, "model.layers.1.input_layernorm")]
    computing = [name for name in names if name != "aten.detach.default"]
    if trace.run.engine["name"] == "v0" or "_C.fused_add_rms_norm.default" in names:
        assert computing == ["_C.fused_add_rms_norm.default"]
    else:
        assert len(computing) == 11
        assert computing.count("aten.rsqrt.default") == 1


def test_outputs_of_the_last_kernels_are_the_operators(recorded: Any) -> None:
    """What a norm's kernels leave is what the operator's tap saw, byte for byte."""
    trace = recorded[0]
    site = "model.layers.1.input_layernorm"
    step = trace.segment("record", 0).step(1)
    call = next(c for c in step.calls if c.site == site)
    left = [v for k in kernels_of(trace, 1, site) for v in (*k.outputs, *k.written.values())]
    known = {v.load() for v in left if isinstance(v, Value)}
    assert all(value.load() in known for value in call.outputs)


def test_weights_are_names_and_buffers_are_there_once(recorded: Any) -> None:
    trace = recorded[0]
    steps = list(trace.segment("record", 0).steps())
    first = steps[0].kernels
    assert isinstance(first, Kernels)
    constants = {c.name: c for c in first.constants}
    assert constants["model.norm.weight"].value is None
    assert constants["model.norm.weight"].digest == trace_digest(trace, "model.norm.weight")
    table = "model.layers.0.self_attn.rotary_emb.cos_sin_cache"
    assert {name for name, c in constants.items() if c.value is not None and "cos_sin" in name} == {table}
    rotary = [k for k in steps[2].kernels if k.name.startswith("_C.rotary_embedding")]
    assert {a.name for k in rotary for a in k.arguments if isinstance(a, Named)} == {table}
    assert all(not k.constants for s in steps[1:] if isinstance(k := s.kernels, Kernels))


def trace_digest(trace: Trace, name: str) -> str:
    """Of the checkpoint's tensor."""
    return str(read_checkpoint(TINY).tensors[name][-1])


def test_the_cache_is_left_out_and_says_so(recorded: Any) -> None:
    trace = recorded[0]
    attention = kernels_of(trace, 1, "model.layers.0.self_attn.attn")
    left = [a.reason for k in attention for a in k.arguments if isinstance(a, LeftOut)]
    assert "the engine's key/value cache" in left
    nested = [k.name for k in attention if k.parent >= 0]
    assert any(name.startswith(("_C.paged_attention", "_C.cpu_attention_with_kv_cache")) for name in nested)
