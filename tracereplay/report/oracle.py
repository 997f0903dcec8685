"""Errors against float64 references, for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from tracereplay.report.clean import clean
from tracereplay.report.layout import Row, cell, indented, more, print_rows, section
from tracereplay.report.words import short_kernel
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
        _kinds(differ if everything else differ[:KINDS], console)
    if not everything:
        more(console, len(differ) - KINDS)
        exact = [clean(short_kernel(key[0])) for key, found_ in ranked if max(_errors(found_)) == 0]
        if exact:
            indented(console, f"exact on both sides: {', '.join(dict.fromkeys(exact))}")
    _left_out(found.not_covered, console, everything)


def _kinds(kinds: Sequence[tuple[tuple[str, ...], list[OracleFinding]]], console: Console) -> None:
    rows = []
    for (name, output, site), found in kinds:
        shown = short_kernel(name) + (f" {output}" if output != "0" else "") + (f" {site}" if site else "")
        sides = [[getattr(f, side) for f in found] for side in ("golden", "candidate")]
        judgement = _judgement(found)
        count = sum(f.nearer == judgement for f in found)
        of = f" ({count} of {len(found)})" if count < len(found) else ""
        words = [cell(f"{_rms(side):.2g} ({_lean(side):+.2f})") for side in sides]
        nearer = judgement.removesuffix(" nearer") + of
        rows.append(Row([cell(shown), *words, cell(nearer, _STYLE[judgement])]))
    headers = "L2 error (bias, ulp)", "golden", "candidate", "more accurate"
    print_rows(console, headers, rows, right=(1, 2))


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
