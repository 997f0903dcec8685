"""``tracereplay record --ring``: the last steps in memory, and a trace of them when something happens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tracereplay.cli.console import stderr
from tracereplay.cli.summary import summary, trigger_words
from tracereplay.launch.collection import refusals
from tracereplay.trace import open_trace

PANEL = "Flight recorder (of a command)"

__all__ = ["Ring", "Trigger", "TriggerAfter", "TriggerEvery", "TriggerMost", "tell_ring"]

Ring = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="SIZE",
        help="Keep the last steps in memory, and write a trace of them to the folder -o when a trigger fires: "
        "256MB, 500steps, 60s, or several, with commas.",
        show_default=False,
    ),
]
Trigger = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="WHEN",
        help="What makes a trace of the ring: nonfinite (logits), logprob<-20 (of requests that ask for "
        "logprobs), error, finish=abort (or length, stop), tokens>4096, mark (a request's own); repeatable.",
        show_default="nonfinite, error, mark",
    ),
]
TriggerEvery = Annotated[
    str,
    typer.Option(
        rich_help_panel=PANEL, metavar="TIME", help="Least time between two traces that a kind of trigger makes."
    ),
]
TriggerMost = Annotated[
    int, typer.Option(rich_help_panel=PANEL, min=1, help="Number of traces that a kind of trigger makes.")
]
TriggerAfter = Annotated[
    int, typer.Option(rich_help_panel=PANEL, min=0, help="Steps that a trace has after its trigger.")
]


def tell_ring(out: Path, made: Sequence[tuple[Path, bool]]) -> None:
    """Says what traces a ring in ``out`` has made; see `command.record_traces`."""
    for why in refusals(out):
        stderr.print(f"The engine was not recorded. {why}", soft_wrap=True, markup=False)
    if not made:
        stderr.print(f"No trigger fired: {out} has no trace.", soft_wrap=True, markup=False)
    for path, _ in made:
        with open_trace(path) as trace:
            why = trigger_words(trace.run.trigger or {})
            stderr.print(f"Recorded {summary(trace)}: {path}; {why}", soft_wrap=True, markup=False)
