"""Building blocks of terminal reports: nothing that is shown is cut, it goes on on the next line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracereplay.report.clean import clean

__all__ = [
    "STYLE", "Row", "cell", "command_lines", "grid", "indented", "labelled", "more", "print_rows", "print_table",
    "report_console", "section", "sentence_room",
]  # fmt: skip

# Colours of outcomes, classes of error and effects of settings.
STYLE = {
    "match": "bold green", "diverged": "bold red", "inconclusive": "bold yellow", "identical": "green",
    "rounding": "cyan", "biased": "red", "exceeds": "red", "nonfinite": "bold red", "incomparable": "yellow",
    "semantic": "red", "numeric": "yellow", "unknown": "magenta", "none": "dim",
}  # fmt: skip

_UNBOUNDED = 100_000  # columns of what is no terminal: tables are as wide as they need
_SENTENCE = 100  # columns of sentences there
_INDENT = 2
_GAP = 2  # columns between cells
_LONGEST = 2000  # characters of a sentence or a name at a terminal
_NAME = 24  # columns that a first cell may take before others give way


def report_console(file: IO[str] | None = None) -> Console:
    """Where reports go: as wide as the terminal, or as ``COLUMNS`` says, and else as they need."""
    console = Console(file=file, highlight=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _UNBOUNDED
    return console


def sentence_room(console: Console) -> int | None:
    """Columns of a line below a row; None: it may be as long as it needs."""
    return None if console.width >= _UNBOUNDED else console.width - 2 * _INDENT


def section(console: Console, title: str, rest: str = "") -> None:
    """A heading, after an empty line."""
    console.print()
    _wrapped(console, Text().append(title, "bold").append(rest, "dim"))


def indented(console: Console, words: str, *, indent: int = _INDENT, style: str = "") -> None:
    """A sentence, below a heading."""
    _wrapped(console, Text(words, style=style), indent)


def labelled(console: Console, label: str, words: Text, width: int, style: str = "dim") -> None:
    """A sentence beside its label, whose column has that width."""
    room = _sentence_width(console) - width
    for number, line in enumerate(_lines(words, room, console)):
        console.print(Text().append(f"{label if not number else '':<{width}}", style).append_text(line))


def cell(value: object, style: str = "") -> Text:
    """A value from elsewhere, without control characters."""
    return Text(clean(value), style=style)


def more(console: Console, count: int) -> None:
    """How many are not shown."""
    if count > 0:
        console.print(Text(f"{' ' * _INDENT}and {count} more", style="dim"))


def grid(*columns: str) -> Table:
    """A table without lines; columns are given by their justification, with ``*`` before it to let them wrap."""
    table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
    for column in columns:
        justify = column.lstrip("*")
        table.add_column(justify="right" if justify == "right" else "left", no_wrap=not column.startswith("*"))
    return table


def print_table(console: Console, table: Table) -> None:
    """A table of short cells, below a heading."""
    console.print(Padding(table, (0, 0, 0, _INDENT), expand=False))


class Row:
    """A row of `print_rows`.

    Args:
        cells: one for each column.
        below: what stands in lines of its own under it: names, which may be long.
    """

    def __init__(self, cells: Sequence[Text], below: Iterable[Text] = ()) -> None:
        self.cells, self.below = list(cells), list(below)


def print_rows(console: Console, headers: Sequence[str], rows: Sequence[Row], right: Iterable[int] = ()) -> None:
    """Rows under their headers. None is cut: last columns that do not fit stand below.

    Args:
        console: where.
        headers: empty ones for columns that say what they are.
        rows: of as many cells.
        right: columns that are justified to the right.
    """
    every = [*([Row([Text(h, style="dim") for h in headers])] if any(headers) else []), *rows]
    room = console.width - _INDENT
    widths = [max(cell_len(row.cells[i].plain) for row in every) for i in range(len(headers))]
    while len(widths) > 1 and min(widths[0], _NAME) + _rest(widths) > room:
        del widths[-1]
    fitting = [w for row in every if (w := cell_len(row.cells[0].plain)) + _rest(widths) <= room]
    widths[0] = max(fitting, default=_NAME)
    for row in every:
        left = [(name, text) for name, text in zip(headers, row.cells, strict=True)][len(widths) :]
        told = [
            Text(f"{name} " if name else "", style="dim").append_text(text) for name, text in left if text.plain
        ]
        below = [] if row is every[0] and any(headers) else [*told, *row.below]
        _print_row(console, Row(row.cells[: len(widths)], below), widths, set(right))


def _rest(widths: Sequence[int]) -> int:
    return sum(widths[1:]) + _GAP * (len(widths) - 1)


def _print_row(console: Console, row: Row, widths: Sequence[int], right: set[int]) -> None:
    line, first = Text(" " * _INDENT), row.cells[0]
    if cell_len(first.plain) > widths[0]:
        _wrapped(console, first, _INDENT)
        first = Text("")
    for place, (text, width) in enumerate(zip([first, *row.cells[1:]], widths, strict=True)):
        space = " " * (width - cell_len(text.plain))
        gap = " " * _GAP if place else ""
        line.append(gap + (space if place in right else "")).append_text(text)
        line.append("" if place in right else space)
    line.rstrip()
    if line.plain:
        console.print(line, soft_wrap=True)
    for text in row.below:
        _wrapped(console, text, 2 * _INDENT)


def command_lines(words: Sequence[str], room: int = _UNBOUNDED) -> list[str]:
    """A command as it can be pasted: quoted, and with a backslash where it goes on on another line.

    Args:
        words: of the command, which may come from a trace.
        room: columns.
    """
    lines: list[str] = []
    line = ""
    quoted = [clean(shlex.quote(word)) for word in words]
    for word in _with_values(quoted):
        if line and cell_len(line) + 1 + cell_len(word) > room - 2:  # leaves room for the backslash
            lines.append(f"{line} \\")
            line = f"  {word}"
        else:
            line = f"{line} {word}" if line else word
    if len(lines) == 1 and cell_len(" ".join(quoted)) <= room:
        return [" ".join(quoted)]
    return [*lines, line]


def _with_values(words: Sequence[str]) -> list[str]:
    """The words, each option with its value."""
    found: list[str] = []
    for word in words:
        if found and found[-1].startswith("-") and " " not in found[-1] and not word.startswith("-"):
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def _sentence_width(console: Console) -> int:
    return _SENTENCE if console.width >= _UNBOUNDED else console.width


def _wrapped(console: Console, text: Text, indent: int = 0) -> None:
    for line in _lines(text, _sentence_width(console) - indent, console):
        console.print(Text(" " * indent).append_text(line), soft_wrap=True)


def _lines(text: Text, room: int, console: Console) -> list[Text]:
    """``text`` in lines of at most that many columns; where there is no terminal, words longer than that stay
    whole."""
    text = _bounded(text, console)
    if console.width < _UNBOUNDED:
        lines = list(text.wrap(console, max(room, 1)))
        for line in lines:
            line.rstrip()
        return lines
    found: list[Text] = []
    line = Text(style=text.style)
    for word in text.split(" "):
        if line.plain and cell_len(line.plain) + 1 + cell_len(word.plain) > room:
            found.append(line)
            line = Text(style=text.style)
        elif line.plain:
            line.append(" ")
        line.append_text(word)
    return [*found, line]


def _bounded(text: Text, console: Console) -> Text:
    """``text`` without the middle of what nobody would read at a terminal: a name may have any length."""
    length = len(text.plain)
    if not console.is_terminal or length <= _LONGEST:
        return text
    left = length - _LONGEST
    half = _LONGEST // 2
    return text[:half].append(f" (... {left:,} characters ...) ", "dim").append_text(text[length - half :])
