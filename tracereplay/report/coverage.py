"""What was compared, what was not and why, and what computes unobserved, for people."""

from __future__ import annotations

from rich.console import Console

from tracereplay.report.clean import clean
from tracereplay.report.layout import indented, more, section
from tracereplay.report.names import grouped, listed
from tracereplay.report.words import count
from tracereplay.verdict import Coverage
from tracereplay.verdict.census import CensusFinding

__all__ = ["print_coverage"]

LEFT_OUT, SITES = 4, 2  # reasons, and groups of sites of each


def print_coverage(coverage: Coverage, console: Console, everything: bool) -> None:
    """Prints how many of golden's calls were compared, and the reasons why others were not."""
    reasons: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    for left in coverage.not_compared:
        reasons.setdefault(left.reason, []).append(left.site)
        rows[left.reason] = rows.get(left.reason, 0) + left.rows
    section(console, "Coverage", f"  {coverage.compared_calls} of {coverage.golden_calls} calls compared")
    shown = list(reasons.items()) if everything else list(reasons.items())[:LEFT_OUT]
    for reason, sites in shown:
        where = ", ".join(map(clean, sites)) if everything else listed(sites, SITES)
        indented(console, f"{count(rows[reason], 'row')} not compared: {clean(reason)}; {where}")
    more(console, len(reasons) - len(shown))
    _census(coverage.census, console, everything)


def _census(census: CensusFinding, console: Console, everything: bool) -> None:
    """What computes and was not recorded as an operator."""
    calls = {row.module: row.calls for row in census.unobserved}
    kinds: dict[str, list[str]] = {}
    for row in census.unobserved:
        kinds.setdefault(row.kind, []).append(row.module)
    found = [
        (kind, name or "(the model)", sum(calls[one] for one in names))
        for kind, modules in kinds.items()
        for name, names in ([(clean(m), (m,)) for m in modules] if everything else
                            [(group.words, group.names) for group in grouped(modules)])
    ]  # fmt: skip
    shown = found if everything else found[:LEFT_OUT]
    for kind, name, times in shown:
        indented(console, f"Unobserved: {name} ({clean(kind)}) computes in {count(times, 'call')}")
    more(console, len(found) - len(shown))
