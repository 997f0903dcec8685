"""What ran inside one operator on each side, for people at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracereplay.report.clean import clean
from tracereplay.report.layout import STYLE, cell, indented, print_table, section
from tracereplay.report.words import multiple, short_kernel, shorten
from tracereplay.verdict.inside import Inside, KernelRow
from tracereplay.verdict.measures import ErrorClass, Metrics

__all__ = ["render"]


def render(found: Inside, console: Console) -> None:
    """Prints ``found``: the two sequences side by side, then the values that both sides compute."""
    why = "the first that diverges" if found.why == "first divergence" else "the largest error, within tolerance"
    section(
        console, "Kernels", f"  inside {clean(found.operator)} at {clean(found.site)}, step {found.step}: {why}"
    )
    if found.not_compared is not None:
        indented(console, f"not compared: {clean(found.not_compared)}")
        return
    print_table(console, _side_by_side(found, console.width))
    if found.shared:
        indented(console, "Values that both sides compute:")
        print_table(console, _shared(found))
    if found.first is not None:
        row = found.rows[found.first]
        indented(
            console,
            f"The first to differ on the same inputs: {clean(row.golden)}, line {found.first + 1}.",
        )


def _side_by_side(found: Inside, width: int) -> Table:
    table = _table("", "golden", "candidate", "result", "differs")
    room = max(16, (width - 58) // 2)
    for n, row in enumerate(found.rows, 1):
        names = [
            cell("" if name is None else shorten(short_kernel(name), room)) for name in (row.golden, row.candidate)
        ]
        table.add_row(cell(n, "dim"), *names, cell(shorten(row.result, 18)), _words(row))
    return table


def _words(row: KernelRow) -> Text:
    if row.error_class is None or row.metrics is None:
        return Text("")
    inherited = "" if row.inputs in (None, "identical") else " inherited"
    return _class(row.error_class, row.metrics).append(inherited, style="dim")


def _class(error_class: ErrorClass, metrics: Metrics) -> Text:
    error = "" if error_class == "identical" else f" {multiple(metrics)}"
    return cell(f"{error_class}{error}", STYLE[error_class])


def _shared(found: Inside) -> Table:
    table = _table("golden, line", "candidate, line", "differs")
    for value in found.shared:
        theirs = short_kernel(found.rows[value.candidate].candidate or "")
        table.add_row(
            cell(f"{value.golden + 1}: {value.result}"), cell(f"{value.candidate + 1}: {theirs}"),
            _class(value.error_class, value.metrics),
        )  # fmt: skip
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table
