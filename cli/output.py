"""What the verbs share in telling: progress on stderr, a verdict on stdout or in a file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from tracereplay.comparator.judge import judge_unrun
from tracereplay.errors import OtherWeights
from tracereplay.report import json as json_form
from tracereplay.report import terminal
from tracereplay.trace import open_trace
from tracereplay.verdict import Mode, Verdict

__all__ = ["deliver", "progress", "stderr", "weights_first", "without_empty"]

stderr = Console(stderr=True, highlight=False)


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
def weights_first(golden: Path, engine: str, json_file: str | None, mode: Mode = "injected") -> Iterator[None]:
    """Delivers a verdict of its own, and ends, if what follows finds that the weights are others than golden's."""
    try:
        yield
    except OtherWeights as found:
        with closing(open_trace(golden)) as trace:
            verdict = judge_unrun(trace, engine, found, mode)
        raise typer.Exit(deliver(verdict, json_file)) from None


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
