"""Kernels replayed in isolation, for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tracereplay.report.clean import clean
from tracereplay.report.layout import STYLE, Row, cell, grid, indented, more, print_rows, print_table, section
from tracereplay.report.words import multiple, passing, percent, short_kernel
from tracereplay.verdict.isolated import Isolated, KernelFinding, NotReplayed
from tracereplay.verdict.measures import severity

__all__ = ["render"]

DIFFERING, LEFT = 12, 8  # rows of each list
_WIDE = 110  # columns from which on more is told of each


def render(found: Isolated, console: Console, *, everything: bool = False) -> None:
    """Prints ``found``: kernels that differ, worst first; then calls that were not compared, and why."""
    calls = f"{found.compared} of {found.calls} calls executed in isolation and compared"
    section(console, "Kernels", f"  {calls}; an error of 100% is what is allowed")
    ranked = sorted(found.kernels, key=lambda f: severity(f.error_class, f.metrics.allowance_ratio), reverse=True)
    shown = [f for f in ranked if everything or f.error_class != "identical"]
    if shown:
        _kernels(shown if everything else shown[:DIFFERING], console)
    same = [f for f in ranked if f.error_class == "identical"]
    if not everything:
        more(console, len(shown) - DIFFERING)
        if same:
            names = ", ".join(dict.fromkeys(clean(short_kernel(f.kernel)) for f in same))
            indented(console, f"identical: {names}")
    _left_out(found.not_replayed, console, everything)


def _kernels(findings: Sequence[KernelFinding], console: Console) -> None:
    wide = console.width >= _WIDE
    rows = [
        Row([
            cell(short_kernel(f.kernel)), cell(f.error_class, STYLE[f.error_class]), cell(f.dtype), cell(f.calls),
            cell(multiple(f.metrics)), cell(percent(f.metrics.equal)), *(_more(f) if wide else []),
        ])
        for f in findings
    ]  # fmt: skip
    names = "kernel", "class", "dtype", "calls", "error", "equal"
    print_rows(console, (*names, *(("bias", "to allow it") if wide else ())), rows, right=range(3, 7))


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
