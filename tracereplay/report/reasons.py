"""Which of a verdict's reasons say more than the first lines of a report do."""

from __future__ import annotations

import re

from tracereplay.verdict import Verdict

__all__ = ["untold"]

# Sentences whose content is in the first lines; see `comparator.judging.reasons`.
_TOLD = (
    re.compile(r"\d+ of \d+ greedy tokens differ, the first in request \d+ at position \d+: [^.]*\."),
    re.compile(r"A golden token's logprob differs by \S+; \S+ is allowed\."),
    re.compile(r"The first visible difference beyond tolerance is at .*"),
    re.compile(r"\S+ at \S+ (exceeds the tolerance|is not finite where golden is) on golden inputs\."),
    re.compile(r"What arrives at input \d+ of \S+ exceeds the tolerance, although every operator before it returned "
               r"golden results: the fault lies between operators\."),
)  # fmt: skip


def untold(verdict: Verdict, first_lines: str = "") -> list[str]:
    """The reasons but for those that the first lines have said.

    Args:
        verdict: whose.
        first_lines: what they said.
    """
    return [
        reason
        for reason in verdict.reasons
        if reason not in first_lines and not any(told.fullmatch(reason) for told in _TOLD)
    ]
