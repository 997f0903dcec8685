"""What the verbs share: progress on stderr, a verdict on stdout or in a file, ``KEY=VALUE`` options."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tracereplay.comparator import Policy, load_policy
from tracereplay.errors import UsageError
from tracereplay.report import json as json_form
from tracereplay.report import terminal
from tracereplay.report.words import clean
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict

__all__ = [
    "Force",
    "JsonFile",
    "Log",
    "PolicyFile",
    "Settings",
    "Strict",
    "assignments",
    "check_json",
    "check_log",
    "deliver",
    "policy_of",
    "progress",
    "stderr",
    "warn_of_losses",
    "without_empty",
]

stderr = Console(stderr=True, highlight=False)

Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="An argument of the engine's, such as enforce_eager=false."),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="Tolerances, as TOML.", show_default=False)
]
Strict = Annotated[bool, typer.Option("--strict", help="Tolerate nothing: every bit must be the same.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a trace that is there.")]
Log = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help="Keep everything that the engine prints.", show_default=False),
]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the verdict as JSON; - is stdout.", show_default=False),
]


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Gives a function that tells what is being done; each line has the seconds since the start."""
    begun = time.monotonic()
    with stderr.status(title) as status:

        def report(line: str) -> None:
            seconds = time.monotonic() - begun
            stderr.print(Text(f"{seconds:5.0f} s  {line}", style="dim"), soft_wrap=True)
            status.update(Text(line))

        yield report


def assignments(texts: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """``KEY=VALUE`` as a dictionary; a value that is JSON (``2``, ``true``, ``null``) as such, else as text.

    Raises:
        UsageError: a text is not of that form.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {text!r} is not of the form KEY=VALUE.")
        found[key.strip().replace("-", "_")] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def policy_of(file: Path | None, strict: bool) -> Policy:
    """The policy that ``--policy`` and ``--strict`` ask for."""
    policy = Policy() if file is None else load_policy(file)
    return policy.made_strict() if strict else policy


def check_json(file: str | None) -> None:
    """Raises UsageError if ``--json`` cannot be written, before anything slow begins."""
    if file not in (None, "-"):
        _check_file("--json", Path(str(file)))


def check_log(file: Path | None) -> None:
    """Raises UsageError if ``--log`` cannot be written, before anything slow begins."""
    if file is not None:
        _check_file("--log", file)


def _check_file(option: str, path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{option} {path} cannot be written: it is a directory.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {path} cannot be written: there is no directory {path.absolute().parent}.")


def deliver(verdict: Verdict, json_file: str | None) -> int:
    """Prints the verdict, or its JSON alone for ``-``; returns the exit code."""
    if json_file == "-":
        typer.echo(json_form.render(verdict), nl=False)
        return verdict.exit_code
    if json_file is not None:
        Path(json_file).write_text(json_form.render(verdict), encoding="utf-8")
    terminal.render(verdict, Console(highlight=False))
    return verdict.exit_code


@contextmanager
def without_empty(trace: Path | None, *, force: bool) -> Iterator[None]:
    """Removes a trace that was begun here and holds not a byte of data, if what makes it fails.

    Why: the next attempt would be told that it exists already.
    """
    ours = trace is not None and (force or not trace.exists())
    try:
        yield
    except BaseException:
        if trace is not None and ours and [path.name for path in trace.glob("*")] == ["manifest.json"]:
            shutil.rmtree(trace)
        raise


def warn_of_losses(trace: Trace) -> None:
    """Says what the recorder could not do; the engine went on without it."""
    for name, results in trace.results.items():
        for rank in results.get("ranks") or ():
            for error, times in (rank.get("errors") or {}).items():
                words = f"The pass {name} is not complete, since the recorder failed {times} times: {error}"
                stderr.print(Text(clean(words)), soft_wrap=True)
