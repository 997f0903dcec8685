"""Options of ``record`` that say which requests are kept, and of these which operators, positions and steps."""

from __future__ import annotations

from typing import Annotated

import typer

PANEL = "What is recorded"

__all__ = ["CHOOSES", "Every", "Marked", "Requests", "Sample", "Sides", "Sites", "Tokens"]

# How requests are chosen of those that a server is asked for, by the options' names.
CHOOSES = ("sample", "requests", "marked")

Sample = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="RATE",
        help="Record this share of a command's requests, such as 1/1000.",
        show_default=False,
    ),
]
Requests = Annotated[
    list[str],
    typer.Option(
        rich_help_panel=PANEL, metavar="GLOB", help="Record a command's requests with such an id; may be repeated."
    ),
]
Marked = Annotated[
    bool,
    typer.Option(
        "--marked",
        rich_help_panel=PANEL,
        help='Record a command\'s requests that ask for it: vllm_xargs of {"tracereplay": "record"}, which '
        "also counts under --sample and --requests.",
    ),
]
Sites = Annotated[
    list[str],
    typer.Option(
        rich_help_panel=PANEL, metavar="GLOB", help="Record operators at such sites only; may be repeated."
    ),
]
Sides = Annotated[
    str, typer.Option(rich_help_panel=PANEL, metavar="in,out", help="Record inputs (in), outputs (out) or both.")
]
Tokens = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="FIRST:BEHIND",
        help="Record operators at these positions of a sequence only, such as 0:64.",
        show_default=False,
    ),
]
Every = Annotated[
    int, typer.Option(rich_help_panel=PANEL, metavar="N", help="Record operators in one step of N only.")
]
