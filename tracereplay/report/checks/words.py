"""Words shared by all forms of what came of checks."""

from __future__ import annotations

import re

from tracereplay.checks import Result
from tracereplay.report.clean import clean
from tracereplay.report.story import story_of

__all__ = ["REASONS", "harmless", "outcome", "reasons", "said"]

REASONS = 3  # sentences of a verdict that are quoted


def harmless(line: str) -> str:
    """A line that a CI's runner, which reads all that is printed, does not take for a command of its own."""
    return re.sub(r"##(?=\[)", "# #", re.sub(r"^(\s*)::", r"\1: :", line))


def outcome(result: Result) -> str:
    """The verdict in a word, with its cause."""
    verdict = result.verdict
    return result.outcome if verdict is None or not verdict.cause else f"{result.outcome} ({verdict.cause})"


def said(result: Result) -> str:
    """What came of a row, in one line of words."""
    verdict = result.verdict
    if verdict is None:
        return clean(result.error or "There is no verdict.")
    if verdict.verdict == "inconclusive" and verdict.reasons:
        return clean(verdict.reasons[0])
    unexpected = "" if result.met or verdict.verdict != "match" else f"{result.check.expected} was expected: "
    return f"{unexpected}{story_of(verdict).what}"


def reasons(result: Result) -> list[str]:
    """What else a reader wants to know first: the cause, where, how large."""
    verdict = result.verdict
    if verdict is None:
        return []
    if verdict.verdict == "inconclusive":
        return [clean(reason) for reason in verdict.reasons[1 : 1 + REASONS]]
    story = story_of(verdict)
    return [
        f"{label}: {line}"
        for label, line in (("cause", story.cause), ("where", story.where), ("size", story.size))
    ]
