"""Options of ``record -- COMMAND``: into which traces it is recorded, and how that is controlled while it runs."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

PANEL = "Several traces, and control (of a command)"

__all__ = ["CAPTURE", "Control", "Keep", "LeaveFree", "Paused", "ResumeWhenRoom", "Rotate", "WhenBehind"]


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
