"""What an operator bisection proved, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tracereplay.bisector.effect import ENOUGH
from tracereplay.verdict import Closure
from tracereplay.verdict.bisection import Bisection

__all__ = ["AGREES", "some", "why"]

AGREES = "gives golden's tokens and logprobs, within what is allowed"
_OPEN = "With each operator's own error taken away, logits still differ from golden's (closure does not hold)"


def some(names: Sequence[str]) -> str:
    """A list of names that stays short."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def why(closure: Closure, found: Bisection) -> list[str]:
    """Sentences for the verdict's reasons."""
    words = [_closure(closure)]
    if closure.unstable:
        words.append(
            f"{len(closure.unstable)} sites are not reproducible on the same inputs, the first being "
            f"{closure.unstable[0]}."
        )
    if found.minimal is not None:
        words.append(_minimal(found))
    elif found.unexplained is not None and not found.unexplained <= 0:
        words.append(
            "Taking away the own errors of operators does not bring the difference within what is allowed; "
            f"{_unexplained(found.unexplained)}."
        )
    if found.positions < ENOUGH:
        words.append(
            f"Only {found.positions} positions were measured; the intervals are meaningful from {ENOUGH} on."
        )
    return words


def _closure(closure: Closure) -> str:
    if closure.held:
        return (
            "With each operator's own error taken away, the candidate gives golden's logits bit for bit "
            f"({closure.rows} rows): nothing that computes was missed (closure holds)."
        )
    if closure.flipped:
        return (
            f"{_OPEN}: {closure.first_broken}. Near ties in routers sent rows to different experts "
            f"than in golden (routing flips): {some(closure.flipped)}."
        )
    if not closure.same_batches:
        return (
            f"{_OPEN}: {closure.first_broken}. The two passes composed their batches differently, "
            "and rows may round differently in another batch: run the engine in one process, or with "
            "max_num_seqs=1."
        )
    why_not = "" if closure.unstable else " Some computation was not observed."
    return f"{_OPEN}: {closure.first_broken}.{why_not}"


def _unexplained(share: float) -> str:
    if math.isnan(share):
        return "no logprob differs, only the sampled tokens"
    return f"{share:.1%} of the difference remains unexplained"


def _minimal(found: Bisection) -> str:
    assert found.minimal is not None
    proven = (
        "none of them can be left out" if found.proven else "the passes ran out before each was shown to be needed"
    )
    left = found.largest_left
    rest = "" if left is None else f" Of the rest, {left.name} differs most ({left.error_class})."
    if len(found.minimal) == 1:
        (only,) = found.minimal
        does = "rounds otherwise" if only.error_class == "rounding" else "is out of tolerance"
        return f"Without the own error of {only.name}, which {does}, the candidate {AGREES}.{rest}"
    guilty = [m.name for m in found.minimal if m.error_class != "rounding"]
    honest = [m.name for m in found.minimal if m.error_class == "rounding"]
    parts = [f" Out of tolerance: {', '.join(guilty)}."] if guilty else []
    parts += [f" Rounding otherwise: {some(honest)}."] if honest else []
    these = f"{len(found.minimal)} operators or edges"
    return f"Without the own errors of {these} the candidate {AGREES} ({proven}).{''.join(parts)}{rest}"
