"""A trace anew with a part of what it has: chosen requests, tokens, sites and positions (`Cut`).

    trace ──Cutter.cut──▶ segments (`cut_steps`), and a manifest that says of the rest what is left

What is made is a trace of its own, with another digest; it says which one it was made of. Whoever asked (the files
beside the segments), and a checkpoint's tensors, are not taken along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.errors import DamagedTrace, UsageError
from tracereplay.trace.cut_steps import Cut, Rules, StepCutter, turned_tensors
from tracereplay.trace.directory import TraceDirectory, segment_path
from tracereplay.trace.joined import JoinedSegments, lacking_in
from tracereplay.trace.open import Trace
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.writer import SegmentWriter

__all__ = ["Cut", "Cutter"]

KEPT_OF_END = ("ended", "dropped", "weights", "interrupted", "paused")  # what the end of a segment still says


class Cutter:
    """Makes traces of a part of another; as many as one likes.

    Args:
        trace: complete or interrupted.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._turned: dict[tuple[str, int], frozenset[tuple[str, str, int]]] = {}

    def cut(self, out: Path, cut: Cut, *, golden: str | None = None, notes: Sequence[str] = ()) -> None:
        """Writes what is kept as a new trace.

        Args:
            out: directory to create.
            cut: what is kept.
            golden: of a replay, the digest of the trace that it is a replay of from now on.
            notes: sentences for its readers, after those that it has.

        Raises:
            UsageError: ``out`` exists, or cannot be written.
            TraceError: the trace cannot be read.
        """
        try:
            self._cut(out, cut, golden, notes)
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror}.") from error

    def _cut(self, out: Path, cut: Cut, golden: str | None, notes: Sequence[str]) -> None:
        trace = self.trace
        rules = Rules(cut, [len(prompt.token_ids or ()) for prompt in trace.run.prompts])
        recipients = trace.manifest.get("recipients", ())
        said = _run(trace, cut, golden, notes)
        directory = TraceDirectory(out, said, recipients)
        for name in trace.passes:
            for rank in trace.ranks(name):
                self._segment(name, rank, segment_path(out, name, rank), rules, recipients)
        for name, result in trace.results.items():
            if name in trace.passes:
                directory.add_pass(name, _results(result, rules, f"{trace.path}: its results of {name}"))
        if not trace.said_complete:
            directory.let_go()
            return
        directory.complete()
        if "ended" in said:
            directory.update_run(ended=said["ended"])  # of the generation, not of this

    def _segment(self, name: str, rank: int, out: Path, rules: Rules, recipients: Sequence[str]) -> None:
        segment = self.trace.segment(name, rank)
        sites = segment.sites
        meta = {**segment.meta, "engines": 1} if "engines" in segment.meta else segment.meta
        if (name, rank) not in self._turned:
            self._turned[name, rank] = turned_tensors(segment)
        writer = SegmentWriter(out, {k: v for k, v in meta.items() if k != "trigger"}, recipients=recipients)
        writer.sites(sites.values())
        slots = {site: known.slot for site, known in sites.items()}
        cutter = StepCutter(rules, slots, self._turned[name, rank], writer)
        if self.trace.run.level == "kernel" and len(segment):
            cutter.keep_constants(segment.step(0))
        try:
            for place, record in enumerate(segment.records()):
                if cutter.wants(record):
                    cutter.add(segment.step(place))
        except BaseException:
            writer.abandon()
            raise
        if segment.summary is None:
            writer.abandon()
        else:
            writer.close(_end(segment, rules))


def _end(segment: SegmentReader | JoinedSegments, rules: Rules) -> dict[str, Any]:
    summary = segment.summary or {}
    kept = {key: summary[key] for key in KEPT_OF_END if key in summary}
    lacking = [number for n in lacking_in(summary) if (number := rules.number(n)) >= 0]
    return {**kept, "lacking": lacking, "lacking_count": len(lacking)} if lacking else kept


def _run(trace: Trace, cut: Cut, golden: str | None, notes: Sequence[str]) -> dict[str, Any]:
    """What the manifest says of the run."""
    said = {k: v for k, v in trace.raw_run.items() if k not in ("base", "requests", "engines")}
    said["notes"] = [*said.get("notes", ()), *notes]
    said["reduced"] = {"digest": trace.digest(), "requests": list(cut.requests)}
    if golden is not None:
        said["golden"] = golden
    if "workload" in said:
        prompts = said["workload"]["prompts"]
        kept = [_prompt(prompts[n], cut.tokens.get(n)) for n in cut.requests]
        said["workload"] = {**said["workload"], "prompts": kept}
    if isinstance(said.get("trigger"), Mapping):  # which names a request by its number
        said["trigger"] = {k: v for k, v in said["trigger"].items() if k in ("kind", "detail", "time")}
    if cut.sites is not None:
        sides = (said.get("recorded") or {}).get("sides", ["in", "out"])
        said["recorded"] = {"sites": [_glob(site) for site in sorted(cut.sites)], "sides": sides}
    return said


def _glob(site: str) -> str:
    """A glob that fits this site only."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in site)


def _prompt(said: Mapping[str, Any], tokens: int | None) -> dict[str, Any]:
    """A request that asks for no more tokens than are kept; for one at least, since engines refuse none."""
    sampling = dict(said.get("sampling") or {})
    asked = sampling.get("max_tokens")
    if tokens is not None and not (type(asked) is int and asked <= max(tokens, 1)):
        sampling["max_tokens"] = max(tokens, 1)
        if type(least := sampling.get("min_tokens")) is int:
            sampling["min_tokens"] = min(least, max(tokens, 1))
    return {**said, "sampling": sampling}


def _results(result: Mapping[str, Any], rules: Rules, what: str) -> dict[str, Any]:
    """What the engine returned for a pass, as far as it is kept."""
    if "requests" not in result:
        return dict(result)
    try:
        found = [
            _result(one, number, rules.cut.tokens.get(one["request"]))
            for one in result["requests"]
            if (number := rules.number(one["request"])) >= 0
        ]
    except (KeyError, TypeError) as error:
        raise DamagedTrace(f"{what} cannot be read: {error!r}.") from error
    return {**result, "requests": found}


def _result(one: Mapping[str, Any], number: int, tokens: int | None) -> dict[str, Any]:
    found = {**one, "request": number}
    if tokens is None or len(one["token_ids"]) <= max(tokens, 1):
        return found
    for name in ("token_ids", "logprobs"):
        if isinstance(one.get(name), list):
            found[name] = one[name][: max(tokens, 1)]
    return {**found, "finish_reason": "length"}
