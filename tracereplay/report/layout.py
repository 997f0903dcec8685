"""Building blocks of terminal reports."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracereplay.report.clean import clean

__all__ = ["STYLE", "cell", "grid", "indented", "more", "print_table", "section"]

# Colours of outcomes, classes of error and effects of settings.
STYLE = {
    "match": "bold green", "diverged": "bold red", "inconclusive": "bold yellow", "identical": "green",
    "rounding": "cyan", "biased": "red", "exceeds": "red", "nonfinite": "bold red", "incomparable": "yellow",
    "semantic": "red", "numeric": "yellow", "unknown": "magenta", "none": "dim",
}  # fmt: skip


def section(console: Console, title: str, rest: str = "") -> None:
    console.print()
    console.print(Text(title, style="bold").append(rest, style="dim"))


def grid(*columns: str) -> Table:
    """A table without lines; columns are given by their justification, with ``*`` before it to let them wrap."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        justify = column.lstrip("*")
        table.add_column(justify="right" if justify == "right" else "left", no_wrap=not column.startswith("*"))
    return table


def print_table(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def indented(console: Console, words: str) -> None:
    console.print(Padding(Text(words), (0, 0, 0, 2), expand=False))


def cell(value: object, style: str = "") -> Text:
    return Text(clean(value), style=style)


def more(console: Console, count: int) -> None:
    if count > 0:
        console.print(Text(f"  and {count} more", style="dim"))
