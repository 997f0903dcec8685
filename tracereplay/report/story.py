"""The first five lines of a report: the verdict, its cause, where, how large, and what to do next.

They are made of a verdict's values alone, so that each form of report can begin with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tracereplay.report.clean import clean
from tracereplay.report.effects import named_settings
from tracereplay.report.next_step import Given, Next, next_step
from tracereplay.report.words import count, number, of_allowed, request_named
from tracereplay.verdict import Divergence, OperatorFinding, Verdict
from tracereplay.verdict.measures import severity

__all__ = ["Story", "story_of"]

_KINDS = 4  # classes of operators that a line names


@dataclass(frozen=True, slots=True)
class Story:
    """What a reader wants to know first, each in a line.

    Args:
        what: the verdict in words.
        cause: why, as far as it is known.
        where: the place, or how much was compared.
        size: how large the difference is, beside what is allowed.
        next: what to do.
    """

    what: str
    cause: str
    where: str
    size: str
    next: Next


def story_of(verdict: Verdict, given: Given | None = None) -> Story:
    """The five lines.

    Args:
        verdict: what they tell of.
        given: the options that the candidate was run with ; None: they are not known.
    """
    return Story(
        what=clean(_what(verdict)),
        cause=clean(_cause(verdict)),
        where=clean(_where(verdict)),
        size=clean(_size(verdict)),
        next=next_step(verdict, given),
    )


# -- the verdict --------------------------------------------------------------------------------------------


def _what(verdict: Verdict) -> str:
    if verdict.verdict == "match":
        return _matches(verdict)
    if verdict.verdict == "inconclusive":
        return "whether the two agree cannot be told"
    first = verdict.first_divergence
    if verdict.bisection is not None and verdict.bisection.first_bad is not None:
        return f"since {verdict.bisection.first_bad} the candidate computes something else"
    if verdict.cause == "edge" and first is not None:
        return f"{first.operator or 'an operator'} is given something else than in golden"
    if verdict.cause == "operator":
        if first is not None:
            kernel = f"{first.kernel} in " if first.kernel else ""
            return f"{kernel}{first.operator or 'an operator'} computes something else than in golden"
        return "operators fail that ran in golden"
    if verdict.cause == "structure":
        return "the two do not run the same operators"
    return _outcome(verdict)


def _matches(verdict: Verdict) -> str:
    isolated = verdict.mode == "isolated"
    what = "each operator and kernel, run by itself, gives" if isolated else "the candidate computes"
    same = all(o.error_class == "identical" for o in verdict.operators if o.error_class != "incomparable")
    if same and not verdict.tokens.logprob_max and all(
        k.error_class == "identical" for k in (verdict.isolated.kernels if verdict.isolated else ())
    ):  # fmt: skip
        return f"{what} golden's results, bit for bit"
    return f"{what} golden's results, but for rounding within the tolerance"


def _outcome(verdict: Verdict) -> str:
    """What differs for a user of the engine."""
    tokens = verdict.tokens
    if tokens.differing:
        return f"the candidate chooses {count(tokens.differing, 'other token')} than golden"
    if verdict.first_divergence is None and tokens.logprob_max:
        return "the same tokens, but their logprobs differ by more than is allowed"
    return "operators compute something else than in golden"


# -- its cause ----------------------------------------------------------------------------------------------


def _cause(verdict: Verdict) -> str:
    if verdict.verdict == "match":
        return _nothing(verdict)
    if verdict.verdict == "inconclusive":
        return verdict.reasons[0] if verdict.reasons else "what was seen is not enough"
    found = verdict.bisection
    if found is not None and found.kind != "operators" and verdict.reasons:
        return verdict.reasons[0]
    if verdict.cause == "setting":
        return named_settings(verdict) or _reason(verdict, "a setting that differs changes what is computed")
    if verdict.cause == "rounding":
        return f"rounding alone: no operator is at fault, but {_rounders(verdict)} round differently, which adds up"
    if verdict.cause == "operator":
        if verdict.first_divergence is None:
            return _reason(verdict, "the calls crash, or return something of another form")
        what = "this kernel" if verdict.first_divergence.kernel else "this operator"
        return f"{what} itself: given golden's inputs, {_misdeed(verdict.first_divergence)}"
    if verdict.cause == "edge":
        return "what lies between operators: each before it gave golden's results, but it is not given them"
    if verdict.cause in ("structure", "unobserved"):
        return _reason(verdict, "something that was not recorded computes otherwise")
    if verdict.mode == "rerun":
        return "not known: nothing was fed, so that an operator may inherit what another did"
    return "not known: two recordings only show where a difference is first visible"


def _nothing(verdict: Verdict) -> str:
    kinds = _rounders(verdict)
    return f"nothing to blame; {kinds} round differently" if kinds else "nothing to blame: nothing differs"


def _misdeed(first: Divergence) -> str:
    nonfinite = "it is not finite where golden is"
    worst = first.metrics.worst
    if worst is not None and not math.isfinite(worst.golden):
        nonfinite = "it is finite where golden is not" if math.isfinite(worst.candidate) else "it is not golden's"
    return {
        "exceeds": "its error is larger than rounding can make it",
        "nonfinite": nonfinite,
        "biased": "it leans to one side by more than rounding does",
    }.get(first.error_class, "it differs")


def _reason(verdict: Verdict, otherwise: str) -> str:
    return verdict.reasons[0] if verdict.reasons else otherwise


def _rounders(verdict: Verdict) -> str:
    """Classes of operators that differ within what is allowed, worst first."""
    within = [o for o in verdict.operators if o.error_class == "rounding"]
    ranked = sorted(within, key=lambda o: o.metrics.allowance_ratio, reverse=True)
    kinds = list(dict.fromkeys(o.operator for o in ranked))
    more = f" and {len(kinds) - _KINDS} more" if len(kinds) > _KINDS else ""
    return f"{', '.join(kinds[:_KINDS])}{more}"


# -- where --------------------------------------------------------------------------------------------------


def _where(verdict: Verdict) -> str:
    first, token = verdict.first_divergence, verdict.tokens.first_divergence
    if verdict.verdict != "diverged":
        return _compared(verdict)
    if first is not None and verdict.cause != "rounding":
        seen = "" if verdict.cause else "first visible at "
        return f"{seen}{first.site}{_tensor(first)}; {_row(first)}{_beyond(verdict)}"
    if token is not None:
        return (
            f"request {request_named(token)}, position {token.position}: token {token.golden} in golden, "
            f"{token.candidate} in the candidate"
        )
    visible = verdict.first_visible
    if visible is not None:
        return f"first out of tolerance at {visible.site}, where errors have added up; {_row(visible)}"
    return _compared(verdict)


def _tensor(first: Divergence) -> str:
    if first.kind == "edge":
        return f", input {first.index}"
    return f", output {first.index}" if first.index else ""


def _row(first: Divergence) -> str:
    sample = f", sample {first.sequence}" if first.sequence else ""
    return f"request {request_named(first)}{sample}, position {first.position}, step {first.step}"


def _beyond(verdict: Verdict) -> str:
    """How many operators are out of tolerance beside the first."""
    out = {o.site for o in verdict.operators if severity(o.error_class, 0.0)[0] > 2}
    first = verdict.first_divergence
    others = len(out - ({first.site} if first is not None else set()))
    return f"; {others} more are out of tolerance" if others else ""


def _compared(verdict: Verdict) -> str:
    coverage = verdict.coverage
    if verdict.isolated is not None and verdict.isolated.calls:
        return f"{verdict.isolated.compared} of {count(verdict.isolated.calls, 'kernel call')} compared"
    if not coverage.golden_calls:
        return "nothing was compared"
    tokens = f" and {count(verdict.tokens.compared, 'greedy token')}" if verdict.tokens.compared else ""
    calls = f"{coverage.compared_calls} of {count(coverage.golden_calls, 'operator call')}"
    return f"{calls}{tokens} compared"


# -- how large ----------------------------------------------------------------------------------------------


def _size(verdict: Verdict) -> str:
    first = verdict.first_divergence
    parts = []
    if first is not None and verdict.cause != "rounding":
        parts.append(_error(first))
    elif verdict.verdict != "diverged" or verdict.cause == "rounding":
        parts += _largest(verdict)
    said = [*parts, *_generation(verdict)]
    return "; ".join(said) or "nothing differs"


def _error(first: Divergence) -> str:
    metrics, worst = first.metrics, first.metrics.worst
    values = "" if worst is None else f" ({number(worst.candidate)} where golden has {number(worst.golden)})"
    if first.error_class == "biased":
        return f"{metrics.bias_ulp:+.2g} units in the last place on average, each error within its limit"
    if first.error_class == "nonfinite":
        return f"{count(metrics.nonfinite, 'value')} not finite{values}"
    return f"error {of_allowed(metrics)}{values}"


def _largest(verdict: Verdict) -> list[str]:
    differ = [o for o in verdict.operators if o.error_class == "rounding"]
    if not differ:
        return []
    worst: OperatorFinding = max(differ, key=lambda o: o.metrics.allowance_ratio)
    return [f"no operator's error is over {of_allowed(worst.metrics)}"]


def _generation(verdict: Verdict) -> list[str]:
    """What became of tokens and logprobs, beside what is allowed."""
    tokens, found = verdict.tokens, []
    if tokens.compared:
        may = "" if tokens.allowed is None or not tokens.differing else f" ({tokens.allowed or 'none'} may)"
        some = f"{tokens.differing} of {tokens.compared} tokens differ{may}"
        found.append(some if tokens.differing else "no token differs")
    if tokens.logprob_max:
        may = "" if tokens.logprob_allowed is None else f" ({number(tokens.logprob_allowed)} is allowed)"
        found.append(f"logprobs differ by up to {number(tokens.logprob_max)}{may}")
    return found
