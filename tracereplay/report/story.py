"""The first five lines of a report: the verdict, its cause, where, how large, and what to do next.

They are made of a verdict's values alone, so that each form of report can begin with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tracereplay.report.clean import clean
from tracereplay.report.effects import likely, named_settings
from tracereplay.report.next_step import Given, Next, next_step
from tracereplay.report.words import apart, count, integral, multiple, number, of_allowed, request_named
from tracereplay.verdict import Divergence, Metrics, OperatorFinding, Verdict
from tracereplay.verdict.measures import severity

__all__ = ["Story", "TextOf", "story_of"]

_KINDS = 4  # classes of operators that a line names
_SETTINGS = 2  # settings that a line names
_TEXT = 20  # characters of a token

# What a reason says, and the same in short; see `comparator.judging.reasons`.
_UNCLEAR = {
    "different prompts": "the two ran different prompts",
    "incomplete": "a trace is incomplete",
    "dropped from": "a part of golden was not recorded",
    "could be compared": "too little could be compared",
    "could be replayed": "nothing could be compared",
    "does not reproduce its own results": "the candidate does not repeat its own results",
    "replay of another golden": "the candidate is a replay of another golden trace",
}

_BEGUN = (
    "the two ran different prompts",
    "the two do not run the same operators",
    "the two engines ran different weights",
    "the candidate does not reproduce its own results",
)

TextOf: TypeAlias = Callable[[int], str]


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


def story_of(verdict: Verdict, given: Given | None = None, text: TextOf | None = None) -> Story:
    """The five lines.

    Args:
        verdict: what they tell of.
        given: the options that the candidate was run with; None: they are not known.
        text: makes text of a token; None: nothing can.
    """
    return Story(
        what=clean(_what(verdict)),
        cause=clean(_cause(verdict)),
        where=clean(_where(verdict, text)),
        size=clean(_size(verdict)),
        next=next_step(verdict, given),
    )


# -- the verdict --------------------------------------------------------------------------------------------


def _what(verdict: Verdict) -> str:
    if verdict.verdict == "match":
        return _matches(verdict)
    if verdict.verdict == "inconclusive":
        return _unclear(verdict)
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
    if verdict.cause == "setting":
        return "a setting differs that changes what is computed"
    return _outcome(verdict)


def _unclear(verdict: Verdict) -> str:
    """Why it cannot be told whether the two agree, in short."""
    if any(d.name == "weights" for d in verdict.settings_diff):
        return "the two ran different weights"
    if verdict.cause == "unobserved":
        return "something computes that was not recorded"
    said = verdict.reasons[0] if verdict.reasons else ""
    known = (words for part, words in _UNCLEAR.items() if part in said)
    return next(known, "too little is known to call it a match")


def _matches(verdict: Verdict) -> str:
    if _itself(verdict):
        return "golden and the candidate are the same trace"
    if verdict.first_divergence is not None:  # nothing was fed, and what differs is inherited
        return "the candidate gives golden's tokens, and logprobs within the tolerance"
    isolated = verdict.mode == "isolated"
    what = "each operator and kernel, run by itself, gives" if isolated else "the candidate computes"
    same = all(o.error_class == "identical" for o in verdict.operators if o.error_class != "incomparable")
    if same and not verdict.tokens.logprob_max and all(
        k.error_class == "identical" for k in (verdict.isolated.kernels if verdict.isolated else ())
    ):  # fmt: skip
        return f"{what} golden's results, bit for bit"
    return f"{what} golden's results, but for rounding"


def _itself(verdict: Verdict) -> bool:
    """Whether a trace was compared with itself, or a copy of it."""
    golden, candidate = verdict.golden.digest, verdict.candidate.digest
    return verdict.mode == "compare" and golden is not None and golden == candidate


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
        return _shorter(verdict.reasons[0]) if verdict.reasons else "what was seen is not enough"
    found = verdict.bisection
    if found is not None and found.kind != "operators" and verdict.reasons:
        return verdict.reasons[0]
    if verdict.cause == "setting":
        return named_settings(verdict) or _reason(verdict, "a setting that differs changes what is computed")
    if verdict.cause == "rounding":
        return f"rounding in {_rounders(verdict)}; no fault{_under(verdict)}"
    if verdict.cause == "operator":
        if verdict.first_divergence is None:
            return _reason(verdict, "the calls crash, or return something of another form")
        what = "this kernel" if verdict.first_divergence.kernel else "this operator"
        inputs = "golden's" if verdict.mode in ("injected", "isolated") else "the same"
        return f"{what}: on {inputs} inputs {_misdeed(verdict.first_divergence)}"
    if verdict.cause == "edge":
        return "between operators: all that run before it gave golden's results"
    if verdict.cause == "structure":
        return _shorter(_reason(verdict, "operators of the one have no counterpart in the other"))
    if verdict.cause == "unobserved":
        return "something that was not recorded: all that was gives golden's results"
    if verdict.mode == "rerun":
        return "not known: an operator may have inherited what another did"
    return "not known: two recordings only show where it is first visible"


def _under(verdict: Verdict) -> str:
    """Settings that differ and may be why operators round otherwise, of which there often are many."""
    names = [clean(d.name) for d in likely(verdict) if not d.name.startswith(("versions.", "environment."))]
    if not names:
        return ""
    more = f" and {len(names) - _SETTINGS} more" if len(names) > _SETTINGS else ""
    return f"; it may come of {', '.join(names[:_SETTINGS])}{more}, set otherwise"


def _nothing(verdict: Verdict) -> str:
    if _itself(verdict):
        return "nothing to blame: both have the digest " + (verdict.golden.digest or "")
    kinds = "" if verdict.first_divergence is not None else _rounders(verdict)
    return f"nothing to blame; {kinds} round differently" if kinds else "nothing to blame"


def _misdeed(first: Divergence) -> str:
    nonfinite = "it gives values that are not finite"
    if first.tolerance.source == "strict" and first.error_class == "exceeds":
        return "it does not give the same bits"
    if integral(first.tolerance) and first.error_class == "exceeds":
        return "it gives other whole numbers" if first.index or not _samples(first) else "it gives other tokens"
    worst = first.metrics.worst
    if worst is not None and not math.isfinite(worst.golden):
        nonfinite = "it is finite where golden is not" if math.isfinite(worst.candidate) else "it is not as golden"
    return {
        "exceeds": "its error is too large for rounding",
        "nonfinite": nonfinite,
        "biased": "its results lean to one side",
    }.get(first.error_class, "it differs")


def _samples(first: Divergence) -> bool:
    return first.site.rpartition(".")[2] == "sampler"


def _reason(verdict: Verdict, otherwise: str) -> str:
    return verdict.reasons[0] if verdict.reasons else otherwise


def _shorter(reason: str) -> str:
    """A reason without its beginning, where the verdict's line says that already."""
    begin, colon, rest = reason.partition(": ")
    return rest if colon and begin.lower() in _BEGUN else reason


def _rounders(verdict: Verdict) -> str:
    """Classes of operators that differ within what is allowed, worst first."""
    within = [o for o in verdict.operators if o.error_class == "rounding"]
    ranked = sorted(within, key=lambda o: o.metrics.allowance_ratio, reverse=True)
    kinds = list(dict.fromkeys(o.operator for o in ranked))
    more = f" and {len(kinds) - _KINDS} more" if len(kinds) > _KINDS else ""
    return f"{', '.join(kinds[:_KINDS])}{more}"


# -- where --------------------------------------------------------------------------------------------------


def _where(verdict: Verdict, text: TextOf | None) -> str:
    first, token = verdict.first_divergence, verdict.tokens.first_divergence
    if verdict.verdict != "diverged":
        return _compared(verdict)
    if first is not None and verdict.cause != "rounding":
        seen = "" if verdict.cause else "first visible at "
        return f"{seen}{first.site}{_tensor(first)}; {_row(first)}{_beyond(verdict)}"
    if token is not None:
        golden, candidate = (_token(number, text) for number in (token.golden, token.candidate))
        place = f"request {request_named(token)}, position {token.position}"
        return f"{place}: token {golden} in golden, {candidate} in the candidate"
    visible = verdict.first_visible
    if visible is not None:
        return f"first seen at {visible.site}; {_row(visible)}"
    return _compared(verdict)


def _token(number: int, text: TextOf | None) -> str:
    said = "" if text is None else text(number)[:_TEXT]
    return f"{number} ({said!r})" if said else str(number)


def _tensor(first: Divergence) -> str:
    if first.kind == "edge":
        return f", input {first.index}"
    return f", output {first.index}" if first.index else ""


def _row(first: Divergence) -> str:
    sample = f", sample {first.sequence}" if first.sequence else ""
    return f"request {request_named(first)}{sample}, position {first.position}"


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
    if first is not None and verdict.verdict == "diverged" and verdict.cause != "rounding":
        parts.append(_error(first, _worst_of(verdict, first)))
    elif verdict.verdict != "diverged" and first is None:
        parts += _largest(verdict)
    nothing = "nothing differs" if verdict.coverage.compared_calls else "nothing was compared"
    return "; ".join([*parts, *_generation(verdict)]) or nothing


def _worst_of(verdict: Verdict, first: Divergence) -> Metrics:
    """The largest error that it has in any call, as the tables tell it; on its own inputs it inherits some."""
    if first.kernel is not None or verdict.mode not in ("injected", "isolated"):
        return first.metrics
    found: list[Metrics] = []
    if first.kind == "operator":
        found += [o.metrics for o in verdict.operators if o.site == first.site]
    else:
        found += [e.metrics for e in verdict.edges if (e.site, e.input) == (first.site, first.index)]
    return max([first.metrics, *found], key=lambda metrics: metrics.allowance_ratio)


def _error(first: Divergence, most: Metrics) -> str:
    metrics, worst = first.metrics, first.metrics.worst
    values = "" if worst is None else f" ({apart(worst)})"
    if first.error_class == "biased":
        return f"errors lean by {metrics.bias_ulp:+.2g} ulp on average, each within its limit"
    if first.error_class == "nonfinite":
        return f"{count(metrics.nonfinite, 'value')} not finite{values}"
    if first.tolerance.source == "strict":
        return f"bits differ{values}, none may"
    if multiple(most) != multiple(metrics):
        return f"up to {of_allowed(most)}"
    return f"{of_allowed(metrics)}{values}"


def _largest(verdict: Verdict) -> list[str]:
    differ = [o for o in verdict.operators if o.error_class == "rounding"]
    if not differ:
        return []
    worst: OperatorFinding = max(differ, key=lambda o: o.metrics.allowance_ratio)
    return [f"operators: at most {of_allowed(worst.metrics)}"]


def _generation(verdict: Verdict) -> list[str]:
    """What became of tokens and logprobs, beside what is allowed."""
    tokens, found = verdict.tokens, []
    if tokens.compared:
        may = "" if tokens.allowed is None or verdict.first_divergence else f" ({tokens.allowed} allowed)"
        some = f"{tokens.differing} of {tokens.compared} tokens differ{may}"
        found.append(some if tokens.differing else "no token differs")
    if tokens.logprob_max and (verdict.first_divergence is None or verdict.verdict == "match"):
        may = "" if tokens.logprob_allowed is None else f" ({number(tokens.logprob_allowed)} allowed)"
        found.append(f"logprobs by {number(tokens.logprob_max)}{may}")
    return found
