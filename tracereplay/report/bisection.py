"""What a bisection found, for people at a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tracereplay.report.clean import clean
from tracereplay.report.layout import Row, cell, indented, more, print_rows, section
from tracereplay.report.words import count, number
from tracereplay.verdict import Attribution, Verdict
from tracereplay.verdict.bisection import Bisection, Member

__all__ = ["render"]

MEMBERS, ROWS = 6, 12

_ROLES = {
    "all": "all together", "class": "class", "classes": "these classes", "minimal": "the set above",
    "complement": "all but that set", "sites": "site", "settings": "setting",
}  # fmt: skip


def render(verdict: Verdict, found: Bisection, console: Console, *, everything: bool = False) -> None:
    """Prints what was proved: closure, the minimal set, what each part explains, what was skipped."""
    section(console, "Bisection", f"  {_effort(found)}")
    if verdict.closure is not None:
        closure = verdict.closure
        rows = f"golden's logits bit for bit, {count(closure.rows, 'row')}"
        rest = rows if closure.held else f"other logits than golden: {clean(closure.first_broken)}"
        indented(console, f"without the own error of any operator the candidate gives {rest}")
    _minimal(found, console, everything)
    if found.tried:
        _tried(found, console)
    if verdict.attribution:
        what = "without" if found.kind == "operators" else "with golden's"
        _shares(verdict.attribution, what, console, everything)
    for left in found.skipped if everything else found.skipped[:MEMBERS]:
        indented(console, clean(f"skipped {left.name}: {left.reason}"))


def _tried(found: Bisection, console: Console) -> None:
    styles = {"good": "green", "bad": "red"}
    rows = [
        Row([cell(t.version), cell(t.outcome, styles.get(t.outcome, "yellow")), cell(t.why)]) for t in found.tried
    ]
    print_rows(console, ("", "", ""), rows)


def _effort(found: Bisection) -> str:
    starts = f"{found.engine_starts} engine start{'s' if found.engine_starts != 1 else ''}"
    passes = f"{found.passes} run{'s' if found.passes != 1 else ''}"
    return f"{passes} over {found.positions} tokens, {starts}" if found.positions else starts


def _minimal(found: Bisection, console: Console, everything: bool) -> None:
    if found.kind == "versions":
        return
    if found.minimal is None:
        if found.unexplained is not None and not found.unexplained <= 0:
            share = found.unexplained
            left = "no logprob differs" if math.isnan(share) else f"{_share(share)} remains unexplained"
            indented(console, f"nothing that was tried brings the difference within what is allowed; {left}")
        return
    what = "without the own errors of" if found.kind == "operators" else "with golden's setting of"
    proven = "" if found.proven else " (not shown to be minimal: the passes ran out)"
    indented(console, f"the candidate gives golden's tokens and logprobs, within what is allowed, {what}{proven}:")
    shown = found.minimal if everything else found.minimal[:MEMBERS]
    operators = found.kind == "operators"
    headers = ("", "", "") if operators else ("",)
    print_rows(console, headers, [Row(_member(member, operators)) for member in shown])
    more(console, len(found.minimal) - len(shown))
    if found.arguments:
        indented(console, "as arguments: " + clean(" ".join(found.arguments)))


def _member(member: Member, operator: bool) -> list[Text]:
    if not operator:
        return [cell(f"{member.name} = {member.value!r}", "bold")]
    return [
        cell(member.name, "bold"),
        cell(member.operator),
        cell(member.error_class),
    ]


def _shares(parts: Sequence[Attribution], what: str, console: Console, everything: bool) -> None:
    rows = []
    for part in parts if everything else parts[:ROWS]:
        name = _ROLES.get(part.role, part.role)
        if part.role in ("class", "sites", "settings"):
            name = ", ".join(part.operators)
        low, high = part.interval
        cells = (
            name,
            _share(part.explains),
            f"{_share(low)} to {_share(high)}" if math.isfinite(low) and math.isfinite(high) else "-",
            part.tokens_differ,
            number(part.logprob_max),
        )
        rows.append(Row([cell(value, "green" if part.restores else "") for value in cells]))
    console.print()
    indented(console, "how much of the difference goes away, and what is left of it in tokens and logprobs:")
    headers = what, "explains", "95 % interval", "tokens", "logprob"
    print_rows(console, headers, rows, right=range(1, 5))
    more(console, 0 if everything else len(parts) - ROWS)


def _share(value: float) -> str:
    """A share in percent; it may be negative, and arbitrarily large."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:.1f}%" if abs(value) < 10 else f"{100 * value:.0e}%"
