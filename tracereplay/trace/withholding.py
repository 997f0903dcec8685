"""Withholding tokens from a trace that has them: segments and manifest anew, without what `withheld` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.event import Call, Site, Step, Value
from tracereplay.trace.dedup import TensorBytes
from tracereplay.trace.directory import WEIGHTS
from tracereplay.trace.open import Trace
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.withheld import Withheld, withheld_slots
from tracereplay.trace.writer import CallOfStep, SegmentWriter

__all__ = ["check_withholding", "manifest_without", "segment_without"]


def check_withholding(trace: Trace) -> None:
    """Raises UsageError unless tokens can be withheld from the trace."""
    if trace.run.withheld is not None:
        raise UsageError(f"Tokens were withheld from {trace.path} already; pack it as it is.")
    if any("-engine" in name for name, _ in trace.parts):
        raise UsageError(
            f"{trace.path} has several engines, whose requests are numbered apart; withhold tokens when recording."
        )
    if trace.run.level == "kernel":
        raise UsageError(
            f"{trace.path} has kernels, whose arguments say too much; withhold tokens when recording."
        )


def manifest_without(trace: Trace, manifest: Mapping[str, Any], withheld: Withheld) -> dict[str, Any]:
    """A trace's manifest without tokens."""
    run = {**_without_detail(trace.raw_run), "withheld": withheld.said()}
    lengths = [len(prompt.token_ids or ()) for prompt in trace.run.prompts]
    if "workload" in run:
        run["workload"] = withheld.workload(run["workload"])
    if "command" in run:
        run["command"] = [*run["command"][:1], "..."]
    passes = {
        name: withheld.results(result, lengths) if "requests" in result else result
        for name, result in manifest["passes"].items()
    }
    return {**manifest, "run": run, "passes": passes}


def _without_detail(said: Mapping[str, Any]) -> dict[str, Any]:
    """Without the words of a trigger, which may name a token."""
    trigger = said.get("trigger")
    return {**said, "trigger": {**trigger, "detail": ""}} if isinstance(trigger, Mapping) else dict(said)


def segment_without(
    segment: SegmentReader, pass_name: str, out: Path, withheld: Withheld, recipients: Sequence[str]
) -> None:
    """Writes a segment anew, without tokens.

    Args:
        segment: with them.
        pass_name: whose; the checkpoint's tensors stay.
        out: file to create.
        withheld: what stands for them.
        recipients: see `SegmentWriter`.
    """
    sites = segment.sites
    hidden = set() if pass_name == WEIGHTS else withheld_slots(list(sites.values()))
    writer = SegmentWriter(out, _without_detail(segment.meta), recipients=recipients, withheld=withheld)
    writer.sites(sites.values())
    for step in segment.steps():
        _copy(step, sites, hidden, writer)
    if segment.summary is None:
        writer.abandon()
    else:
        kept = ("ended", "dropped", "weights", "interrupted", "lacking", "lacking_count", "paused")
        writer.close({key: segment.summary[key] for key in kept if key in segment.summary})


def _copy(step: Step, sites: Mapping[str, Site], hidden: set[int], writer: SegmentWriter) -> None:
    known: dict[int, int] = {}  # most values are both an output and an input

    def add(value: Value) -> int:
        if id(value) not in known:
            data = value.load()
            given = TensorBytes(value.dtype, value.shape, value.strides, data, value.storage, value.start)
            known[id(value)] = writer.add(given)
        return known[id(value)]

    def copied(call: Call) -> CallOfStep:
        inputs, outputs = (dict(enumerate(map(add, side))) for side in (call.inputs, call.outputs))
        written = {index: add(value) for index, value in call.written.items()}
        slot = sites[call.site].slot
        return CallOfStep(slot, call.number, call.rows_in, call.rows_out, inputs, outputs, written, call.fed)

    calls = [copied(call) for call in step.calls if sites[call.site].slot not in hidden]
    writer.commit(
        step.number, step.rows, calls, step.sampled, step.notes, step.requests, step.weight_updates,
        padded=step.padded, company=step.company,
    )  # fmt: skip
