"""What is kept out of a bundle on request, beyond what never is in one (`allowed`).

    prompts   texts: of prompts, stop texts and grammars. Token ids stay, so that it can be generated again
    tokens    token ids and what says directly which they were, as `record --withhold tokens` does, too
    values    tensors' elements: statistics and the maps of errors stand for them. Texts, too

Each is a rewriting of traces that `cleaned` has written.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.storage.files import File, LocalFile
from tracereplay.trace import SegmentReader, SegmentWriter, Trace, segment_path
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.manifest import FORMAT
from tracereplay.trace.packfile import write_pack
from tracereplay.trace.withheld import Withheld
from tracereplay.trace.withholding import check_withholding
from tracereplay.verdict import Divergence, EdgeFinding, Metrics, OperatorFinding, Verdict

__all__ = ["NO_VALUES", "Redaction", "refuse_tokens", "without_elements", "write_bare", "write_withheld"]

NO_VALUES = "Tensors were left out of this trace (bundle --redact values); tokens and logprobs are here."


class Redaction(str, Enum):
    """See the module."""

    prompts = "prompts"
    tokens = "tokens"
    values = "values"


def refuse_tokens(trace: Trace) -> None:
    """Raises UsageError if a trace has tokens that cannot be left out of it."""
    if trace.run.withheld is None:
        check_withholding(trace)


def write_withheld(trace: Trace, out: Path, withheld: Withheld) -> None:
    """The trace without tokens; one from which they were withheld already stays as it is.

    Args:
        trace: with tokens.
        out: file to create.
        withheld: what stands for them. Two traces under one key can be compared with each other.

    Raises:
        UsageError: they cannot be withheld from it.
    """
    pack_trace(trace, out, withheld=None if trace.run.withheld is not None else withheld)


def write_bare(trace: Trace, out: Path, folder: Path) -> None:
    """The trace without operators: rows, tokens and logprobs, which a replay forces and compares.

    Args:
        trace: with operators.
        out: file to create.
        folder: for segments on the way.
    """
    run = {**trace.raw_run, "recorded": {"sites": [], "sides": []}, "level": "operator"}
    run["notes"] = [*run.get("notes", ()), NO_VALUES]
    state = "complete" if trace.said_complete else "incomplete"
    manifest = {"format": FORMAT, "state": state, "run": run, "passes": dict(trace.results)}
    segments: dict[str, File] = {}
    for key in trace.parts:
        path = segment_path(folder, *key)
        _bare_segment(trace.part(key), path)
        segments[path.name] = LocalFile(path)
    write_pack(out, manifest, segments)


def _bare_segment(segment: SegmentReader, out: Path) -> None:
    try:
        writer = SegmentWriter(out, segment.meta)
        writer.sites(segment.sites.values())
        for step in segment.steps():
            writer.commit(
                step.number, step.rows, [], step.sampled, step.notes, step.requests, step.weight_updates,
                padded=step.padded, company=step.company,
            )  # fmt: skip
        if segment.summary is None:
            writer.abandon()
        else:
            kept = ("ended", "dropped", "weights", "interrupted", "lacking", "lacking_count", "paused")
            writer.close({name: segment.summary[name] for name in kept if name in segment.summary})
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error


def without_elements(verdict: Verdict) -> Verdict:
    """The verdict without values of single elements; how far the worst one is off stays."""

    def divergence(found: Divergence | None) -> Divergence | None:
        return None if found is None else replace(found, metrics=_hidden(found.metrics))

    def finding(found: Any) -> Any:
        return replace(found, metrics=_hidden(found.metrics))

    operators: tuple[OperatorFinding, ...] = tuple(map(finding, verdict.operators))
    edges: tuple[EdgeFinding, ...] = tuple(map(finding, verdict.edges))
    return replace(
        verdict, operators=operators, edges=edges, kernels=None, oracle=None,
        first_divergence=divergence(verdict.first_divergence), first_visible=divergence(verdict.first_visible),
    )  # fmt: skip


def _hidden(metrics: Metrics) -> Metrics:
    return replace(metrics, worst=None)
