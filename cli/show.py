"""``tracereplay show``: show what a trace contains, or one operator's inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from tracereplay.cli.options import (
    BaseTrace,
    JsonFile,
    Model,
    OneRequest,
    OneStep,
    PassName,
    TracePath,
    one_request,
    opened,
    refuse_given,
)
from tracereplay.cli.show_kernels import show_kernels
from tracereplay.cli.show_requests import FIRST, as_json, check_json, print_requests, show_one
from tracereplay.cli.show_run import print_operators, print_run
from tracereplay.cli.texts import decoder
from tracereplay.comparator.numbers.dtypes import is_float, widen
from tracereplay.dtypes import DTYPES
from tracereplay.errors import TraceError, UsageError
from tracereplay.report.layout import Row, cell, print_rows, report_console
from tracereplay.report.words import number
from tracereplay.trace import Trace
from tracereplay.trace.listing import named
from tracereplay.trace.select import Chosen, choose, pass_of

__all__ = ["show"]

VALUES = 4
_NOT_FINITE = 8  # the column that is left out where all are


def show(
    context: typer.Context,
    trace: TracePath,
    site: Annotated[
        str | None,
        typer.Argument(
            metavar="[SITE]", help="Site of an operator, such as model.norm, or a glob.", show_default=False
        ),
    ] = None,
    pass_name: PassName = None,
    step: OneStep = None,
    request: OneRequest = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps of a site to show.")] = 4,
    everything: Annotated[bool, typer.Option("--all", help="Show every step, site and request.")] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show the kernels recorded inside the operator.")
    ] = False,
    model: Model = None,
    base: BaseTrace = None,
    json_file: JsonFile = None,
) -> None:
    """Show what a trace contains, or one request; with SITE, the tensors of that operator's calls."""
    source = opened(trace, base)
    console = report_console()
    if site is None:
        if kernels:
            raise UsageError("--kernels shows what ran inside an operator; give its SITE.")
        refuse_given(context, ["step", "steps"], "Without a SITE no tensors are shown")
        check_json(json_file)
        _show_without_site(source, pass_name, request, console, everything, model, json_file)
        return
    refuse_given(context, ["model", "json_file"], "With a SITE only tensors are shown")
    if everything or step is not None:
        refuse_given(context, ["steps"], "--all and --step say how many steps to show")
    limit = None if everything else steps
    name = pass_of(source, pass_name)
    if kernels:
        refuse_given(context, ["request"], "Kernels cannot be selected by request")
        show_kernels(source, name, site, console, step=step, first_steps=limit)
        return
    number = None if request is None else one_request(source, request)
    _show_sites(name, choose(source, name, site, step=step, request=number, first_steps=limit), console)


def _show_without_site(
    trace: Trace, pass_name: str | None, request: str | None, console: Console, everything: bool,
    model: Path | None, json_file: str | None,
) -> None:  # fmt: skip
    decode, most = decoder(trace, model), None if everything else FIRST
    passes = trace.passes if pass_name is None else [pass_of(trace, pass_name)]
    keys = None if request is None else named(trace, request)
    if json_file is not None:
        as_json(trace, pass_of(trace, pass_name), json_file, decode, most, keys)
    if json_file == "-":
        return
    if keys is not None:
        show_one(trace, pass_of(trace, pass_name), keys, console, decode)
        return
    print_run(trace, passes, console, everything)
    if trace.run.requested is not None and passes:
        try:
            print_requests(trace, pass_of(trace, pass_name), console, decode, most)
        except TraceError as error:  # all else of it may be readable
            console.print(cell(f"Its requests cannot be listed: {error}"))
    print_operators(trace, passes, console, everything)


def _print_table(console: Console, title: str, headers: Sequence[str], rows: Iterable[tuple[str, ...]]) -> None:
    console.print()
    console.print(cell(title, "bold"))
    print_rows(console, headers, [Row(list(map(cell, row))) for row in rows])


# -- sites --------------------------------------------------------------------------------------------------


def _show_sites(pass_name: str, chosen: Iterator[Chosen], console: Console) -> None:
    """One table per site, in order of their first calls."""
    found: dict[str, list[Chosen]] = {}
    for one in chosen:
        found.setdefault(one.site.name, []).append(one)
    headers = ("step", "tensor", "dtype", "shape", "min", "max", "mean", "rms", "not finite", "first values")
    for name, tensors in found.items():
        rows = [(str(one.step), _named(one), *_described(one)) for one in tensors]
        shown = [place for place in range(len(headers)) if place != _NOT_FINITE or any(row[place] for row in rows)]
        title = f"{name} ({tensors[0].site.operator}), pass {pass_name}"
        kept = [tuple(row[place] for place in shown) for row in rows]
        _print_table(console, title, [headers[place] for place in shown], kept)
        for _, same in groupby(tensors, key=lambda one: (one.step, one.call.number)):
            _note_sharing(console, list(same))


def _note_sharing(console: Console, tensors: Sequence[Chosen]) -> None:
    """Says which of a call's inputs shared memory: views of one tensor."""
    shared: dict[int, list[str]] = {}
    for one in tensors:
        if one.value.storage >= 0 and one.name.startswith("in"):
            shared.setdefault(one.value.storage, []).append(one.name)
    words = [" and ".join(names) for names in shared.values() if len(names) > 1]
    if words:
        console.print(Text(f"step {tensors[0].step}: {'; '.join(words)} shared memory", style="dim"))


def _named(one: Chosen) -> str:
    """The tensor's name, and the name of the parameter it was passed as."""
    index = int("".join(filter(str.isdigit, one.name)))
    if one.name.startswith("in"):
        return f"{one.name} {one.site.inputs[index] if index < len(one.site.inputs) else ''}".rstrip()
    return one.name if one.name.startswith("out") else f"in{index}, after"


def _described(one: Chosen) -> list[str]:
    array = one.array()
    dtype, shape = one.value.dtype, "x".join(map(str, array.shape)) or "scalar"
    if not array.size:
        return [dtype, shape, "", "", "", "", "", ""]
    if not is_float(dtype):
        limits = [str(array.min()), str(array.max())] if DTYPES[dtype].word == array.itemsize else ["", ""]
        return [dtype, shape, *limits, "", "", "", _first(array, str)]
    x = widen(array, dtype).astype(np.float64)
    finite = x[np.isfinite(x)]
    numbers = (finite.min(), finite.max(), finite.mean(), np.sqrt(np.mean(finite**2))) if finite.size else ()
    words = [number(float(v)) for v in numbers] or [""] * 4
    return [dtype, shape, *words, str(x.size - finite.size or ""), _first(x, lambda v: number(float(v)))]


def _first(array: Any, words: Any) -> str:
    values = array.reshape(-1)[:VALUES]
    return " ".join(words(v) for v in values) + (" ..." if array.size > VALUES else "")
