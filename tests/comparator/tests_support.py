"""Traces with something missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.event import Call, Value
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes, TraceDirectory, open_trace, segment_path


def without_first_step(source: Path, path: Path) -> Path:
    """A copy of a recording that lacks its first step."""
    trace = open_trace(source)
    directory = TraceDirectory(path, dict(trace.manifest["run"]))
    writer = SegmentWriter(segment_path(path, "record", 0), {})
    sites = trace.sites("record")
    writer.sites(sites.values())
    for step in trace.steps("record")[1:]:
        calls = [_pending(call, sites[call.site].slot) for call in step.calls]
        writer.step(step.number, step.rows, calls, list(step.sampled), [])
    writer.close({})
    directory.add_pass("record", json.loads(json.dumps(trace.results["record"])))
    directory.complete()
    return path


def without_output(source: Path, path: Path, site: str, lacking: Collection[int]) -> Path:
    """A copy of a replay in whose injected pass a site lacks its last outputs."""
    shutil.copytree(source, path)
    trace = open_trace(source)
    (path / "injected-rank0.seg").unlink()
    writer = SegmentWriter(segment_path(path, "injected", 0), {})
    sites = trace.sites("injected")
    writer.sites(sites.values())
    for step in trace.steps("injected"):
        calls = [_pending(c, sites[c.site].slot, lacking if c.site == site else ()) for c in step.calls]
        writer.step(step.number, step.rows, calls, list(step.sampled), [])
    writer.close({})
    return path


def without_sites(
    source: Path, path: Path, name: str, prefix: str, built: Mapping[str, Mapping[str, Any]] | None = None
) -> Path:
    """A copy of a trace whose pass ``name`` lacks all sites that begin with ``prefix``.

    Args:
        built: what some operators say that they were built with.
    """
    shutil.copytree(source, path)
    trace = open_trace(source)
    (path / f"{name}-rank0.seg").unlink()
    writer = SegmentWriter(segment_path(path, name, 0), {})
    sites = {site.name: site for site in trace.sites(name).values() if not site.name.startswith(prefix)}
    writer.sites([replace(site, config=(built or {}).get(site.name, site.config)) for site in sites.values()])
    for step in trace.steps(name):
        calls = [_pending(call, sites[call.site].slot) for call in step.calls if call.site in sites]
        writer.step(step.number, step.rows, calls, list(step.sampled), [])
    writer.close({})
    return path


def _pending(call: Call, slot: int, lacking: Collection[int] = ()) -> PendingCall:
    inputs = {i: _tensor(v) for i, v in enumerate(call.inputs)}
    outputs = {i: _tensor(v) for i, v in enumerate(call.outputs) if i not in lacking}
    return PendingCall(slot, call.number, call.rows_in, call.rows_out, inputs, outputs)


def _tensor(value: Value) -> TensorBytes:
    return TensorBytes(value.dtype, value.shape, value.strides, value.load())
