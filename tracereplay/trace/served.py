"""What the segments alone say about a recorded command (a server).

Its manifest is filled while it runs and finished when it has ended; a parent that was killed did neither. What was
asked of the engines, and of which, stands in the segments too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracereplay.errors import DamagedTrace
from tracereplay.event import UNAPPLIED, Request
from tracereplay.passes import RECORD
from tracereplay.trace.joined import lacking_in
from tracereplay.workload import Prompt, Workload

if TYPE_CHECKING:
    from tracereplay.trace.open import Trace

__all__ = ["RECORD", "is_whole", "served_run", "told_by_segments"]


MAX_REQUESTS = 1 << 22  # what a stranger's number may make us allocate
# Engine arguments that every engine has and under which the same is computed again.
_SETTINGS = (
    "dtype", "quantization", "max_model_len", "max_num_seqs", "seed", "enforce_eager", "tensor_parallel_size",
)  # fmt: skip
# The same, of those that are given only where they are not what engines take by themselves.
_USUAL = {"tensor_parallel_size": 1, "kv_cache_dtype": "auto"}
_ENDED = {"max_steps": "--max-steps", "max_bytes": "--max-bytes"}


def told_by_segments(manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest is one that the segments complete: of a recording that was not finished."""
    run = manifest["run"]
    unfinished = manifest["state"] != "complete" and run.get("kind") == "recording"
    return unfinished and ("command" in run or "workload" not in run)


def served_run(trace: Trace, run: Mapping[str, Any]) -> dict[str, Any]:
    """``run`` and all that the segments add to it.

    Raises:
        DamagedTrace: a segment cannot be read.
    """
    known = run.get("workload") or {}
    if RECORD not in trace.passes:
        empty = Workload("unknown", ()).as_dict()
        return {**run, "engine": run.get("engine", {"name": "command"}), "workload": {**empty, **known}}
    metas = [trace.part((name, rank)).meta for name, rank in trace.parts_of(RECORD)]
    engine: dict[str, Any] = next((m["engine"] for m in metas if isinstance(m.get("engine"), dict)), {})
    model = next((m["model"] for m in metas if isinstance(m.get("model"), str)), known.get("model", "unknown"))
    told = engine.get("settings", {})
    settings = {k: v for k in (*_SETTINGS, *_USUAL) if (v := told.get(k)) not in (None, _USUAL.get(k))}
    if overrides := engine.get("hf_overrides"):  # which only the user may grant
        settings["hf_overrides"] = overrides
    requests = _requests(trace)
    workload = Workload(model, _prompts(requests), settings, known.get("weights")).as_dict()
    given = {k: v for k, v in known.items() if k in ("model", "settings", "weights") and v}
    notes = [str(note) for note in run.get("notes", [])]
    trigger = next((m["trigger"] for m in metas if isinstance(m.get("trigger"), dict)), None)
    return {
        **run,
        **({} if trigger is None else {"trigger": trigger}),
        "engine": {"name": "command", **engine, **run.get("engine", {})},
        "engines": _engines(trace),
        "workload": {**workload, **given},
        "notes": [*notes, *(n for n in (*_notes(trace), *_unapplied(requests)) if n not in notes)],
    }


def _requests(trace: Trace) -> list[Request | None]:
    """The requests by their numbers; None: one that no step tells of."""
    begun: dict[int, Request] = {}
    last = -1
    for rank in trace.ranks(RECORD)[:1]:
        for step in trace.records(RECORD, rank):
            last = max([last, *(s.key.request for s in step.sampled)])
            for r in step.requests:  # of several samples, each of which has a seed of its own, the first
                if r.request not in begun or r.sequence < begun[r.request].sequence:
                    begun[r.request] = r
    last = max([last, *begun])
    if last >= MAX_REQUESTS:
        raise DamagedTrace(f"{trace.path} names request {last}; no recording has that many.")
    return [begun.get(number) for number in range(last + 1)]


def _prompts(requests: Sequence[Request | None]) -> tuple[Prompt, ...]:
    """What was asked for; a request that no step tells of keeps its place."""
    empty = Prompt((), None, {})
    return tuple(empty if r is None else Prompt(r.prompt_token_ids, None, _applied(r)) for r in requests)


def _applied(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.sampling.items() if name != UNAPPLIED}


def _unapplied(requests: Sequence[Request | None]) -> Iterator[str]:
    """What requests asked for that a replay cannot, in sentences."""
    asked: dict[str, list[int]] = {}
    for request in filter(None, requests):
        for name in request.sampling.get(UNAPPLIED, ()):
            asked.setdefault(str(name), []).append(request.request)
    for name, numbers in sorted(asked.items()):
        which = (
            f"Request {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} requests, {numbers[0]} the first,"
        )
        yield f"{which} asked for {name}, which a replay cannot ask for: its tokens may differ for that reason."


def _engines(trace: Trace) -> list[dict[str, Any]]:
    """What the manifest says of each engine."""
    found: list[dict[str, Any]] = []
    for name in trace.engines(RECORD):
        ranks = sorted(rank for part, rank in trace.parts if part == name)
        meta = trace.part((name, ranks[0])).meta
        found.append({"segments": name, "ranks": ranks, "model": meta.get("model"), "world": meta.get("world")})
    return found


def _notes(trace: Trace) -> Iterator[str]:
    """What the recording lacks, in sentences."""
    for name, rank in trace.parts_of(RECORD):
        part = trace.part((name, rank))
        if refused := part.meta.get("refused"):
            yield f"{part.name}: the engine was not recorded. {refused}"
        summary = part.summary or {}
        if summary.get("ended") in _ENDED:
            yield f"The recording ended after {len(part)} steps, as {_ENDED[summary['ended']]} asked."
        if dropped := summary.get("dropped"):
            yield f"{part.name}: {dropped} steps were dropped because the writer could not keep up."
        if paused := summary.get("paused"):
            yield f"{part.name}: {paused} steps came while the recording was paused."
        if lacking := lacking_in(summary):
            count = summary.get("lacking_count", len(lacking))
            which = f"Request {lacking[0]} is" if count == 1 else f"{count} requests, {lacking[0]} the first, are"
            yield f"{part.name}: {which} not whole."
    if left := trace.engines(RECORD)[len(trace.joined(RECORD)) :]:
        yield (
            f"The engines of {', '.join(left)} ran another model than the first, or were cut otherwise; they are "
            "in the trace, and what is shown and replayed is the first one's."
        )


def is_whole(trace: Trace) -> bool:
    """Whether all that the engines generated is there, as far as the segments can tell: each engine has all of its
    ranks, each segment was closed by its engine's word, and no step of a request was left out."""
    engines = _engines(trace) if RECORD in trace.passes else []
    for engine in engines:
        name, ranks = engine["segments"], engine["ranks"]
        if ranks != list(range(engine["world"] if isinstance(engine["world"], int) else 0)):
            return False
        parts = [trace.part((name, rank)) for rank in ranks]
        summaries = [part.summary or {} for part in parts]
        if not all(part.complete for part in parts) or any(
            s.get("dropped") or s.get("lacking") for s in summaries
        ):
            return False
        if len({len(part) for part in parts}) > 1:
            return False
    return bool(engines) and len(engines) >= _expected(trace)


def _expected(trace: Trace) -> int:
    """How many engines there must be: those that share the requests of one server."""
    metas = (trace.part(key).meta for key in trace.parts_of(RECORD))
    sizes = [meta.get("engines") for meta in metas]
    return max((size for size in sizes if type(size) is int), default=1)
