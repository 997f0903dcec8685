"""Options of ``record`` that say which requests are kept, and of these which operators, positions and steps."""

from __future__ import annotations

from typing import Annotated

import typer

from tracereplay.errors import UsageError
from tracereplay.recorder.choosing import Choice, positions_of, rate_of
from tracereplay.recorder.options import KERNEL, Options

PANEL = "What is recorded"

__all__ = [
    "CHOOSES", "Every", "Marked", "Requests", "Sample", "Sides", "Sites", "Tokens", "choice_of", "refuse_kernels",
    "sides_of",
]  # fmt: skip

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


def sides_of(text: str) -> tuple[str, ...]:
    """Raises UsageError unless these are ``in``, ``out`` or both."""
    found = tuple(side.strip() for side in text.split(","))
    if not set(found) <= {"in", "out"} or len(set(found)) < len(found):
        raise UsageError(f"--sides {text} is none; give in, out, or in,out.")
    return found


def choice_of(sample: str | None, requests: list[str], marked: bool, tokens: str | None, every: int) -> Choice:
    """Raises UsageError if one of them makes no sense."""
    if every < 1:
        raise UsageError(f"--every {every} would never record a step; give 1 or more.")
    if "" in requests:
        raise UsageError("--requests is empty and fits no request; give a glob of ids, such as 'cmpl-a*'.")
    rate = None if sample is None else rate_of(sample)
    return Choice(rate, tuple(requests), marked, None if tokens is None else positions_of(tokens), every)


def refuse_kernels(options: Options) -> None:
    """Raises UsageError where kernels would be recorded with the rows of requests that are not."""
    if options.level == KERNEL and (options.choice.chooses or options.choice.tokens is not None):
        raise UsageError(
            "Kernels take whole batches, with the rows of all requests in them; record operators only "
            "(--level operator), or leave out --sample, --requests, --marked and --tokens."
        )
