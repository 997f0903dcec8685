"""Words shared by all forms of what came of checks."""

from __future__ import annotations

from tracereplay.checks import Result
from tracereplay.report.clean import clean
from tracereplay.report.words import headline
from tracereplay.verdict import Verdict

__all__ = ["REASONS", "outcome", "reasons", "said"]

REASONS = 3  # sentences of a verdict that are quoted


def outcome(result: Result) -> str:
    """The verdict in a word, with its cause."""
    verdict = result.verdict
    return result.outcome if verdict is None or not verdict.cause else f"{result.outcome} ({verdict.cause})"


def said(result: Result) -> str:
    """What came of a row, in one line of words."""
    if result.verdict is None:
        return clean(result.error or "There is no verdict.")
    unexpected = "" if result.met or result.outcome != "match" else f"{result.check.expected} was expected: "
    return f"{unexpected}{_first(result.verdict)}"


def reasons(result: Result) -> list[str]:
    """A verdict's first reasons, those that `said` does not say already."""
    verdict = result.verdict
    if verdict is None:
        return []
    first = int(_first(verdict) == clean(next(iter(verdict.reasons), "")))
    return [clean(reason) for reason in verdict.reasons[first : first + REASONS]]


def _first(verdict: Verdict) -> str:
    """The headline, or the first reason where that says the same and more."""
    line, reason = headline(verdict), clean(next(iter(verdict.reasons), ""))
    return reason if reason.startswith(line) else line
