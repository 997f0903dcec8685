"""``tracereplay logprobs``: what a policy-gradient trainer would see between two traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tracereplay.cli.checks import check_json
from tracereplay.cli.files import write_text
from tracereplay.cli.options import JsonFile
from tracereplay.comparator.tokens.rollout import compare_rollouts
from tracereplay.report import rollout
from tracereplay.report.layout import report_console
from tracereplay.trace import open_trace
from tracereplay.verdict import SCHEMA

__all__ = ["logprobs"]


def logprobs(
    golden: Annotated[
        str, typer.Argument(metavar="GOLDEN", help="Trace of the engine that generates.", show_default=False)
    ],
    candidate: Annotated[
        str,
        typer.Argument(metavar="CANDIDATE", help="A replay of GOLDEN, or another recording.", show_default=False),
    ],
    json_file: JsonFile = None,
) -> None:
    """Show how the logprobs of two traces differ, as importance ratios; no engine is started.

    A measurement, not a verdict: exits with 0 however much they differ.
    """
    check_json(json_file)
    with open_trace(golden) as mine, open_trace(candidate) as theirs:
        found = compare_rollouts(mine, theirs)
    text = json.dumps({"schema": SCHEMA, "rollout": found.as_dict()}, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        typer.echo(text, nl=False)
        return
    if json_file is not None:
        write_text(Path(json_file), text)
    rollout.render(found, report_console(), everything=True)
