"""``tracereplay show``: what a trace holds, or what one operator took and gave."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracereplay.cli.summary import observer_words, summary
from tracereplay.comparator.dtypes import is_float, widen
from tracereplay.dtypes import numpy_dtype
from tracereplay.errors import UsageError
from tracereplay.event import Call, Value
from tracereplay.report.words import clean, number
from tracereplay.trace import Trace, open_trace

__all__ = ["show"]

# The pass that is shown where none is named.
_PASSES = ("record", "injected", "rerun")


def show(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace.", show_default=False)],
    site: Annotated[
        str | None,
        typer.Argument(
            metavar="[SITE]", help="An operator's place, such as model.norm; globs too.", show_default=False
        ),
    ] = None,
    pass_name: Annotated[
        str | None,
        typer.Option("--pass", help="Which pass: record, injected or rerun.", show_default="the first of these"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="How many steps of a site to show.")] = 4,
) -> None:
    """Show what a trace holds; with SITE, the tensors of that operator's calls."""
    source = open_trace(trace)
    console = Console(highlight=False)
    if site is None:
        _show_run(source, console)
    elif not source.passes:
        raise UsageError(f"{trace} holds no steps yet, so there is nothing of {site!r} to show.")
    else:
        first = min(source.passes, key=_order)
        _show_site(source, pass_name or first, site, steps, console)


def _show_run(trace: Trace, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in _facts(trace):
        table.add_row(name, _cell(words))
    console.print(table)
    kinds: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in sorted(trace.passes, key=_order):
        kinds.setdefault(_operators(trace, name), []).append(name)
    for rows, names in kinds.items():
        table = _table("operator", "sites", "calls", "first site")
        table.title, table.title_justify = Text(f"pass {' and '.join(names)}"), "left"
        for row in rows:
            table.add_row(*map(_cell, row))
        console.print()
        console.print(table)


def _operators(trace: Trace, name: str) -> tuple[tuple[str, ...], ...]:
    """Of each class of operators: how many sites there are, how many calls, and the first site."""
    rank = trace.ranks(name)[0]
    calls = Counter(call.site for step in trace.steps(name, rank) for call in step.calls)
    sites: dict[str, list[str]] = {}
    for site in trace.sites(name, rank).values():
        sites.setdefault(site.operator, []).append(site.name)
    return tuple((kind, str(len(at)), str(sum(calls[n] for n in at)), at[0]) for kind, at in sites.items())


def _order(name: str) -> int:
    return _PASSES.index(name) if name in _PASSES else len(_PASSES)


def _facts(trace: Trace) -> Iterator[tuple[str, str]]:
    run = trace.run
    engine, workload = run.get("engine", {}), run.get("workload", {})
    versions = ", ".join(f"{k} {v}" for k, v in (engine.get("versions") or {}).items() if v)
    prompts = workload.get("prompts", [])
    lengths = [len(p.get("prompt_token_ids") or ()) for p in prompts]
    yield "trace", f"{run.get('kind', 'trace')}, {summary(trace)}"
    yield "engine", ": ".join(filter(None, (engine.get("name", "unknown"), versions)))
    yield "model", f"{workload.get('model')} (weights {workload.get('weights') or 'unknown'})"
    if prompts:
        yield "prompts", f"{len(prompts)}, of {min(lengths)} to {max(lengths)} tokens"
    if workload.get("settings"):
        yield "settings", ", ".join(f"{k}={v}" for k, v in workload["settings"].items())
    if run.get("observer"):
        yield "observer", f"recording changed {observer_words(run['observer'])}"
    for note in run.get("notes") or ():
        yield "note", str(note)
    for name in sorted(trace.passes, key=_order):
        steps = trace.steps(name, trace.ranks(name)[0])
        rows = sum(len(step.rows) for step in steps)
        yield f"pass {name}", f"{len(steps)} steps, {rows} rows, {len(trace.ranks(name))} rank(s)"


def _table(*headers: str) -> Table:
    return Table(*headers, box=None, pad_edge=False, header_style="dim")


def _cell(words: str) -> Text:
    """Words from a trace: never markup, never control characters."""
    return Text(clean(words))


def _show_site(trace: Trace, name: str, wanted: str, steps: int, console: Console) -> None:
    rank = trace.ranks(name)[0] if name in trace.passes else 0
    sites = trace.sites(name, rank)
    found = [site for site in sites if site == wanted or fnmatchcase(site, wanted)]
    if not found:
        raise UsageError(_unknown_site(trace, name, wanted, sites))
    for site in found:
        table = _table("step", "tensor", "dtype", "shape", "min", "max", "mean", "rms", "not finite")
        table.title, table.title_justify = _cell(f"{site} ({sites[site].operator}), pass {name}"), "left"
        for step in trace.steps(name, rank)[:steps]:
            for call in (c for c in step.calls if c.site == site):
                for tensor, value in _tensors(call, sites[site].inputs):
                    table.add_row(str(step.number), _cell(tensor), *_describe(value))
        console.print(table)
        console.print()


def _unknown_site(trace: Trace, name: str, wanted: str, sites: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(wanted, list(sites), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"'tracereplay show {trace.path}' lists them."
    return f"The pass {name!r} of {trace.path} has no site {wanted!r}; {hint}"


def _tensors(call: Call, names: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
    for index, value in enumerate(call.inputs):
        yield f"in {index} {names[index] if index < len(names) else ''}".rstrip(), value
    for index, value in enumerate(call.outputs):
        yield f"out {index}", value
    for index, value in call.written.items():
        yield f"in {index}, after", value


def _describe(value: Value) -> list[str]:
    shape = "x".join(map(str, value.shape))
    raw = np.frombuffer(value.load(), numpy_dtype(value.dtype))
    if not raw.size:
        return [value.dtype, shape, "", "", "", "", ""]
    if not is_float(value.dtype):
        return [value.dtype, shape, str(raw.min()), str(raw.max()), "", "", ""]
    x = widen(raw, value.dtype).astype(np.float64)
    finite = x[np.isfinite(x)]
    numbers = (finite.min(), finite.max(), finite.mean(), np.sqrt(np.mean(finite**2))) if finite.size else ()
    words = [number(float(v)) for v in numbers] or [""] * 4
    return [value.dtype, shape, *words, str(x.size - finite.size or "")]
