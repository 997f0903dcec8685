"""A fault in a kernel: what is left still names it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tracereplay.comparator import compare_traces
from tracereplay.event import Kernel, Step, Value
from tracereplay.reduction import reduce
from tracereplay.trace import SegmentWriter, TraceDirectory, open_trace, segment_path
from tracereplay.trace.cut_steps import Cut, Rules, StepCutter
from tracereplay.trace.kernels import Kernels

GOLDEN = Path(__file__).parents[2] / "fixtures" / "tiny-llama-v0-kernels.trace"
SITE = "model.layers.1.mlp.down_proj"


def replayed(path: Path, *passes: str) -> Path:
    """A replay of golden in which a matrix product of the second step is 3 % too large."""
    with open_trace(GOLDEN) as golden:
        directory = TraceDirectory(path, {**golden.raw_run, "kind": "replay", "golden": golden.digest()})
        for name in passes:
            sites = golden.sites("record")
            writer = SegmentWriter(segment_path(path, name, 0), {"pass": name, "rank": 0, "world": 1})
            writer.sites(sites.values())
            rules = Rules(Cut((0, 1)), [len(prompt.token_ids or ()) for prompt in golden.run.prompts])
            cutter = StepCutter(rules, {s.name: s.slot for s in sites.values()}, frozenset(), writer)
            for step in golden.steps("record"):
                cutter.keep_constants(step)
                cutter.add(with_fault(step) if step.number == 1 else step)
            writer.close({})
            directory.add_pass(name, golden.results["record"])
        directory.complete()
    return path


def with_fault(step: Step) -> Step:
    known: dict[int, Value] = {}

    def wrong(value: Any) -> Any:
        """The value, 3 % too large; each once, since the operator gives what its kernel gave."""
        if isinstance(value, Value) and id(value) not in known:
            data = (value.numpy().astype("float32") * 1.03).astype(value.numpy().dtype).tobytes()
            known[id(value)] = replace(value, load=lambda: data)
        return known.get(id(value), value)

    def kernels() -> Iterator[Kernel]:
        for kernel in step.kernels:
            faulty = kernel.site == SITE and kernel.name == "aten.mm.default"
            yield replace(kernel, outputs=tuple(map(wrong, kernel.outputs))) if faulty else kernel

    calls = tuple(
        replace(call, outputs=tuple(map(wrong, call.outputs))) if call.site == SITE else call
        for call in step.calls
    )
    return replace(step, calls=calls, kernels=tuple(kernels()))


@pytest.mark.parametrize("passes", [("rerun", "injected"), ("isolated",)])
def test_the_kernel_is_named_and_only_those_of_its_operator_are_left(
    tmp_path: Path, passes: tuple[str, ...]
) -> None:
    candidate = replayed(tmp_path / "whole.trace", *passes)
    whole = compare_traces(GOLDEN, candidate).first_divergence
    found = reduce(GOLDEN, candidate, tmp_path / "small")
    first = found.verdict.first_divergence
    assert whole is not None
    assert first is not None
    assert (whole.site, whole.kernel) == (SITE, "aten.mm.default")
    assert (first.site, first.kernel, first.error_class, found.same) == (SITE, "aten.mm.default", "exceeds", True)
    with open_trace(GOLDEN) as before, open_trace(found.golden) as after:
        assert after.size < before.size / 4
        # Both requests are in that step, of which a kernel's tensors do not tell which row is whose.
        assert [len(step.rows) for step in after.steps("record")] == [22, 2]
        kernels = [kernel for step in after.steps("record") for kernel in step.kernels]
        assert {kernel.site for kernel in kernels} == {SITE}
        told = after.steps("record")[0].kernels
        assert isinstance(told, Kernels)
        assert not any("unfed" in sentence for sentence in found.what)
        assert f"{SITE}.weight" in {constant.name for constant in told.constants}


def test_without_kernels_to_name_one_request_is_enough(tmp_path: Path) -> None:
    candidate = replayed(tmp_path / "whole.trace", "rerun", "injected")
    with open_trace(candidate) as trace:
        directory = TraceDirectory(tmp_path / "operators.trace", {**trace.raw_run, "level": "operator"})
        for name in trace.passes:
            shutil.copy(candidate / f"{name}-rank0.seg", directory.path)
            directory.add_pass(name, trace.results[name])
        directory.complete()
    found = reduce(GOLDEN, tmp_path / "operators.trace", tmp_path / "small")
    assert found.same, found.what
    assert found.verdict.first_divergence is not None
    assert found.verdict.first_divergence.kernel is None
    with open_trace(found.golden) as after:
        assert (len(after.run.prompts), [len(step.kernels) for step in after.steps("record")]) == (1, [0, 0])
