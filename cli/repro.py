"""``tracereplay repro``: turn one recorded call into a folder that runs without tracereplay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tracereplay.alone.constants import Constants
from tracereplay.cli.console import stderr
from tracereplay.cli.options import BaseTrace, Model, TracePath, local_path, opened
from tracereplay.gate import weights_directory
from tracereplay.passes import RECORD
from tracereplay.report.clean import clean
from tracereplay.report.repro import (
    choose_call,
    choose_kernel,
    reproduce_kernel,
    reproduce_operator,
    write_reproducer,
)
from tracereplay.trace.parameters import Parameters

__all__ = ["repro"]


def repro(
    trace: TracePath,
    site: Annotated[str, typer.Option(metavar="SITE", help="Site of the operator.", show_default=False)],
    step: Annotated[int, typer.Option(min=0, metavar="N", help="Step of the call.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", parser=local_path, metavar="DIR", help="Directory to create.", show_default=False
        ),
    ],
    kernel: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A kernel inside the operator, such as aten.mm, instead.", show_default=False
        ),
    ] = None,
    occurrence: Annotated[int, typer.Option(min=0, help="Index of the call, if the step has several.")] = 0,
    model: Model = None,
    base: BaseTrace = None,
) -> None:
    """Write one recorded call as inputs, expected outputs and a script that needs only torch (or the engine)."""
    with opened(trace, base) as source:
        checkpoint = weights_directory(source, model)
        if kernel is not None:
            chosen, count = choose_kernel(source, site, kernel, step, occurrence)
            name = chosen.name
            found = reproduce_kernel(source, step, chosen, Constants(source, source.ranks(RECORD)[0], checkpoint))
        else:
            call, count = choose_call(source, site, step, occurrence)
            operator = source.sites(RECORD)[site]
            name = f"{operator.operator} at {site}"
            found = reproduce_operator(source, step, operator, call, Parameters(source, checkpoint))
        write_reproducer(found, out)
    several = f" ({occurrence + 1} of {count} such calls)" if count > 1 else ""
    stderr.print(Text(f"Wrote {name}{several}; run it with: python {out / 'repro.py'}"), soft_wrap=True)
    stderr.print(Text(found.loads), soft_wrap=True)
    if found.caution is not None:
        stderr.print(Text(clean(found.caution)), soft_wrap=True)
