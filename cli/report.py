"""``tracereplay report``: show a verdict saved as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tracereplay.errors import UsageError
from tracereplay.report import terminal
from tracereplay.verdict import Verdict

__all__ = ["report"]


def report(
    verdict: Annotated[
        Path, typer.Argument(metavar="VERDICT.json", help="File written by --json.", show_default=False)
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="Show every site, edge and note, not only the first few.")
    ] = False,
) -> None:
    """Show a verdict written by --json; exits with 0 whatever the verdict."""
    terminal.render(read_verdict(verdict), Console(highlight=False), everything=everything)


def read_verdict(path: Path) -> Verdict:
    """The verdict in a JSON file.

    Raises:
        UsageError: the file cannot be read or is not a verdict.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"The verdict {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}; give a file written by --json.") from error
    return Verdict.from_dict(data)
