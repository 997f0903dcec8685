"""Errors against float64 references, for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tracereplay.report.clean import clean
from tracereplay.report.layout import cell, indented, more, print_table, section
from tracereplay.report.words import short_kernel, shorten
from tracereplay.verdict.oracle import NEARER, Nearer, NotCovered, Oracle, OracleError, OracleFinding

__all__ = ["render"]

KINDS, LEFT = 12, 4  # rows of each list
_STYLE: dict[Nearer, str] = {"golden nearer": "yellow", "candidate nearer": "yellow", "equal": "green"}


def render(found: Oracle, console: Console, *, everything: bool = False) -> None:
    """Prints ``found``: one line per class of operator (or kernel) and output, unequal ones first."""
    inputs = "on golden inputs" if found.same_inputs else "each on its own inputs"
    section(console, "Oracle", f"  errors against float64 references, {inputs}")
    kinds: dict[tuple[str, ...], list[OracleFinding]] = {}
    for finding in found.findings:
        name = finding.kernel or finding.operator
        kinds.setdefault((name, f"{finding.output}", finding.site if everything else ""), []).append(finding)
    ranked = sorted(kinds.items(), key=lambda pair: _judgement(pair[1]) == "equal")
    differ = [pair for pair in ranked if everything or max(_errors(pair[1])) > 0]
    if differ:
        print_table(console, _table(differ if everything else differ[:KINDS], console.width))
    if not everything:
        more(console, len(differ) - KINDS)
        exact = [clean(short_kernel(key[0])) for key, found_ in ranked if max(_errors(found_)) == 0]
        if exact:
            indented(console, f"exact on both sides: {', '.join(dict.fromkeys(exact))}")
    _left_out(found.not_covered, console, everything)


def _table(kinds: Sequence[tuple[tuple[str, ...], list[OracleFinding]]], width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("L2 error (bias, ulp)", no_wrap=True)
    for name in ("golden", "candidate"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("more accurate", no_wrap=True)
    for (name, output, site), found in kinds:
        shown = short_kernel(name) + (f" {output}" if output != "0" else "") + (f" {site}" if site else "")
        sides = [[getattr(f, side) for f in found] for side in ("golden", "candidate")]
        judgement = _judgement(found)
        count = sum(f.nearer == judgement for f in found)
        of = f" ({count} of {len(found)})" if count < len(found) else ""
        words = [cell(f"{_rms(side):.2g} ({_lean(side):+.2f})") for side in sides]
        nearer = judgement.removesuffix(" nearer") + of
        table.add_row(cell(shorten(shown, max(24, width - 56))), *words, cell(nearer, _STYLE[judgement]))
    return table


def _judgement(found: Sequence[OracleFinding]) -> Nearer:
    """The judgement of most sites."""
    return max(NEARER, key=lambda words: sum(f.nearer == words for f in found))


def _errors(found: Sequence[OracleFinding]) -> list[float]:
    return [error.relative_l2 for f in found for error in (f.golden, f.candidate)]


def _rms(errors: Sequence[OracleError]) -> float:
    return float((sum(e.relative_l2**2 for e in errors) / len(errors)) ** 0.5)


def _lean(errors: Sequence[OracleError]) -> float:
    return sum(e.lean_ulp for e in errors) / len(errors)


def _left_out(left: Sequence[NotCovered], console: Console, everything: bool) -> None:
    reasons: dict[tuple[str, str], list[NotCovered]] = {}
    for one in left:
        reasons.setdefault((one.operator, one.reason), []).append(one)
    shown = list(reasons.items()) if everything else list(reasons.items())[:LEFT]
    for (operator, reason), found in shown:
        sites = f" ({len(found)} sites)" if len(found) > 1 else ""
        indented(console, f"no reference: {clean(operator)}{sites}: {clean(reason)}")
    more(console, len(reasons) - len(shown))
