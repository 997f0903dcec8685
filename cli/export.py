"""``tracereplay export``: write a trace's tensors and calls for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tracereplay.cli.console import stderr
from tracereplay.cli.files import CALLS, TENSORS, check_distinct, check_output
from tracereplay.cli.options import (
    BaseTrace,
    OneRequest,
    OneStep,
    PassName,
    TracePath,
    local_path,
    one_request,
    opened,
)
from tracereplay.errors import UsageError
from tracereplay.trace.export import export_calls, export_tensors
from tracereplay.trace.select import choose, pass_of

__all__ = ["export"]


def export(
    trace: TracePath,
    site: Annotated[str, typer.Argument(metavar="[SITE]", help="Site of an operator, or a glob.")] = "*",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            parser=local_path,
            metavar="FILE.safetensors",
            help="File to write tensors to.",
            show_default=False,
        ),
    ] = None,
    calls: Annotated[
        Path | None,
        typer.Option(
            "--calls",
            parser=local_path,
            metavar="FILE.jsonl",
            help="File to write calls to, as JSON lines.",
            show_default=False,
        ),
    ] = None,
    pass_name: PassName = None,
    step: OneStep = None,
    request: OneRequest = None,
    rank: Annotated[int, typer.Option(min=0, help="Tensor-parallel rank to export.")] = 0,
    base: BaseTrace = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files written by export.")] = False,
) -> None:
    """Write selected tensors to a safetensors file, and the calls they belong to as JSON lines."""
    if out is None and calls is None:
        raise UsageError("Nothing to write: give -o FILE.safetensors for tensors, --calls FILE.jsonl for calls.")
    _check_out(out, calls, force)
    source = opened(trace, base)
    name = pass_of(source, pass_name)
    number = None if request is None else one_request(source, request)
    done = []
    for path, write, what in ((out, export_tensors, "tensors"), (calls, export_calls, "lines")):
        if path is not None:
            chosen = choose(source, name, site, rank=rank, step=step, request=number)
            done.append(f"{write(chosen, path)} {what} to {path}")
    stderr.print(Text(f"Wrote {' and '.join(done)}."), soft_wrap=True)


def _check_out(out: Path | None, calls: Path | None, force: bool) -> None:
    check_distinct({"--out": out, "--calls": calls})
    for option, path, kind in (("--out", out, TENSORS), ("--calls", calls, CALLS)):
        if path is None:
            continue
        if path.is_file() and not force:
            raise UsageError(f"{path} already exists; give another path, or --force to replace it.")
        check_output(option, path, kind)
