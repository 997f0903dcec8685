"""``tracereplay export``: tensors and calls of a trace for tools that know nothing of traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tracereplay.cli.files import CALLS, TENSORS, check_distinct, check_output
from tracereplay.cli.options import BaseTrace, OneRequest, OneStep, PassName, TracePath, local_path, opened
from tracereplay.cli.output import stderr
from tracereplay.errors import UsageError
from tracereplay.trace.export import export_calls, export_tensors
from tracereplay.trace.select import choose, pass_of

__all__ = ["export"]


def export(
    trace: TracePath,
    site: Annotated[str, typer.Argument(metavar="[SITE]", help="An operator's place; globs too.")] = "*",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            parser=local_path,
            metavar="FILE.safetensors",
            help="Where tensors go.",
            show_default=False,
        ),
    ] = None,
    calls: Annotated[
        Path | None,
        typer.Option(
            "--calls",
            parser=local_path,
            metavar="FILE.jsonl",
            help="Where calls go, as JSON lines.",
            show_default=False,
        ),
    ] = None,
    pass_name: PassName = None,
    step: OneStep = None,
    request: OneRequest = None,
    rank: Annotated[int, typer.Option(min=0, help="Whose segment, under tensor parallelism.")] = 0,
    base: BaseTrace = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that export wrote.")] = False,
) -> None:
    """Write chosen tensors to a safetensors file, and what calls they belong to as JSON lines."""
    if out is None and calls is None:
        raise UsageError("Nothing to write: give -o FILE.safetensors for tensors, --calls FILE.jsonl for calls.")
    _check_out(out, calls, force)
    source = opened(trace, base)
    name = pass_of(source, pass_name)
    done = []
    for path, write, what in ((out, export_tensors, "tensors"), (calls, export_calls, "lines")):
        if path is not None:
            chosen = choose(source, name, site, rank=rank, step=step, request=request)
            done.append(f"{write(chosen, path)} {what} to {path}")
    stderr.print(Text(f"Wrote {' and '.join(done)}."), soft_wrap=True)


def _check_out(out: Path | None, calls: Path | None, force: bool) -> None:
    check_distinct({"--out": out, "--calls": calls})
    for option, path, kind in (("--out", out, TENSORS), ("--calls", calls, CALLS)):
        if path is None:
            continue
        if path.is_file() and not force:
            raise UsageError(f"There is a file at {path} already; give another path, or --force to replace it.")
        check_output(option, path, kind)
