"""``tracereplay ray``: a runtime environment for jobs of Ray, and completing what they recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tracereplay import ray
from tracereplay.cli.choice_options import Every, Marked, Requests, Sample, Sides, Sites, Tokens
from tracereplay.cli.console import stderr, tell
from tracereplay.cli.options import local_path
from tracereplay.cli.summary import summary
from tracereplay.errors import EngineFailed
from tracereplay.launch.elsewhere import PATIENCE, lacks
from tracereplay.trace import open_trace

__all__ = ["app"]

app = typer.Typer(help="Record engines inside actors of Ray.", no_args_is_help=True)


@app.command()
def env(
    out: Annotated[Path, typer.Option("-o", "--out", parser=local_path, metavar="TRACE", help="Trace to write.")],
    engine: Annotated[
        str | None,
        typer.Option(
            help="Name of the engine in whose environment actors run.",
            show_default="tracereplay is installed in theirs",
        ),
    ] = None,
    sample: Sample = None,
    requests: Requests = [],  # noqa: B006
    marked: Marked = False,
    sites: Sites = [],  # noqa: B006
    sides: Sides = "in,out",
    tokens: Tokens = None,
    every: Every = 1,
) -> None:
    """Make a trace and print, as JSON, the runtime environment of a job whose engines are recorded into it.

    As in: ray job submit --runtime-env-json "$(tracereplay ray env -o golden.trace)" -- python train.py
    """
    found = ray.runtime_env(
        out, engine=engine, sample=sample, requests=requests, marked=marked, sites=sites,
        sides=sides, tokens=tokens, every=every,
    )  # fmt: skip
    typer.echo(json.dumps(found))


@app.command()
def finish(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace that engines are recorded into.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that engines have to end.")] = PATIENCE,
) -> None:
    """End the recording of engines inside actors, and complete their trace.

    Exits with 0 if it is complete, 4 if it lacks something.
    """
    complete = ray.finish(trace, timeout)
    with open_trace(trace) as found:
        stderr.print(f"Recorded {summary(found)}: {trace}", soft_wrap=True, markup=False)
    for sentence in [] if complete else lacks(trace):
        tell(sentence)
    raise typer.Exit(0 if complete else EngineFailed.exit_code)
