"""``tracereplay report``: show a verdict saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tracereplay.errors import UsageError
from tracereplay.report import invariance, terminal
from tracereplay.report.layout import command_lines, report_console
from tracereplay.verdict import Verdict
from tracereplay.verdict.invariance import Invariance

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
    data, console = read_json(verdict), report_console()
    if "invariant" in data:
        invariance.render(Invariance.from_dict(data), console)
    else:
        whole = " ".join(command_lines(("tracereplay", "report", str(verdict), "--all")))
        terminal.render(Verdict.from_dict(data), console, everything=everything, whole=whole)


def read_json(path: Path) -> Mapping[str, Any]:
    """What a JSON file says.

    Raises:
        UsageError: it cannot be read, or is not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"The verdict {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}; give a file written by --json.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a verdict; give a file written by --json.")
    return data
