"""``tracereplay verify``: check that a trace is intact and complete."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tracereplay.cli.console import stderr
from tracereplay.cli.options import BaseTrace, TracePath, opened
from tracereplay.errors import TraceError
from tracereplay.report.clean import clean
from tracereplay.report.layout import report_console
from tracereplay.trace import verify as checking
from tracereplay.trace.directory import MANIFEST

__all__ = ["verify"]

RECOVERABLE = 3
_WORDS = {
    "complete": "complete: closed, and every frame is intact",
    "recoverable": "recoverable: interrupted or not closed; every committed step is intact",
    "damaged": "damaged: at least one frame is not intact",
}


def verify(
    trace: TracePath,
    base: BaseTrace = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild the index of an interrupted recording from its steps.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read every byte of a trace and report whether it is complete, recoverable or damaged.

    Exits with 0 if it is complete, 3 if it is recoverable, 5 if it is damaged.
    """
    source = opened(trace, base)
    if repair:
        for name in checking.repair(source):
            words = "Finished" if name == MANIFEST else "Rebuilt the index of"
            stderr.print(Text(f"{words} {clean(name)}."))
        source = opened(trace, base)
    reports = list(checking.verify(source))
    states = [report.state for report in reports]
    state = "damaged" if "damaged" in states else "complete" if source.said_complete else "recoverable"
    if state == "complete" and set(states) != {"complete"}:
        state = "recoverable"
    if as_json:
        typer.echo(json.dumps({"state": state, "segments": [asdict(report) for report in reports]}))
    else:
        _print(state, reports)
    raise typer.Exit({"complete": 0, "recoverable": RECOVERABLE, "damaged": TraceError.exit_code}[state])


def _print(state: str, reports: list[checking.SegmentReport]) -> None:
    console = report_console()
    console.print(Text(_WORDS[state]))
    table = Table("segment", "state", "steps", "frames", "bytes", box=None, pad_edge=False, header_style="dim")
    for report in reports:
        table.add_row(clean(report.name), report.state, str(report.steps), str(report.frames), f"{report.size:,}")
    console.print(table)
    for report in reports:
        if report.problem is not None:
            console.print(Text(clean(report.problem)), soft_wrap=True)
        if report.dropped:
            console.print(Text(f"{clean(report.name)}: {report.dropped} steps were dropped while recording."))
        if report.lacking:
            which = "request is" if report.lacking == 1 else "requests are"
            console.print(Text(f"{clean(report.name)}: {report.lacking} {which} not whole; show lists which."))
