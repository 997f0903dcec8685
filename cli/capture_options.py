"""Options of ``record -- COMMAND``: into which traces it is recorded, and how that is controlled while it runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tracereplay.errors import UsageError
from tracereplay.launch.budget import budget_of
from tracereplay.launch.command import How

PANEL = "Several traces, and control (of a command)"

__all__ = [
    "CAPTURE", "Control", "Keep", "LeaveFree", "Paused", "ResumeWhenRoom", "Rotate", "WhenBehind", "behind_of",
    "how_of",
]  # fmt: skip


class WhenBehind(str, Enum):
    """See ``--when-behind``."""

    block = "block"  # the engine waits
    drop = "drop"  # steps are left out and counted


Rotate = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="BYTES|TIME",
        help="Begin the next trace after so many bytes or so long (1GB, 1h); -o is then a directory of traces.",
        show_default=False,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="N|BYTES",
        help="Remove the oldest finished traces: keep N, or as many as take these bytes (50GB).",
        show_default=False,
    ),
]
LeaveFree = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="BYTES",
        help="Remove the oldest finished traces while less than this is free on the disk.",
        show_default=False,
    ),
]
ResumeWhenRoom = Annotated[
    bool,
    typer.Option(
        "--resume-when-room",
        rich_help_panel=PANEL,
        help="After a full or failing disk has ended the recording, begin another trace when there is room.",
    ),
]
Paused = Annotated[
    bool,
    typer.Option(
        "--paused",
        rich_help_panel=PANEL,
        help="Record nothing until `tracereplay start`; the engine is prepared for it.",
    ),
]
Control = Annotated[
    bool,
    typer.Option(
        rich_help_panel=PANEL,
        help="Make control.sock in the trace, by which status, start, stop, trigger and set reach it.",
    ),
]

# Which of record's options are for a command only, by their names.
CAPTURE = ("rotate", "keep", "leave_free", "resume_when_room", "paused", "control")


def how_of(
    out: Path, rotate: str | None, keep: str | None, leave_free: str | None, *,
    resume_when_room: bool, paused: bool, control: bool, ring: bool = False,
) -> How:  # fmt: skip
    """What these options ask for.

    Args:
        out: where it goes.
        rotate, keep, leave_free, resume_when_room, paused, control: the options.
        ring: whether a flight recorder makes a collection of the traces, too.

    Raises:
        UsageError: they do not go together.
    """
    if ring and rotate is not None:
        raise UsageError("--ring makes a trace when a trigger fires, and --rotate after a size or time; give one.")
    collection = rotate is not None or ring
    given = {"--keep": keep, "--leave-free": leave_free, "--resume-when-room": resume_when_room or None}
    if not collection:
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} is for a recording of several traces; give --rotate or --ring too.")
    if paused and not control:
        raise UsageError("--paused with --no-control would never record anything; leave out one of them.")
    return How(collection, ring, budget_of(rotate, keep, leave_free, resume=resume_when_room), control, paused)


def behind_of(given: WhenBehind | None, *, command: bool) -> str:
    """What happens when the writer cannot keep up: a server is not slowed unless asked for."""
    return (given or (WhenBehind.drop if command else WhenBehind.block)).value
