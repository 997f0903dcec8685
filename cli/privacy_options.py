"""Options of ``record`` that say what a trace may tell of those who asked; ``pack`` has others."""

from __future__ import annotations

from typing import Annotated

import typer

from tracereplay.cli.options import PRIVACY
from tracereplay.recorder.options import FIELDS

__all__ = ["KeepFields"]

KeepFields = Annotated[
    list[str],
    typer.Option(
        rich_help_panel=PRIVACY,
        metavar="NAME",
        help=f"Field of a server's requests to keep: {', '.join(FIELDS)}. May be repeated.",
        show_default="none",
    ),
]
