"""Which of a verdict's reasons say more than the first lines of a report do."""

from __future__ import annotations

import re

from tracereplay.report.effects import explaining
from tracereplay.verdict import Verdict

__all__ = ["untold"]

# Sentences whose content is in the first lines; see `comparator.judging.reasons`.
_BLAMED = re.compile(r"(A setting differs|Settings differ): .*")  # where the first lines name them
# Beginnings, which are followed by what the first lines leave out.
_BEGUN = re.compile(
    r"Every operator and edge is within tolerance; small differences add up\. Operators that round differently: "
    r"[^.]*\. ?"
)
_SETTINGS = re.compile(r" ?Settings (that can explain this|(differ )?that may affect rounding): .*\.$")

_TOLD = (
    re.compile(r"\d+ of \d+ greedy tokens differ, the first in request \d+ at position \d+: [^.]*\."),
    re.compile(r"A golden token's logprob differs by \S+; \S+ is allowed\."),
    re.compile(r"The first visible difference beyond tolerance is at .*"),
    re.compile(
        r"\S+ at \S+ (exceeds the tolerance|is not finite where golden is) (on golden inputs|although everything "
        r"before it is identical)\."
    ),
    re.compile(
        r"What arrives at input \d+ of \S+ exceeds the tolerance, although every operator before it returned "
        r"golden results: the fault lies between operators\."
    ),
)


def untold(verdict: Verdict, first_lines: str = "") -> list[str]:
    """The reasons but for those that the first lines have said.

    Args:
        verdict: whose.
        first_lines: what they said.
    """
    known = (*_TOLD, *((_BLAMED,) if explaining(verdict) else ()))
    told = (reason for reason in verdict.reasons if not any(sentence.fullmatch(reason) for sentence in known))
    shortened = (_SETTINGS.sub("", _BEGUN.sub("", reason)) for reason in told)
    return [reason for reason in shortened if reason and not _said(reason, first_lines)]


def _said(reason: str, first_lines: str) -> bool:
    """Whether they say it, perhaps without its beginning, which is the verdict then."""
    return reason in first_lines or (first_lines != "" and reason.endswith(f": {first_lines}"))
