"""Operators, edges and routers of a verdict for people: classes first, with the sites that they are at."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tracereplay.report.clean import clean
from tracereplay.report.layout import STYLE, Row, cell, indented, more, print_rows, section
from tracereplay.report.names import listed
from tracereplay.report.words import count, integral, multiple, number, percent
from tracereplay.verdict import EdgeFinding, OperatorFinding, Pairing, Verdict
from tracereplay.verdict.measures import severity

__all__ = ["render"]

OPERATORS, EDGES, PAIRS, ROUTERS = 10, 4, 4, 3  # rows of each list
SITES = 3  # groups of sites below a row
_WIDE = 100  # columns from which on more is told of each error

_INPUTS = {"injected": "given golden's inputs", "isolated": "run by themselves on golden's inputs"}


def render(verdict: Verdict, console: Console, *, everything: bool = False) -> None:
    """Prints what differs of ``verdict``'s operators, edges and routers, and how its operators were paired."""
    _operators(verdict, console, everything)
    _edges(verdict, console, everything)
    _pairs(verdict, console, everything)
    _routing(verdict, console, everything)


def _severity(finding: OperatorFinding | EdgeFinding) -> tuple[int, float, float]:
    metrics = finding.metrics
    return *severity(finding.error_class, metrics.allowance_ratio), metrics.relative_l2


def _legend(ranked: Sequence[OperatorFinding | EdgeFinding]) -> str:
    """What percentages mean, if there are any."""
    if not any(multiple(f.metrics).endswith(("%", "times")) for f in ranked if _measured(f)):
        return ""
    strict = any(f.tolerance is not None and f.tolerance.source == "strict" for f in ranked)
    return f", worst first; 100% is what is allowed{' by default: here bits may not differ' if strict else ''}"


def _measured(finding: OperatorFinding | EdgeFinding) -> bool:
    return finding.error_class not in ("identical", "incomparable") and bool(finding.metrics.allowance_ratio)


# -- operators ----------------------------------------------------------------------------------------------


def _operators(verdict: Verdict, console: Console, everything: bool) -> None:
    ranked = sorted(verdict.operators, key=_severity, reverse=True)
    if not ranked:
        return
    section(console, "Operators", f"  {_INPUTS.get(verdict.mode, 'on their own inputs')}{_legend(ranked)}")
    if everything:
        rows = [Row([cell(f.site), cell(f.operator), *_measures(f, wide=True)]) for f in ranked]
        print_rows(console, ("at", "operator", *_headers(wide=True)), rows, right=(3, 4, 5))
        return
    kinds: dict[str, list[OperatorFinding]] = {}
    for finding in ranked:
        kinds.setdefault(finding.operator, []).append(finding)
    unseen = [found for found in kinds.values() if found[0].error_class == "incomparable"]
    differ = [found for found in kinds.values() if found[0].error_class not in ("identical", "incomparable")]
    if differ:
        wide = console.width >= _WIDE
        rows = [_kind(found, wide) for found in differ[:OPERATORS]]
        print_rows(
            console, ("operator", "differ", *_headers(wide), "worst at"), rows, right=(3, 4, 5) if wide else (3,)
        )
    more(console, len(differ) - OPERATORS)
    _named(console, "not compared", unseen)
    same = [found for found in kinds.values() if found[0].error_class == "identical"]
    _named(console, "identical, bit for bit", same)


def _kind(found: Sequence[OperatorFinding], wide: bool) -> Row:
    """A class of operators: its worst error, and where it differs."""
    differ = [f for f in found if f.error_class not in ("identical", "incomparable")]
    share = f"{len(differ)} of {len(found)}"
    below = []
    beyond = [f for f in differ if f.error_class == found[0].error_class and f.error_class != "rounding"]
    if len(beyond) > 1:
        below.append(
            Text(f"{clean(found[0].error_class)} at {listed([f.site for f in beyond], SITES)}", style="dim")
        )
    return Row([cell(found[0].operator), cell(share), *_measures(found[0], wide), cell(found[0].site)], below)


def _named(console: Console, what: str, kinds: Sequence[Sequence[OperatorFinding]]) -> None:
    """One sentence for all operator classes of which there is nothing else to say."""
    if kinds:
        names = ", ".join(f"{clean(found[0].operator)} ({len(found)})" for found in kinds)
        indented(console, f"{what}: {names}")


def _headers(wide: bool) -> tuple[str, ...]:
    return ("class", "error", *(("relative L2", "equal") if wide else ()))


def _measures(finding: OperatorFinding | EdgeFinding, wide: bool) -> list[Text]:
    metrics = finding.metrics
    compared = finding.error_class != "incomparable"
    found = [
        cell(finding.error_class, STYLE[finding.error_class]),
        cell(multiple(metrics) if _measured(finding) else ""),
    ]
    if wide:
        told = compared and not integral(finding.tolerance)
        found += [
            cell(number(metrics.relative_l2) if told else ""),
            cell(percent(metrics.equal) if compared else ""),
        ]
    return found


# -- edges --------------------------------------------------------------------------------------------------


def _edges(verdict: Verdict, console: Console, everything: bool) -> None:
    hidden = ("identical",) if everything else ("identical", "incomparable")
    differ = sorted((e for e in verdict.edges if e.error_class not in hidden), key=_severity, reverse=True)
    if not differ:
        return
    same = sum(e.error_class == "identical" for e in verdict.edges)
    section(console, "Inputs that differ", f"  as they arrive{_legend(differ)}; {same} are identical")
    kinds: dict[tuple[object, ...], list[EdgeFinding]] = {}
    for edge in differ:
        one = edge.site if everything else _pattern(edge.site)
        kinds.setdefault((one, edge.input, edge.error_class), []).append(edge)
    shown = list(kinds.values()) if everything else list(kinds.values())[:EDGES]
    wide = everything or console.width >= _WIDE
    rows = [_edge(found, wide) for found in shown]
    print_rows(console, ("into", "input", *_headers(wide)), rows, right=(3, 4, 5) if wide else (3,))
    more(console, sum(map(len, kinds.values())) - sum(map(len, shown)))


def _pattern(site: str) -> tuple[str, ...]:
    return tuple("" if part.isdigit() else part for part in site.split("."))


def _edge(found: Sequence[EdgeFinding], wide: bool) -> Row:
    first = found[0]
    where = listed(sorted((e.site for e in found), key=_by_number))
    below = [Text(f"worst at {clean(first.site)}", style="dim")] if len(found) > 1 else []
    return Row([cell(where), cell(first.input), *_measures(first, wide)], below)


def _by_number(site: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in site.split(".")]


# -- pairs and routers --------------------------------------------------------------------------------------


def _pairs(verdict: Verdict, console: Console, everything: bool) -> None:
    """Operators that golden calls otherwise, has in parts or as a part, or gives a sum; the first of each kind."""
    kinds: dict[tuple[str, ...], list[tuple[str, Pairing]]] = {}
    for finding in verdict.operators:
        if (pair := finding.pairing) is not None:
            kind = (finding.site,) if everything else (pair.relation, pair.paired_by)
            kinds.setdefault(kind, []).append((finding.site, pair))
    if not kinds:
        return
    section(console, "Paired", "  what golden names, joins or adds otherwise, by what; the first of each kind")
    for found in list(kinds.values())[: None if everything else PAIRS]:
        others = f"; {len(found) - 1} more" if len(found) > 1 else ""
        indented(console, f"{_paired(*found[0])} ({clean(found[0][1].paired_by)}{others})")
    more(console, 0 if everything else len(kinds) - PAIRS)


def _paired(site: str, pair: Pairing) -> str:
    """One pair in words."""
    first, *rest = (pair.golden_site or site).split(" | ")
    golden = " | ".join([first, *(name.rpartition(".")[2] for name in rest)])
    verbs = {
        "rename": "is",
        "join": "joins" if rest else "is a part of",
        "sum": "with its residual is",
        "reorder": "orders q, k and v otherwise than",
    }
    return clean(f"{site} {verbs.get(pair.relation, pair.relation)} {golden}")


def _routing(verdict: Verdict, console: Console, everything: bool) -> None:
    """Routers whose rows go to different experts, or nearly do."""
    told = [r for r in verdict.routing if everything or r.flips or r.near_ties]
    if not told:
        return
    section(console, "Routing", "  rows that go to different experts than in golden, or nearly do")
    shown = told if everything else sorted(told, key=lambda r: r.flips, reverse=True)[:ROUTERS]
    rows = [
        Row([
            cell(r.site), cell(f"{r.rows} rows"), cell(count(r.flips, "flip")),
            cell("" if r.near_ties is None else count(r.near_ties, "near tie")),
        ])
        for r in shown
    ]  # fmt: skip
    print_rows(console, ("", "", "", ""), rows, right=(1, 2, 3))
    more(console, len(told) - len(shown))
