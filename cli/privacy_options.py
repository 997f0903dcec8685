"""Options of ``record`` that say what a trace may tell of those who asked; ``pack`` has others."""

from __future__ import annotations

from typing import Annotated

import typer

from tracereplay.cli.options import PRIVACY
from tracereplay.errors import UsageError
from tracereplay.recorder.options import FIELDS

__all__ = ["KeepFields", "fields_of"]

KeepFields = Annotated[
    list[str],
    typer.Option(
        rich_help_panel=PRIVACY,
        metavar="NAME",
        help=f"Field of a server's requests to keep: {', '.join(FIELDS)}. May be repeated.",
        show_default="none",
    ),
]


def fields_of(names: list[str]) -> tuple[str, ...]:
    """Raises UsageError if a field is none that can be kept."""
    if unknown := [name for name in names if name not in FIELDS]:
        raise UsageError(f"{unknown[0]!r} is no field that can be kept; --keep-fields takes {', '.join(FIELDS)}.")
    return tuple(dict.fromkeys(names))
