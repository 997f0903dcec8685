"""``tracereplay show``, of a whole trace: what it is, when and how it was made, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from tracereplay.cli.summary import observer_words, summary, trigger_words
from tracereplay.engines.known import family_of
from tracereplay.report.clean import clean
from tracereplay.report.layout import Row, cell, labelled, print_rows
from tracereplay.report.words import count
from tracereplay.trace import Trace
from tracereplay.trace.outline import MOST, line_of
from tracereplay.trace.select import PASSES

__all__ = ["print_operators", "print_run"]

_LABEL = 13  # columns of the names of facts
_VALUE = 120  # characters of a setting's value

# Of an engine's settings, those that people ask about first; --all shows every one.
_FIRST = (
    "dtype", "quantization", "kv_cache_dtype", "attention_backend", "enforce_eager", "compilation_mode",
    "cudagraph_mode", "tensor_parallel_size", "max_model_len", "engine_generation",
)  # fmt: skip


def print_run(trace: Trace, passes: Sequence[str], console: Console, everything: bool) -> None:
    """Prints what a trace says of itself, a fact in a line."""
    for name, words in _facts(trace, passes, everything):
        labelled(console, name, Text(clean(words)), _LABEL)


def print_operators(trace: Trace, passes: Sequence[str], console: Console, everything: bool) -> None:
    """Prints the operators of each pass, and its steps."""
    kinds: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in sorted(passes, key=_order):
        kinds.setdefault(_operators(trace, name, everything), []).append(name)
    for rows, names in kinds.items():
        _table(console, f"operators of {' and '.join(names)}", ("operator", "sites", "calls", "first site"), rows)
    for name in sorted(passes, key=_order):
        headers = "step", "rows", "calls", "tokens", "requests"
        _table(console, f"steps of {name}", headers, tuple(_steps(trace, name, everything)))


# -- facts --------------------------------------------------------------------------------------------------


def _facts(trace: Trace, passes: Sequence[str], everything: bool) -> Iterator[tuple[str, str]]:
    run = trace.run
    yield "trace", f"{run.kind}, {summary(trace)}"
    yield "made", _when(trace)
    yield "ended", _end(trace)
    yield from _engine(trace, everything)
    yield from _asked(trace)
    if run.withheld is not None:
        yield "withheld", f"{', '.join(run.withheld.get('what') or ())} (key {run.withheld.get('key')})"
    if run.observer:
        yield "observer", f"recording changed {observer_words(run.observer)}"
    if run.trigger:
        yield "trigger", trigger_words(run.trigger)
    for note in run.notes:
        yield "note", note
    for said in dict.fromkeys(trace.outline(name).said() for name in passes):
        if said is not None:
            yield "company", said
    for name in sorted(passes, key=_order):
        outline = trace.outline(name)
        counts = count(outline.steps, "step"), count(outline.rows, "row"), count(len(trace.ranks(name)), "rank")
        yield f"pass {name}", ", ".join(counts)


def _when(trace: Trace) -> str:
    began, ended = (_moment(text) for text in (trace.run.began, trace.run.ended))
    if began is None:
        return "it does not say when, as traces of before that"
    took = "" if ended is None or ended < began else f", in {_seconds((ended - began).total_seconds())}"
    return f"{began:%Y-%m-%d %H:%M:%S} UTC{took}"


def _moment(text: str | None) -> datetime | None:
    try:
        found = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _end(trace: Trace) -> str:
    dropped = f"; {trace.dropped} steps were left out, the writer being behind" if trace.dropped else ""
    if trace.complete:
        return f"complete{dropped}"
    return f"INCOMPLETE: it was interrupted, or is being recorded; what it has can be read{dropped}"


def _engine(trace: Trace, everything: bool) -> Iterator[tuple[str, str]]:
    run = trace.run
    versions = {name: found for name, found in run.engine_facts("versions").items() if found}
    main = [name for name in (family_of(run.engine).package, "torch", "transformers") if name in versions]
    shown = versions if everything or not main else {name: versions[name] for name in main}
    rest = f" and {len(versions) - len(shown)} more" if len(shown) < len(versions) else ""
    listed = ", ".join(f"{name} {found}" for name, found in shown.items())
    yield "engine", ": ".join(filter(None, (str(run.engine.get("name", "unknown")), listed))) + rest
    if run.engine.get("device"):
        yield "device", str(run.engine["device"])
    if run.command_line:
        yield "command", " ".join(run.command_line)
    if given := run.engine_facts("arguments"):
        yield "arguments", _pairs(given, list(given))
    elif (asked := {} if run.requested is None else run.requested.words()).get("settings"):
        yield "arguments", asked["settings"]
    settings = run.engine_facts("settings")
    names = list(settings) if everything else [name for name in _FIRST if settings.get(name) is not None]
    if names:
        yield "settings", _pairs(settings, names)
    if everything and (environment := run.engine_facts("environment")):
        yield "environment", _pairs(environment, list(environment))


def _asked(trace: Trace) -> Iterator[tuple[str, str]]:
    run = trace.run
    asked = {} if run.requested is None else run.requested.words()
    yield "model", f"{asked.get('model', 'unknown')} (weights {run.weights or 'unknown'})"
    lengths = [len(prompt.token_ids or ()) for prompt in run.prompts]
    if lengths:
        between = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
        yield "prompts", f"{len(lengths)}, of {between} tokens"


def _pairs(values: Mapping[str, Any], names: Sequence[str]) -> str:
    found = []
    for name in names:
        value = values[name]
        words = value if isinstance(value, str) else json.dumps(value, default=str)
        found.append(f"{name}={words if len(words) <= _VALUE else words[:_VALUE] + '...'}")
    rest = len(values) - len(names)
    return ", ".join(found) + (f" and {rest} more (--all)" if rest else "")


# -- operators and steps ------------------------------------------------------------------------------------


def _operators(trace: Trace, name: str, everything: bool) -> tuple[tuple[str, ...], ...]:
    """For each operator class (or each site): the number of sites and of calls, and the first site."""
    rank = trace.ranks(name)[0]
    calls = trace.outline(name).calls
    sites: dict[str, list[str]] = {}
    for site in trace.sites(name, rank).values():
        sites.setdefault(f"{site.operator} {site.name}" if everything else site.operator, []).append(site.name)
    return tuple(
        (kind.split(" ")[0], str(len(at)), str(sum(calls[n] for n in at)), at[0]) for kind, at in sites.items()
    )


def _steps(trace: Trace, name: str, everything: bool) -> Iterator[tuple[str, ...]]:
    outline = trace.outline(name)
    every = (
        line_of(step.number, step.rows, len(step.form.calls), len(step.sampled))
        for step in trace.records(name, trace.ranks(name)[0])
    )
    for line in every if everything else outline.first:
        some = ", ".join(map(str, line.requests[: MOST - 1])) + (" ..." if len(line.requests) == MOST else "")
        yield str(line.number), str(line.rows), str(line.calls), str(line.sampled), some
    if not everything and len(outline.first) < outline.steps:
        yield f"and {outline.steps - len(outline.first)} more", "", "", "", ""


def _order(name: str) -> int:
    return PASSES.index(name) if name in PASSES else len(PASSES)


def _table(console: Console, title: str, headers: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    console.print()
    console.print(cell(title, "bold"))
    print_rows(console, headers, [Row(list(map(cell, row))) for row in rows])
