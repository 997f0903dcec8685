"""A verdict's reasons, in sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

from tracereplay.comparator.judging.biases import who_truncates, why_biased
from tracereplay.comparator.judging.evidence import Evidence
from tracereplay.comparator.judging.settings import argument_of, explains
from tracereplay.comparator.judging.staleness import Versions
from tracereplay.comparator.judging.suspects import Weight, ranked
from tracereplay.comparator.numbers.results import Finding
from tracereplay.comparator.numbers.sums import UNFED_SUM
from tracereplay.comparator.tokens.requests import OtherPrompts
from tracereplay.trace.run import Run
from tracereplay.verdict import Cause, SettingDifference
from tracereplay.verdict.measures import Metrics
from tracereplay.verdict.rollout import Quantity

__all__ = ["DOES", "OTHER_GOLDEN", "OTHER_WEIGHTS", "does", "why_diverged", "why_inconclusive", "why_unobserved"]

OTHER_WEIGHTS = (
    "The two engines ran different weights: any difference is one between two models, and blames no operator."
)

# A golden trace that was packed has another digest and the same content; then nothing differs, and it matches.
OTHER_GOLDEN = (
    "The candidate is a replay of another golden trace (by digest), and differs from this one: what it was fed is "
    "unknown. Replay this golden trace."
)


def why_inconclusive(evidence: Evidence) -> list[str]:
    """Why the evidence is not sufficient; empty if it is."""
    found = []
    if evidence.prompts is not None:
        found.append(_other_prompts(evidence.prompts))
    if not evidence.golden.complete:
        found.append("The golden recording is incomplete; only what it contains was compared.")
    if not evidence.candidate.complete:
        found.append("The candidate's trace is incomplete; only what it contains was compared.")
    if evidence.golden.dropped:
        found.append(
            f"{evidence.golden.dropped} steps were dropped from the golden recording and could not be compared."
        )
    share, least = evidence.coverage.share, evidence.policy.min_coverage
    if share < least:
        found.append(f"Only {share:.1%} of golden's calls could be compared; the policy requires {least:.1%}.")
    if sums := [left.site for left in evidence.coverage.not_compared if left.reason == UNFED_SUM]:
        found.append(
            f"{len(sums)} norms, {sums[0]} the first, were given the sum of what golden's were given as x and "
            "residual; that was not known before they ran, so they were not fed it, and nothing is known of them."
        )
    if evidence.unstable:
        sites = ", ".join(evidence.unstable[:3])
        found.append(
            f"The candidate does not reproduce its own results: {len(evidence.unstable)} sites differ between two "
            f"passes on the same inputs, the first being {sites}."
        )
    return found


def why_unobserved(evidence: Evidence) -> str:
    """That modules compute which no operator's recording covers."""
    found = evidence.unobserved
    named = ", ".join(f"{row.module or 'the model'} ({row.kind})" for row in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"What was compared agrees within tolerance, but {len(found)} modules compute unobserved: {named}{more}. "
        "The rerun's tokens and logprobs are not golden's bit for bit, so what these compute may differ."
    )


def _other_prompts(found: OtherPrompts) -> str:
    """That the two ran different prompts."""
    some = f"{found.requests} of {found.of} prompts differ"
    if found.reordered:
        where = "the same ones in another order"
    elif found.position is None:
        where = f"{some}, and the first that the candidate lacks is request {found.request}"
    else:
        where = f"{some}, the first being request {found.request} from position {found.position} on"
    why = " Its text is the same, but was tokenized differently." if found.same_text else ""
    return f"The two ran different prompts: {where}.{why} Only rows after identical tokens were compared."


def why_diverged(evidence: Evidence, cause: Cause | None) -> list[str]:
    """The cause in words, then what it did to tokens and logprobs."""
    reasons = [_CAUSES[cause](evidence)] if cause else _why_visible(evidence)
    if cause == "setting" and (besides := _besides(evidence)) is not None:
        reasons.append(besides)
    if evidence.other_quantity and cause != "setting":
        reasons.append(_other_quantity(evidence))
    if evidence.other_update and (update := _other_update(evidence)) not in reasons:
        reasons.append(update)
    if any(router.flips for router in evidence.routing):
        reasons.append(_flips(evidence))
    tokens = evidence.tokens
    if evidence.tokens_part and tokens.first_divergence is not None:
        at = tokens.first_divergence
        reasons.append(
            f"{tokens.differing} of {tokens.compared} greedy tokens differ, the first in request {at.request} at "
            f"position {at.position}: {at.golden} in golden, {at.candidate} in the candidate."
        )
    if evidence.logprobs_part:
        most, allowed = tokens.logprob_max, evidence.policy.logprob_max_abs
        reasons.append(f"A golden token's logprob differs by {most:.4g}; {allowed:g} is allowed.")
    return reasons


def _why_operator(evidence: Evidence) -> str:
    first = evidence.comparison.first()
    assert first is not None
    inputs = "on golden inputs" if evidence.mode == "injected" else "although everything before it is identical"
    words = f"{first.operator or 'The operator'} at {first.key.site} {_does(first)} {inputs}."
    if "in" not in evidence.golden.run.sides:
        words = f"What {first.operator or 'the operator'} at {first.key.site} returns {_does(first)}."
        words += f" Golden has no inputs: {_or_before(evidence)}."
    words += _in_golden(first)
    if evidence.tie:
        words += (
            " Its worst row nearly ties: the logits of the last expert chosen and of the next one differ by no "
            "more than the router's own error, so the two may have chosen different experts (a routing flip)."
        )
    if evidence.built:
        said = "; ".join(
            f"{name} is {mine!r} in golden and {theirs!r} in the candidate"
            for name, mine, theirs in evidence.built
        )
        words += f" It was built differently: {said}."
    return words + (why_biased(first, evidence.comparison.findings) if first.error_class == "biased" else "")


def _in_golden(first: Finding) -> str:
    """What golden has in the place of the first divergence, where that is not the operator of its name."""
    name = None if first.pair is None else first.pair.golden_site
    return "" if name is None else f" In golden it is {name}."


def _or_before(evidence: Evidence) -> str:
    """Who may be to blame where golden has not all of it."""
    if evidence.golden.run.sites == Run.sites:
        return "the fault is its own, or lies between operators right before it"
    return "the fault is its own, or lies before it, in or between operators that golden does not have"


def _why_edge(evidence: Evidence) -> str:
    first = evidence.comparison.first()
    assert first is not None
    run = evidence.golden.run
    if (run.sites, run.sides) != (Run.sites, Run.sides):
        return (
            f"What arrives at input {first.key.index} of {first.key.site} {_does(first)}. Golden has not all that "
            f"comes before it: the fault is in an operator whose output it lacks, or between operators."
            f"{_in_golden(first)}"
        )
    return (
        f"What arrives at input {first.key.index} of {first.key.site} {_does(first)}, although every "
        f"operator before it returned golden results: the fault lies between operators.{_in_golden(first)}"
    )


def _other_quantity(evidence: Evidence) -> str:
    """That logprobs differ in meaning, not in value."""
    assert evidence.rollout is not None
    reported = evidence.rollout.reported
    assert reported is not None
    return (
        "The two report different quantities as logprobs: "
        f"golden reports {QUANTITIES[reported.golden]}, the candidate {QUANTITIES[reported.candidate]}. Raw "
        f"logprobs computed from both sides' logits differ by at most {reported.raw_max_diff:.4g}."
    )


def _other_update(evidence: Evidence) -> str:
    """What happened to keys and values when weights were updated during generation."""
    golden, candidate = (_of_update(versions) for versions in evidence.versions)
    return (
        f"Weights were updated during generation, but not alike: in golden {golden}; in the candidate {candidate}."
    )


def _flips(evidence: Evidence) -> str:
    """Rows that were routed to different experts."""
    turned = [router for router in evidence.routing if router.flips]
    flips, rows = sum(r.flips for r in turned), sum(r.rows for r in evidence.routing)
    near = [r.near_ties for r in evidence.routing if r.near_ties is not None]
    ties = f"; {sum(near)} rows nearly tie, within the router's own error" if near else ""
    return f"Routing flips: {flips} of {rows} rows went to different experts, the first at {turned[0].site}{ties}."


def _of_update(versions: Versions) -> str:
    if not versions.changes:
        return "never"
    steps = ", ".join(map(str, versions.changes[:3])) + (" and later" if len(versions.changes) > 3 else "")
    at, rows = versions.first_stale, f"{versions.stale} row{'s' if versions.stale != 1 else ''}"
    if at is None:
        return f"before step {steps}, and no row attended to keys and values from older weights"
    return (
        f"before step {steps}, and {rows} attended to keys and values from older weights, the first in request "
        f"{at.request} at position {at.position}"
    )


QUANTITIES: dict[Quantity, str] = {
    "raw": "raw logprobs (log-softmax of the logits)",
    "scaled": "temperature-scaled logprobs",
    "filtered": "filtered logprobs (after temperature, top-k, top-p and min-p)",
    "logit": "logits",
    "other": "something other than raw, temperature-scaled or filtered logprobs",
}


def _why_setting(evidence: Evidence) -> str:
    if evidence.only_quantity:
        told = [d for d in evidence.settings if d.effect == "semantic" and explains(d, "sampler", 1)]
        said = [f"{d.name}: {d.golden!r} to {d.candidate!r}" for d in told]
        return _other_quantity(evidence) + (f" A setting explains this: {'; '.join(said)}." if said else "")
    if evidence.update_explains and not evidence.explaining:
        return _other_update(evidence)
    named = evidence.explaining
    words = "; ".join(
        f"{d.name} is {_value(d.golden)} in golden and {_value(d.candidate)} in the candidate" for d in named
    )
    begin = "A setting differs" if len(named) == 1 else "Settings differ"
    return f"{begin}: {words}.{_changed(evidence)}{_same_again(named)}"


def _changed(evidence: Evidence) -> str:
    """What was changed by the settings that explain the difference."""
    first = evidence.comparison.first()
    if first is None:
        return " That changes what is computed, although every operator and edge is within tolerance."
    where = f"{first.operator or 'the operator'} at {first.key.site}"
    if not evidence.provable:
        return f" That changes what is computed; the first place out of tolerance is {where}."
    does = f"which {_does(first)}"
    if first.kind == "edge":
        return f" That changes what arrives at input {first.key.index} of {where}, {does}."
    return f" That changes what {where} computes, {does}."


def _same_again(named: Sequence[SettingDifference]) -> str:
    """How to find out whether anything else differs."""
    arguments = [(argument_of(d.name), d.golden) for d in named]
    if any(name is None or value is None for name, value in arguments):
        return ""
    given = " ".join(f"--set {name}={_argument(value)}" for name, value in arguments)
    return f" Replay with {given} to find out whether anything else differs."


def _argument(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(value: object) -> str:
    return "not set" if value is None else repr(value)


def _besides(evidence: Evidence) -> str | None:
    """The first place out of tolerance that no setting explains, if a setting explains the very first."""
    place = evidence.besides
    if place is None:
        return None
    what = f"what arrives at input {place.key.index} of {place.key.site}" if place.kind == "edge" else (
        f"{place.operator or 'the operator'} at {place.key.site}"
    )  # fmt: skip
    return f"No setting explains {what}, which also {_does(place)} on golden inputs."


def _why_structure(evidence: Evidence) -> str:
    if evidence.unshared:
        return _why_unshared(evidence)
    sites = evidence.unmatched
    return f"{len(sites)} of golden's sites have no comparable counterpart, the first being {sites[0]}."


def _why_unshared(evidence: Evidence) -> str:
    first = evidence.comparison.first()
    assert first is not None
    assert evidence.unshared is not None
    mine, theirs = evidence.unshared.golden, evidence.unshared.candidate
    sides = [
        f"only {side} runs {_few(sites)}" for sites, side in ((mine, "golden"), (theirs, "the candidate")) if sites
    ]
    return (
        f"The two do not run the same operators: right before input {first.key.index} of {first.key.site}, where "
        f"what arrives {_does(first)}, {' and '.join(sides)}."
    )


def _few(sites: Sequence[str]) -> str:
    return ", ".join(sites[-3:]) if len(sites) <= 3 else f"{len(sites)} operators up to {sites[-1]}"


def _why_unobserved(evidence: Evidence) -> str:
    first = None if evidence.rerun is None else evidence.rerun.first_different()
    where = f"; the rerun first differs at {first.key.site}" if first is not None else ""
    return (
        f"Every operator that could explain it is identical on golden inputs: something unobserved differs{where}."
    )


def _why_rounding(evidence: Evidence) -> str:
    within = [f for f in evidence.comparison.findings if f.error_class == "rounding"]
    kinds = list(dict.fromkeys(f.operator for f in within if f.operator))
    return (
        "Every operator and edge is within tolerance; small differences add up. Operators that round differently: "
        f"{', '.join(kinds)}."
        + who_truncates(within)
        + _suspected(evidence, {f.operator: f.role for f in within if f.operator})
    )


def _suspected(evidence: Evidence, differing: Mapping[str, str]) -> str:
    """The settings that are known to change how the operators round that differ, and how many others differ."""
    numeric = [s for s in ranked(evidence.settings, differing) if s.difference.effect == "numeric"]
    if not numeric:
        return ""
    likely = [s.difference.name for s in numeric if s.weight <= Weight.ANYWHERE]
    named = likely[:_SUSPECTS] or [s.difference.name for s in numeric[:_SUSPECTS]]
    begin = "Settings that can explain this" if likely else "Settings differ that may affect rounding"
    others = len(numeric) - len(named)
    more = f" and {others} others" if others else ""
    return f" {begin}: {', '.join(named)}{more}."


_CAUSES: dict[Cause, Callable[[Evidence], str]] = {
    "operator": _why_operator, "edge": _why_edge, "setting": _why_setting, "structure": _why_structure,
    "unobserved": _why_unobserved, "rounding": _why_rounding,
}  # fmt: skip

_SUSPECTS = 3  # settings that are named

DOES = {
    "exceeds": "exceeds the tolerance",
    "nonfinite": "is not finite where golden is",
    "biased": "is biased in one direction by more than rounding explains",
}


def _why_visible(evidence: Evidence) -> list[str]:
    first = evidence.comparison.first()
    if first is None:
        return []
    return [
        f"The first visible difference beyond tolerance is at {first.key.site}; it may be inherited. "
        "Replay the golden trace to find the operator to blame."
    ]


def does(error_class: str, metrics: Metrics) -> str:
    """What a tensor does that is out of tolerance, in words that follow "the operator": ``exceeds the tolerance``.

    Args:
        error_class: of the tensor.
        metrics: of where it is first out of tolerance. Which side is not finite stands in its worst element.
    """
    worst = metrics.worst
    if error_class != "nonfinite" or worst is None or math.isfinite(worst.golden):
        return DOES[error_class]
    if math.isfinite(worst.candidate):
        return "is finite where golden is not"
    return f"is {worst.candidate} where golden is {worst.golden}"


def _does(place: Finding) -> str:
    onset = place.onset
    return does(place.error_class, place.metrics if onset is None else onset.metrics)
