"""Words and numbers of a verdict's findings, for the page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracereplay.report.clean import clean
from tracereplay.report.words import CAUSES, allowance, headline, multiple, number, passing, percent
from tracereplay.verdict import CLASSES, Divergence, EdgeFinding, Metrics, NotCompared, OperatorFinding, Verdict
from tracereplay.verdict.measures import severity

__all__ = [
    "INPUTS", "Kind", "after", "again", "answer", "by_class", "command", "fact_rows", "grouped", "known_class",
    "listed", "ranked_settings", "sentence", "times",
]  # fmt: skip

_EFFECTS = ("semantic", "numeric", "unknown", "none")
INPUTS = {
    "injected": "each operator was given golden's inputs, so that an error is its own",
    "isolated": "each call ran by itself on golden's inputs",
    "rerun": "nothing was fed: an error may be inherited from an earlier operator",
    "compare": "nothing was fed: an error may be inherited from an earlier operator",
}


def sentence(verdict: Verdict) -> str:
    """The outcome in one sentence."""
    words = headline(verdict)
    if verdict.verdict == "diverged":
        cause = CAUSES.get(str(verdict.cause))
        if verdict.cause in ("operator", "edge") and verdict.first_divergence is not None:
            verb = (
                "computes something different" if verdict.cause == "operator" else "delivers something different"
            )
            return f"{words[:1].upper()}{words[1:]} {verb}."
        words = cause or words
    return f"{words[:1].upper()}{words[1:]}".rstrip(".") + "."


def answer(verdict: Verdict) -> list[tuple[str, str]]:
    """Where, and how large beside what is allowed; of tokens, where no reason tells of them."""
    found = []
    first, tokens = verdict.first_divergence, verdict.tokens
    if first is not None:
        found.append(("Where", f"{_place(first)}; {_row(first)}"))
        found.append(("How large", f"{times(first.metrics)} ({_passing(first)})"))
    if not verdict.reasons and (tokens.compared or tokens.logprob_max is not None):
        found.append(("Tokens", _tokens(verdict)))
    return found


def _tokens(verdict: Verdict) -> str:
    tokens = verdict.tokens
    words = f"{tokens.differing:,} of {tokens.compared:,} greedy tokens differ"
    if not tokens.differing:
        words = f"all {tokens.compared:,} greedy tokens are the same"
    if tokens.first_divergence is not None:
        first = tokens.first_divergence
        words += f", first in request {first.request} at position {first.position}"
    if tokens.logprob_max is not None:
        words += f"; logprobs of golden tokens differ by {number(tokens.logprob_max)} nats at most"
    return words


def times(metrics: Metrics) -> str:
    """The error beside what is allowed."""
    words = multiple(metrics)
    return f"{words} the allowance" if math.isfinite(metrics.allowance_ratio) else words


def _passing(first: Divergence) -> str:
    return (
        f"a tolerance that would pass: {passing(first.error_class, first.passing_tolerance, first.passing_bias)}"
    )


def _place(first: Divergence) -> str:
    what = f"output {first.index}" if first.kind == "operator" else f"input {first.index}, as it arrives"
    kernel = f"{first.kernel} in " if first.kernel else ""
    return (
        f"{kernel}{first.site} ({first.operator}), {what}" if first.operator else f"{kernel}{first.site}, {what}"
    )


def _row(first: Divergence) -> str:
    known = "" if first.request_id is None else f" ({first.request_id})"
    return (
        f"request {first.request}{known}, sequence {first.sequence}, position {first.position}, step {first.step}"
    )


def fact_rows(first: Divergence) -> list[tuple[str, str]]:
    """All that is known of a divergence, as names and values."""
    m, worst = first.metrics, first.metrics.worst
    rows = [("where", _place(first)), ("row", _row(first)), ("class", first.error_class), ("error", times(m))]
    if worst is not None:
        sides = f"{number(worst.golden)} in golden, {number(worst.candidate)} in the candidate"
        rows.append(("worst element", f"number {worst.index} of its row: {sides}"))
    rows += [
        ("relative L2 of the worst row", number(m.relative_l2)),
        ("largest difference", f"{number(m.max_abs)}, {number(m.max_ulp)} ulp"),
        ("bias", f"{m.bias_ulp:+.3g} ulp on average"),
        ("bitwise equal", percent(m.equal)),
        *([("not finite", f"{m.nonfinite:,} elements")] if m.nonfinite else []),
        ("allowance", allowance(first.tolerance)),
        ("tolerance that would pass", passing(first.error_class, first.passing_tolerance, first.passing_bias)),
    ]
    return rows


def ranked_settings(verdict: Verdict) -> tuple[list[Any], list[Any]]:
    """Settings that can change what is computed, and the others."""
    ranked = sorted(
        verdict.settings_diff, key=lambda d: _EFFECTS.index(d.effect) if d.effect in _EFFECTS else len(_EFFECTS)
    )
    return [d for d in ranked if d.effect != "none"], [d for d in ranked if d.effect == "none"]


@dataclass(frozen=True)
class Kind:
    """The operators of one class.

    Args:
        operator: the class.
        sites, differ: how many there are, and of how many any bit differs.
        worst: the worst of them.
        inherited: the largest relative error of any where nothing is fed; None where that was not compared.
    """

    operator: str
    sites: int
    differ: int
    worst: OperatorFinding
    inherited: float | None


def by_class(verdict: Verdict, inherited: Mapping[str, Metrics]) -> list[Kind]:
    """In order of first execution."""
    kinds: dict[str, list[OperatorFinding]] = {}
    for finding in verdict.operators:
        kinds.setdefault(finding.operator, []).append(finding)
    return [
        Kind(
            name, len(found), sum(f.error_class != "identical" for f in found), max(found, key=_severity),
            max((inherited[f.site].relative_l2 for f in found if f.site in inherited), default=None),
        )
        for name, found in kinds.items()
    ]  # fmt: skip


def _severity(finding: OperatorFinding | EdgeFinding) -> tuple[int, float]:
    return severity(finding.error_class, finding.metrics.allowance_ratio)


def listed(found: Iterable[EdgeFinding]) -> list[EdgeFinding]:
    """Edges that differ, worst first."""
    return sorted((edge for edge in found if edge.error_class != "identical"), key=_severity, reverse=True)


def grouped(left: Sequence[NotCompared]) -> list[tuple[str, int, list[str]]]:
    """What was not compared by reason: the reason, rows, sites; most rows first."""
    reasons: dict[str, list[NotCompared]] = {}
    for one in left:
        reasons.setdefault(one.reason, []).append(one)
    found = [
        (reason, sum(one.rows for one in ones), [one.site for one in ones]) for reason, ones in reasons.items()
    ]
    return sorted(found, key=lambda group: -group[1])


def known_class(name: str) -> str:
    """A class of error as a class of style.css; empty for a word that is none."""
    return name if name in CLASSES else ""


def command(*words: str) -> str:
    """A command line."""
    return shlex.join(map(clean, words))


def again(verdict: Verdict) -> str:
    """What makes the whole page, as a command."""
    sides = verdict.golden.trace, verdict.candidate.trace or "CANDIDATE"
    return command("tracereplay", "report", *sides, "-o", "report.html")


def after(verdict: Verdict) -> str:
    """What to do next, as a command."""
    golden, candidate, first = verdict.golden, verdict.candidate, verdict.first_divergence
    engine = str(candidate.engine.get("name") or "NAME")
    if verdict.mode == "compare" and verdict.verdict != "match":
        return command("tracereplay", "replay", golden.trace, "--engine", engine)
    if first is not None and verdict.cause == "operator":
        place = ["--site", first.site, "--step", str(first.step)]
        return command("tracereplay", "repro", golden.trace, *place, "-o", "repro")
    if verdict.verdict == "diverged" and verdict.bisection is None and verdict.mode != "isolated":
        what = "settings" if verdict.cause == "setting" else "operators"
        return command("tracereplay", "bisect", what, golden.trace, "--engine", engine)
    return ""
