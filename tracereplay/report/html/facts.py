"""Words and numbers of a verdict's findings, for the page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tracereplay.comparator.judging.suspects import Suspect, Weight
from tracereplay.report.clean import clean
from tracereplay.report.effects import suspects
from tracereplay.report.words import allowance, integral, number, of_allowed, passing, percent
from tracereplay.verdict import (
    CLASSES,
    Divergence,
    EdgeFinding,
    Metrics,
    NotCompared,
    OperatorFinding,
    Verdict,
)
from tracereplay.verdict.measures import severity

__all__ = [
    "INPUTS", "Kind", "again", "allowances", "by_class", "command", "fact_rows", "grouped",
    "known_class", "listed", "measured", "settings",
]  # fmt: skip

_SILENT = ("identical", "incomparable")

INPUTS = {
    "injected": "each operator was given golden's inputs, so that an error is its own",
    "isolated": "each call ran by itself on golden's inputs",
    "rerun": "nothing was fed: an error may be inherited from an earlier operator",
    "compare": "nothing was fed: an error may be inherited from an earlier operator",
}


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
    rows = [("where", _place(first)), ("row", _row(first)), ("class", first.error_class), ("error", of_allowed(m))]
    if worst is not None:
        sides = f"{number(worst.golden)} in golden, {number(worst.candidate)} in the candidate"
        rows.append(("worst element", f"number {worst.index} of its row: {sides}"))
    if integral(first.tolerance):
        return [*rows, ("equal", percent(m.equal)), ("allowance", "none: integers are equal or not")]
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


def measured(verdict: Verdict) -> bool:
    """Whether anything but integers differs: there are errors then, and not only what is not equal."""
    return any(f.error_class not in _SILENT and not integral(f.tolerance) for f in verdict.operators)


def allowances(verdict: Verdict) -> list[str]:
    """What errors may be, each once, those of most operators and inputs first; integers have none."""
    every = [o.tolerance for o in verdict.operators] + [e.tolerance for e in verdict.edges]
    return [words for words, _ in Counter(allowance(t) for t in every if t and not integral(t)).most_common()]


def settings(verdict: Verdict) -> tuple[list[Suspect], list[Suspect]]:
    """Settings that can explain something, those first that can explain the most; and the others."""
    found = suspects(verdict)
    most = Weight.RELEASE if any(s.weight < Weight.RELEASE for s in found) else Weight.ELSEWHERE
    return [s for s in found if s.weight < most], [s for s in found if s.weight >= most]


@dataclass(frozen=True)
class Kind:
    """The operators of one class.

    Args:
        operator: the class.
        sites, differ, unseen: how many there are, of how many any bit differs, and how many were not compared.
        worst: the worst of those that were compared, if any was.
        inherited: the largest relative error of any where nothing is fed; None where that was not compared.
    """

    operator: str
    sites: int
    differ: int
    unseen: int
    worst: OperatorFinding
    inherited: float | None

    @property
    def share(self) -> str:
        """How many differ, in words."""
        if self.unseen == self.sites:
            return f"none of {self.sites} compared"
        left = f", {self.unseen} not compared" if self.unseen else ""
        return f"{self.differ} of {self.sites}{left}"


def by_class(verdict: Verdict, inherited: Mapping[str, Metrics]) -> list[Kind]:
    """In order of first execution."""
    kinds: dict[str, list[OperatorFinding]] = {}
    for finding in verdict.operators:
        kinds.setdefault(finding.operator, []).append(finding)
    return [
        Kind(
            name, len(found), sum(f.error_class not in _SILENT for f in found),
            sum(f.error_class == "incomparable" for f in found),
            max(found, key=lambda f: (f.error_class != "incomparable", _severity(f))),
            max((inherited[f.site].relative_l2 for f in found if f.site in inherited), default=None),
        )
        for name, found in kinds.items()
    ]  # fmt: skip


def _severity(finding: OperatorFinding | EdgeFinding) -> tuple[int, float]:
    return severity(finding.error_class, finding.metrics.allowance_ratio)


def listed(found: Iterable[EdgeFinding]) -> list[EdgeFinding]:
    """Edges that differ or were not compared, worst first."""
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
