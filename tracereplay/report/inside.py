"""What ran inside one operator on each side, for people at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from tracereplay.report.clean import clean
from tracereplay.report.layout import STYLE, Row, cell, indented, print_rows, section
from tracereplay.report.words import multiple, short_kernel
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
    _side_by_side(found, console)
    if found.shared:
        indented(console, "Values that both sides compute:")
        _shared(found, console)
    if found.first is not None:
        row = found.rows[found.first]
        indented(
            console,
            f"The first to differ on the same inputs: {clean(row.golden)}, line {found.first + 1}.",
        )


def _side_by_side(found: Inside, console: Console) -> None:
    rows = [
        Row([
            cell(f"{n}", "dim"), *(cell(short_kernel(name or "")) for name in (row.golden, row.candidate)),
            cell(row.result), _words(row),
        ])
        for n, row in enumerate(found.rows, 1)
    ]  # fmt: skip
    print_rows(console, ("", "golden", "candidate", "result", "differs"), rows)


def _words(row: KernelRow) -> Text:
    if row.error_class is None or row.metrics is None:
        return Text("")
    inherited = "" if row.inputs in (None, "identical") else " inherited"
    return _class(row.error_class, row.metrics).append(inherited, style="dim")


def _class(error_class: ErrorClass, metrics: Metrics) -> Text:
    error = "" if error_class == "identical" else f" {multiple(metrics)}"
    return cell(f"{error_class}{error}", STYLE[error_class])


def _shared(found: Inside, console: Console) -> None:
    rows = []
    for value in found.shared:
        theirs = short_kernel(found.rows[value.candidate].candidate or "")
        lines = cell(f"{value.golden + 1}: {value.result}"), cell(f"{value.candidate + 1}: {theirs}")
        rows.append(Row([*lines, _class(value.error_class, value.metrics)]))
    print_rows(console, ("golden, line", "candidate, line", "differs"), rows)
