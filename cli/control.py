"""``tracereplay status``, ``start``, ``stop``, ``trigger`` and ``set``: a recording that runs."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tracereplay.cli.capture_options import WhenBehind
from tracereplay.errors import NothingRuns, UsageError
from tracereplay.launch.control import ask
from tracereplay.launch.shown import prometheus
from tracereplay.report.clean import clean

__all__ = ["set_", "start", "status", "stop", "trigger"]

WATCH_EVERY = 1.0  # seconds

Recorded = Annotated[
    Path, typer.Argument(metavar="TRACE", help="Trace or directory that is being recorded into (record's -o).")
]


def status(
    trace: Recorded,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print the text format of Prometheus.")
    ] = False,
    textfile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the text format there, in one step, for a textfile collector.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until Ctrl-C, once a second.")] = False,
) -> None:  # fmt: skip
    """Show how a running recording goes: what it keeps and costs, bytes, steps, drops, the last error."""
    if sum((as_json, as_prometheus, textfile is not None, watch)) > 1 and not (as_prometheus and textfile):
        raise UsageError("Give one of --json, --prometheus (with or without --textfile) and --watch.")
    found = ask(trace, {"do": "status"})
    if textfile is not None:
        _put(textfile, prometheus(found))
    elif as_json:
        typer.echo(json.dumps(found, indent=2))
    elif as_prometheus:
        typer.echo(prometheus(found), nl=False)
    elif watch:
        _watch(trace, found)
    else:
        for name, value in rows(found):
            typer.echo(f"{name:<11}{clean(value)}")


def start(trace: Recorded) -> None:
    """Go on recording: after stop, record --paused, or (into a collection) after a failure."""
    found = ask(trace, {"do": "start"})
    if not found["changed"]:
        typer.echo("It is being recorded already.")
        return
    typer.echo(
        "It is being recorded." if found["took_effect"] else "It is recorded from the engine's next step on."
    )


def stop(trace: Recorded) -> None:
    """Pause a running recording; the recorded command goes on, and start resumes it."""
    found = ask(trace, {"do": "stop"})
    if not found["changed"]:
        typer.echo("It is paused already.")
        return
    typer.echo("Paused." if found["took_effect"] else "Paused from the engine's next step on.")


def trigger(
    trace: Recorded,
    why: Annotated[str, typer.Argument(help="What happened; the trace says so.")] = "asked for",
) -> None:
    """Keep what a flight recorder has in a trace of its own; without one, begin the next trace of a collection."""
    found = ask(trace, {"do": "trigger", "why": why})
    typer.echo(clean(str(found["trace"])))


def set_(
    trace: Recorded,
    sites: Annotated[
        list[str], typer.Option(metavar="GLOB", help="Sites to keep; may be repeated.", show_default=False)
    ] = [],  # noqa: B006
    sides: Annotated[
        str | None, typer.Option(metavar="in,out", help="Which sides of calls to keep.", show_default=False)
    ] = None,
    when_behind: Annotated[
        WhenBehind | None,
        typer.Option(help="What to do when the writer cannot keep up.", show_default=False),
    ] = None,
    options: Annotated[
        list[str],
        typer.Option("--option", metavar="NAME=JSON", help="Any other option of a recording.", show_default=False),
    ] = [],  # noqa: B006
) -> None:
    """Change what a running recording keeps, from the engine's next step on."""
    changed: dict[str, Any] = {}
    if sites:
        changed["sites"] = sites
    if sides is not None:
        changed["sides"] = [side for side in sides.split(",") if side]
    if when_behind is not None:
        changed["when_behind"] = when_behind.value
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise UsageError(f"--option {option} has no value; give NAME=JSON, as in max_steps=100.")
        try:
            changed[name] = json.loads(value)
        except ValueError:
            changed[name] = value
    if not changed:
        raise UsageError("No option was given that should be changed; see tracereplay set --help.")
    found = ask(trace, {"do": "set", "options": changed})["options"]
    for name in changed:
        typer.echo(clean(f"{name} = {json.dumps(found[name])}"))


def rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A status in words."""
    cost, traces, options = found["cost"], found["traces"], found["options"]
    shares = [f"{cost[key]:.1%} {words}" for key, words in _COSTS if cost[key] is not None]
    said = [
        ("state", found["state"]),
        ("since", f"{found['since']} ({_time(found['seconds'])})"),
        ("command", " ".join(found["command"])),
        ("keeps", f"{', '.join(options['sites']) or 'tokens only'}; {', '.join(options['sides'])}"),
        ("trace", found["trace"]),
        ("steps", f"{found['steps']}; {found['recorded']} recorded, {found['dropped']} dropped, "
                  f"{found['unrecorded']} while paused or ended"),
        ("bytes", f"{found['bytes'] / 1e6:.1f} MB"
                  + (f"; {found['free'] / 1e9:.1f} GB are free" if found["free"] is not None else "")),
        ("cost", "of recorded steps: " + ", ".join(shares) if shares else "not known yet"),
        ("last error", found["last_error"] or "none"),
    ]  # fmt: skip
    if found["collection"]:
        said.insert(5, ("traces", f"{traces['finished']} finished, {traces['incomplete']} of them incomplete; "
                                  f"{traces['removed']} removed"))  # fmt: skip
    if found["triggers"]:
        last = found["triggers"][-1]
        said.append(("triggered", f"{last['kind']}: {last['detail']}"))
    return said


_COSTS = (("taps", "in taps"), ("hand_over", "before and after the model"))


def _time(seconds: float) -> str:
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _put(file: Path, text: str) -> None:
    """Writes a file in one step: a collector never reads half of it."""
    try:
        fd, partial = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(fd, "w") as out:
                out.write(text)
            os.chmod(partial, 0o644)  # a collector is another user
            os.replace(partial, file)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        raise UsageError(f"--textfile {file} cannot be written: {error.strerror}.") from error


def _watch(trace: Path, found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.live import Live

    # Ctrl-C and the recording's end are how watching ends.
    with (
        contextlib.suppress(KeyboardInterrupt, NothingRuns),
        Live(_table(rows(found)), console=Console(highlight=False), auto_refresh=False) as live,
    ):
        while True:
            time.sleep(WATCH_EVERY)
            live.update(_table(rows(ask(trace, {"do": "status"}))), refresh=True)


def _table(said: Sequence[tuple[str, str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in said:
        table.add_row(Text(name, style="bold"), Text(clean(value)))
    return table
