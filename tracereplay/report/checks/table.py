"""What came of checks, for people at a terminal: a row each, and below what is not as expected."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracereplay.checks import Result, Results
from tracereplay.report.checks.words import harmless, outcome, reasons, said
from tracereplay.report.clean import clean

__all__ = ["render"]

_STYLE = {"match": "green", "diverged": "red", "inconclusive": "yellow", "failed": "bold red"}
_WIDE = 10_000  # columns where nobody's terminal limits them


def render(results: Results, console: Console) -> None:
    """Prints a table of all rows, and below it what is not as expected. Nothing is cut where no terminal is."""
    if not console.is_terminal:
        console.width = _WIDE
    console.print(_table(results))
    for result in results.unmet:
        _unmet(result, console)
    console.print()
    style = "bold red" if results.unmet else "bold green"
    console.print(Text(f"{results.words}, {results.seconds:.0f} s", style=style))


def _table(results: Results) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in ("check", "engine", "verdict", "expected"):
        table.add_column(column, overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for result in results.results:
        table.add_row(
            Text(clean(result.check.name)),
            Text(clean(result.check.engine)),
            Text(outcome(result), style=_STYLE[result.outcome]),
            Text(result.check.expected),
            Text("ok", style="green") if result.met else Text("NOT OK", style="bold red"),
            Text(f"{result.seconds:.0f} s"),
        )
    return table


def _unmet(result: Result, console: Console) -> None:
    console.print()
    console.print(Text(clean(result.check.name), style="bold"))
    lines = [said(result), *reasons(result)]
    lines += [f"| {clean(line)}" for line in result.last_lines.splitlines()]
    for line in lines:
        console.print(Padding(Text(harmless(line)), (0, 0, 0, 2), expand=False))
    console.print(Text(f"  Next: {clean(result.next_command)}"), soft_wrap=True)  # whole, so that it can be pasted
