"""``tracereplay goldens``: what traces a bucket or a folder has."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tracereplay.cli.console import tell
from tracereplay.cli.summary import size_words
from tracereplay.report.layout import STYLE, Row, cell, indented, print_rows, report_console
from tracereplay.store.listing import Listed, Listing, listing

__all__ = ["goldens"]

_SIZE, _REQUESTS = 4, 5  # columns of numbers
_HEADERS = ("trace", "made (UTC)", "engine", "model", "size", "requests")


def goldens(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PLACE", help="A folder, or its URL, such as s3://BUCKET/PREFIX.", show_default=False
        ),
    ] = ".",
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the traces below a folder or URL: name, digest, date, engine, model, size and requests.

    Looks at files that are named .pack or .trace, and at directories with a manifest. Of each it reads the
    beginning and the end.
    """
    found = listing(place)
    if as_json:
        typer.echo(json.dumps(_as_dict(found), indent=2, default=str))
        return
    _print(found, report_console())


def _as_dict(found: Listing) -> dict[str, object]:
    traces = [asdict(trace) for trace in found.traces]
    return {"schema": 1, "place": found.place, "traces": traces, "others": found.others, "left": found.left}


def _print(found: Listing, console: Console) -> None:
    if found.traces:
        rows = [Row(list(map(cell, _cells(trace))), below=_below(trace)) for trace in found.traces]
        print_rows(console, _HEADERS, rows, right=(_SIZE, _REQUESTS))
    else:
        tell(f"There is no trace below {found.place}: no .pack, no .trace and no directory with a manifest.")
    if found.others:
        indented(console, f"and {found.others} other files", style="dim")
    if found.left:
        tell(f"{found.place} has more files than were looked through; give a folder in it.")


def _cells(trace: Listed) -> tuple[str, ...]:
    made = "" if trace.began is None else trace.began[:16].replace("T", " ")
    engine = " ".join(filter(None, (trace.engine, trace.version)))
    model = "" if trace.model is None else trace.model.rstrip("/").rpartition("/")[2]
    requests = "" if trace.requests is None else str(trace.requests)
    return trace.name, made, engine, model, size_words(trace.size), requests


def _below(trace: Listed) -> list[Text]:
    """What a check's row asks for, or why it cannot be told."""
    if trace.error is not None:
        return [cell(trace.error, STYLE["inconclusive"])]
    if trace.digest is None:
        why = "its key is not at hand" if trace.complete else "it is not complete"
        return [cell(f"digest not known: {why}", "dim")]
    kind = "" if trace.kind == "recording" else f", a {trace.kind}"
    return [cell(f"digest {trace.digest}{kind}", "dim")]
