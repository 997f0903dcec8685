"""A verdict for people at a terminal: the answer first, then where, then how much, then what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracereplay.report import bisection, inside, isolated, oracle, rollout
from tracereplay.report.clean import clean
from tracereplay.report.layout import STYLE, cell, grid, indented, more, print_table, section
from tracereplay.report.words import (
    CAUSES,
    allowance,
    headline,
    multiple,
    number,
    passing,
    percent,
    shorten,
    source,
)
from tracereplay.verdict import (
    Divergence,
    EdgeFinding,
    Metrics,
    OperatorFinding,
    Pairing,
    TokenDivergence,
    TokenFinding,
    Verdict,
)
from tracereplay.verdict.census import CensusFinding
from tracereplay.verdict.measures import rounded_up, severity

__all__ = ["render"]

# Rows of each list; the whole report stays under 50 lines.
SETTINGS, OPERATORS, EDGES, PAIRS, ROUTERS, LEFT_OUT, NOTES, REASONS = 6, 10, 4, 4, 3, 4, 3, 4

TIMES = "; 0.5x: half the tolerance would pass"  # what the column of errors says


def render(verdict: Verdict, console: Console, *, everything: bool = False) -> None:
    """Prints ``verdict``.

    Args:
        verdict: what to print.
        console: where to print; no colours if it is not a terminal.
        everything: print every site, edge, setting and note, not only classes and the first few.
    """
    _headline(verdict, console)
    _sides(verdict, console)
    _settings(verdict, console, everything)
    _tokens(verdict.tokens, console)
    if verdict.rollout is not None and (everything or verdict.rollout.abs_diff.max > 0):
        rollout.render(verdict.rollout, console, everything=everything)
    if verdict.bisection is not None:
        bisection.render(verdict, verdict.bisection, console, everything=everything)
    if verdict.first_divergence is not None:
        _divergence(verdict, verdict.first_divergence, console)
    if verdict.kernels is not None:
        inside.render(verdict.kernels, console)
    if verdict.oracle is not None:
        oracle.render(verdict.oracle, console, everything=everything)
    if verdict.isolated is not None:
        isolated.render(verdict.isolated, console, everything=everything)
    _operators(verdict, console, everything)
    _edges(verdict, console, everything)
    _pairs(verdict, console, everything)
    _routing(verdict, console, everything)
    _left_out(verdict, console, everything)
    _notes(verdict, console, everything)


def _headline(verdict: Verdict, console: Console) -> None:
    line = Text(verdict.verdict.upper(), style=STYLE[verdict.verdict])
    line.append(f"  {headline(verdict)}", style="bold")
    console.print(line)
    first = 1 if verdict.verdict == "inconclusive" else 0
    for reason in verdict.reasons[first : first + REASONS]:
        indented(console, clean(reason))
    if verdict.cause not in (None, "operator", "edge") and not verdict.reasons:
        indented(console, CAUSES[str(verdict.cause)])


def _sides(verdict: Verdict, console: Console) -> None:
    console.print()
    table = grid("left", "*left")
    table.add_row(cell("golden", "dim"), cell(source(verdict.golden)))
    table.add_row(cell("candidate", "dim"), cell(source(verdict.candidate)))
    console.print(table)


def _settings(verdict: Verdict, console: Console, everything: bool) -> None:
    differ = verdict.settings_diff
    shown = differ if everything else [d for d in differ if d.effect != "none"][:SETTINGS]
    if not shown:
        return
    section(console, "Settings that differ")
    width = max(12, (console.width - 46) // 2)
    table = grid("left", "left", "left")
    for d in shown:
        values = f"{_end(d.golden, width)} → {_end(d.candidate, width)}"
        table.add_row(cell(shorten(d.name, 30)), cell(values), cell(d.effect, STYLE[d.effect]))
    print_table(console, table)
    more(console, len(differ) - len(shown))


def _end(value: object, width: int) -> str:
    return "unset" if value is None else shorten(str(value), width)


def _tokens(tokens: TokenFinding, console: Console) -> None:
    if not tokens.compared and tokens.logprob_max is None:
        return
    section(console, "Tokens", _limits(tokens))
    first = tokens.first_divergence
    words = f"{tokens.compared} greedy tokens compared, "
    words += f"{tokens.differing} differ" if tokens.differing else "all the same"
    if first is not None:
        words += f", first in request {_named(first)} at position {first.position}: "
        words += f"{first.golden} → {first.candidate}"
    indented(console, words)
    if tokens.logprob_max is not None:
        most, mean = number(tokens.logprob_max), number(tokens.logprob_mean)
        same = "logprobs of golden tokens are the same"
        words = f"logprobs of golden tokens differ by {most} at most, {mean} on average"
        indented(console, words if tokens.logprob_max else same)


def _limits(tokens: TokenFinding) -> str:
    """The limits of a policy that would have passed; empty if nothing differs."""
    if not (tokens.differing or tokens.logprob_max):
        return ""
    drift = number(rounded_up(tokens.logprob_max or 0.0))
    return f"  would pass: [tokens] differing = {tokens.differing}, [logprobs] max_abs = {drift}"


def _divergence(verdict: Verdict, first: Divergence, console: Console) -> None:
    own = verdict.mode in ("injected", "isolated")
    section(
        console,
        "First divergence" if own else "First visible divergence",
        "" if own else "  (it may be inherited)",
    )
    table = grid("left", "*left")
    for name, value in _places(first):
        table.add_row(cell(name, "dim"), value)
    print_table(console, table)


def _places(first: Divergence) -> list[tuple[str, Text]]:
    metrics = first.metrics
    what = f"output {first.index}" if first.kind == "operator" else f"input {first.index}, as it arrives"
    operator = f" ({first.operator})" if first.operator else ""
    row = f"request {_named(first)}, sequence {first.sequence}, position {first.position}, step {first.step}"
    return [
        ("where", cell(f"{first.site}{operator}, {what}", "bold")),
        *([("kernel", cell(first.kernel, "bold"))] if first.kernel else []),
        ("row", cell(row)),
        ("class", cell(first.error_class, STYLE[first.error_class])),
        ("error", cell(_error(metrics))),
        ("allowance", cell(allowance(first.tolerance))),
        ("would pass", cell(passing(first.error_class, first.passing_tolerance, first.passing_bias))),
    ]


def _named(first: Divergence | TokenDivergence) -> str:
    """The request's number, and its id where that is known."""
    return str(first.request) if first.request_id is None else f"{first.request} ({clean(first.request_id)})"


def _error(metrics: Metrics) -> str:
    worst = metrics.worst
    at = "" if worst is None else f" (element {worst.index}: {number(worst.golden)} → {number(worst.candidate)})"
    times = multiple(metrics) + (" the allowance" if math.isfinite(metrics.allowance_ratio) else "")
    nonfinite = f", {metrics.nonfinite} not finite" if metrics.nonfinite else ""
    return (
        f"{times}{at}{nonfinite}; relative L2 {number(metrics.relative_l2)}, bias {metrics.bias_ulp:+.2g} ulp, "
        f"{percent(metrics.equal)} bitwise equal"
    )


def _severity(finding: OperatorFinding | EdgeFinding) -> tuple[int, float, float]:
    metrics = finding.metrics
    return *severity(finding.error_class, metrics.allowance_ratio), metrics.relative_l2


_INPUTS = {"injected": "on golden inputs", "isolated": "in isolation, on golden inputs"}


def _operators(verdict: Verdict, console: Console, everything: bool) -> None:
    ranked = sorted(verdict.operators, key=_severity, reverse=True)
    if not ranked:
        return
    kinds: dict[str, list[OperatorFinding]] = {}
    for finding in ranked:
        kinds.setdefault(finding.site if everything else finding.operator, []).append(finding)
    differ = [found for found in kinds.values() if everything or found[0].error_class != "identical"]
    inputs = _INPUTS.get(verdict.mode, "on inherited inputs")
    section(console, "Operators", f"  {inputs}, worst first{TIMES if differ else ''}")
    if differ:
        table = _measures(console, "operator", "differ")
        for found in differ if everything else differ[:OPERATORS]:
            _measure(table, found[0], cell(_count(found)), console.width)
        print_table(console, table)
    if not everything:
        more(console, len(differ) - OPERATORS)
        _identical(console, [found for found in kinds.values() if found[0].error_class == "identical"])


def _identical(console: Console, kinds: Sequence[Sequence[OperatorFinding]]) -> None:
    """One line for all operator classes that are identical bit for bit."""
    if kinds:
        names = ", ".join(f"{clean(found[0].operator)} ({len(found)})" for found in kinds)
        line = Text("identical: ", style=STYLE["identical"]).append(names, style="default")
        console.print(Padding(line, (0, 0, 0, 2), expand=False))


def _count(found: Sequence[OperatorFinding]) -> str:
    """How many sites differ, of how many."""
    differ = sum(f.error_class != "identical" for f in found)
    return f"{differ} of {len(found)}"


def _measures(console: Console, *names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("class", no_wrap=True)
    table.add_column(names[0], no_wrap=True)
    table.add_column(names[1], no_wrap=True)
    table.add_column("worst at", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    if console.width >= 100:
        table.add_column("relative L2", justify="right", no_wrap=True)
        table.add_column("equal", justify="right", no_wrap=True)
    return table


def _measure(table: Table, finding: OperatorFinding | EdgeFinding, second: Text, width: int) -> None:
    wide = width >= 100
    site = shorten(finding.site, width - (86 if wide else 58))
    operator = shorten(finding.operator, 26 if wide else 20)
    metrics = finding.metrics
    compared = finding.error_class != "incomparable"
    cells = [
        cell(finding.error_class, STYLE[finding.error_class]),
        cell(operator),
        second,
        cell("" if finding.error_class == "identical" else site),
        cell(multiple(metrics) if compared and metrics.allowance_ratio else ""),
    ]
    if wide:
        cells += [cell(number(metrics.relative_l2) if compared else ""), cell(percent(metrics.equal))]
    table.add_row(*cells)


def _edges(verdict: Verdict, console: Console, everything: bool) -> None:
    differ = sorted((e for e in verdict.edges if e.error_class != "identical"), key=_severity, reverse=True)
    if not differ:
        return
    same = len(verdict.edges) - len(differ)
    section(console, "Edges that differ", f"  inputs as they arrive at an operator; {same} are identical")
    table = _measures(console, "into", "input")
    for edge in differ if everything else differ[:EDGES]:
        _measure(table, edge, cell(edge.input), console.width)
    print_table(console, table)
    if not everything:
        more(console, len(differ) - EDGES)


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
        site, pair = found[0]
        words = _paired(site, pair, None if everything else console.width)
        indented(console, f"{words} ({clean(pair.paired_by)}{others})")
    more(console, 0 if everything else len(kinds) - PAIRS)


def _paired(site: str, pair: Pairing, width: int | None) -> str:
    """One pair in words; where there is little room, only the ends of the names."""
    first, *rest = (pair.golden_site or site).split(" | ")
    golden = " | ".join([first, *(name.rpartition(".")[2] for name in rest)])
    if width is not None:
        site, golden = (shorten(name, max(20, width // 2 - 18)) for name in (site, golden))
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
    table = grid("left", "right", "right", "right")
    for router in shown:
        near = "" if router.near_ties is None else f"{router.near_ties} near ties"
        cells = shorten(router.site, max(20, console.width - 50)), f"{router.rows} rows", f"{router.flips} flips"
        table.add_row(*map(cell, cells), cell(near))
    print_table(console, table)
    more(console, len(told) - len(shown))


def _left_out(verdict: Verdict, console: Console, everything: bool) -> None:
    coverage = verdict.coverage
    reasons: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    for left in coverage.not_compared:
        reasons.setdefault(left.reason, []).append(left.site)
        rows[left.reason] = rows.get(left.reason, 0) + left.rows
    section(console, "Coverage", f"  {coverage.compared_calls} of {coverage.golden_calls} calls compared")
    shown = list(reasons.items()) if everything else list(reasons.items())[:LEFT_OUT]
    for reason, sites in shown:
        where = ", ".join(map(clean, sites)) if everything else _sites(sites, console.width)
        indented(console, f"{rows[reason]} rows not compared: {clean(reason)}; {where}")
    more(console, len(reasons) - len(shown))
    _census(coverage.census, console, everything)


def _census(census: CensusFinding, console: Console, everything: bool) -> None:
    """What computes and was not recorded as an operator."""
    unobserved = census.unobserved
    shown = unobserved if everything else unobserved[:LEFT_OUT]
    for row in shown:
        name = shorten(row.module or "(the model)", max(20, console.width // 2))
        indented(console, f"Unobserved: {clean(name)} ({clean(row.kind)}) computes in {row.calls} calls")
    more(console, len(unobserved) - len(shown))


def _sites(sites: Sequence[str], width: int) -> str:
    name = shorten(sites[0], max(20, width // 2))
    return name if len(sites) == 1 else f"{name} and {len(sites) - 1} more sites"


def _notes(verdict: Verdict, console: Console, everything: bool) -> None:
    notes = verdict.notes if everything else verdict.notes[:NOTES]
    if not notes:
        return
    section(console, "Notes")
    for note in notes:
        indented(console, clean(note))
    more(console, len(verdict.notes) - len(notes))
