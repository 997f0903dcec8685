"""A check of invariance for people at a terminal: what was varied, what held, and what did not."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from tracereplay.report.clean import clean
from tracereplay.report.layout import Row, cell, indented, more, print_rows, section
from tracereplay.report.words import count
from tracereplay.verdict.invariance import FirstDifference, Invariance, RowCounts, Varied

__all__ = ["render"]

SHOWN = 8  # operators
_OUTCOME = {
    True: ("INVARIANT", "bold green", "every row has the same bits, whatever was varied"),
    False: ("NOT INVARIANT", "bold red", ""),
    None: ("UNDECIDED", "bold yellow", "nothing differed, but not all could be varied"),
}
_HELD = {True: ("yes", "green"), False: ("no", "red"), None: ("not varied", "yellow")}


def render(found: Invariance, console: Console) -> None:
    """Prints ``found``."""
    title, style, words = _OUTCOME[found.invariant]
    if found.invariant is False:
        words = "rows differ" if found.first is None else _place(found.first)
    console.print(Text(title, style=style).append(f"  {clean(words)}", style="default"))
    section(console, "Varied", f"  {count(found.requests, 'request')}, {count(found.tokens, 'token')}")
    headers = "what", "held", "rows compared", "values", "first operator"
    print_rows(console, headers, list(map(_row, found.varied)), right=(2,))
    if found.first is not None:
        _first(found.first, console)
    _operators(found, console)
    _left_out(found, console)


def _place(first: FirstDifference) -> str:
    where = f"{first.operator or 'operator'} at {first.site}"
    return f"the edge into {where}, input {first.index}" if first.kind == "edge" else where


def _row(varied: Varied) -> Row:
    words, style = _HELD[varied.held]
    values = ", ".join(map(str, varied.values))
    first = "" if varied.first is None else varied.first.site
    rows = f"{varied.rows:,}" if varied.rows else "-"
    return Row([cell(varied.what), cell(words, style), cell(rows), cell(values), cell(first)])


def _first(first: FirstDifference, console: Console) -> None:
    section(console, "First", f"  {_place(first)}, when {first.varied} was varied ({first.value})")
    rows, (request, sequence, position) = first.rows, first.rows.first
    equal = "although nothing before it differs" if first.kind == "edge" else "on equal inputs"
    indented(console, f"{rows.differing:,} of {rows.of:,} rows differ {equal}; the first is request {request}, "
                      f"sequence {sequence}, position {position}")  # fmt: skip
    indented(console, _sizes(rows))
    if rows.flips_at is not None:
        indented(console, f"It computes otherwise in calls of {rows.flips_at} rows and more.")
    elif rows.between is not None:
        low, high = rows.between
        indented(console, f"It computes otherwise from some number of rows on, from {low + 1} to {high}.")


def _sizes(rows: RowCounts) -> str:
    differing, held = ([c for c in rows.counts if bool(c.differing) is kind] for kind in (True, False))
    words = f"rows in a call that differ: {_listed([(c.base, c.variant) for c in differing])}"
    return words + (f"; that agree: {_listed([(c.base, c.variant) for c in held])}" if held else "")


def _listed(sizes: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{base} and {variant}" for base, variant in sizes[:SHOWN])
    return shown + (f" and {len(sizes) - SHOWN} more pairs" if len(sizes) > SHOWN else "")


def _operators(found: Invariance, console: Console) -> None:
    if len(found.operators) < 2:
        return
    section(console, "Operators", "  that differ on equal inputs")
    rows = []
    for own in found.operators[:SHOWN]:
        name = f"edge into {own.operator}" if own.kind == "edge" else own.operator
        counts = cell(own.varied), cell(f"{own.differing:,}"), cell(f"{own.of:,}")
        rows.append(Row([cell(name), *counts, cell(own.site)]))
    print_rows(console, ("operator", "varied", "rows", "of", "at"), rows, right=(2, 3))
    more(console, len(found.operators) - SHOWN)


def _left_out(found: Invariance, console: Console) -> None:
    unvaried = [v.what for v in found.varied if v.held is None]
    if unvaried or found.notes:
        section(console, "Not varied" if unvaried else "Notes")
    for varied in found.varied:
        if varied.held is None:
            indented(console, clean(f"{varied.what}: {varied.reason}"))
    if unvaried and found.invariant is None:
        rest = ",".join(v.what for v in found.varied if v.held is not None and v.what != "repeat")
        if rest:
            indented(console, f"--vary {rest} checks the rest alone.")
    for note in found.notes:
        indented(console, clean(note))
