"""Kernels replayed in isolation, for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracereplay.report.clean import clean
from tracereplay.report.layout import STYLE, cell, grid, indented, more, print_table, section
from tracereplay.report.words import multiple, passing, percent, short_kernel, shorten
from tracereplay.verdict.isolated import Isolated, KernelFinding, NotReplayed
from tracereplay.verdict.measures import severity

__all__ = ["render"]

DIFFERING, LEFT = 12, 8  # rows of each list


def render(found: Isolated, console: Console, *, everything: bool = False) -> None:
    """Prints ``found``: kernels that differ, worst first; then calls that were not compared, and why."""
    section(console, "Kernels", f"  {found.compared} of {found.calls} calls executed in isolation and compared")
    ranked = sorted(found.kernels, key=lambda f: severity(f.error_class, f.metrics.allowance_ratio), reverse=True)
    shown = [f for f in ranked if everything or f.error_class != "identical"]
    if shown:
        print_table(console, _table(shown if everything else shown[:DIFFERING], console.width))
    same = [f for f in ranked if f.error_class == "identical"]
    if not everything:
        more(console, len(shown) - DIFFERING)
        if same:
            names = ", ".join(dict.fromkeys(clean(short_kernel(f.kernel)) for f in same))
            indented(console, f"identical: {names}")
    _left_out(found.not_replayed, console, everything)


def _table(findings: Sequence[KernelFinding], width: int) -> Table:
    wide = width >= 110
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("class", "kernel", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in ("calls", "error", "equal", *(("bias",) if wide else ())):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("would pass", no_wrap=True)
    for f in findings:
        metrics = f.metrics
        table.add_row(
            cell(f.error_class, STYLE[f.error_class]), cell(shorten(short_kernel(f.kernel), max(26, width - 76))),
            cell(f.dtype), cell(f.calls), cell(multiple(metrics)), cell(percent(metrics.equal)),
            *(_more(f) if wide else []),
        )  # fmt: skip
    return table


def _more(finding: KernelFinding) -> list[Text]:
    """Cells that do not fit a narrow terminal."""
    passes = passing(finding.error_class, finding.passing_tolerance)
    return [cell(f"{finding.metrics.bias_ulp:+.2f} ulp"), cell(passes)]


def _left_out(left: Sequence[NotReplayed], console: Console, everything: bool) -> None:
    """Grouped by reason: crashes first, then by number of calls."""
    if not left:
        return
    reasons: dict[str, list[NotReplayed]] = {}
    for n in left:
        reasons.setdefault(n.reason, []).append(n)
    section(console, "Not compared", "  calls, and why")
    table = grid("right", "*left")
    ranked = sorted(reasons.items(), key=lambda pair: (not pair[1][0].crashed, -_calls(pair[1])))
    for reason, found in ranked if everything else ranked[:LEFT]:
        names = ", ".join(short_kernel(n.kernel) for n in found)
        table.add_row(cell(_calls(found)), cell(f"{reason}: {names}"))
    print_table(console, table)
    more(console, 0 if everything else len(ranked) - LEFT)


def _calls(left: Sequence[NotReplayed]) -> int:
    return sum(n.calls for n in left)
