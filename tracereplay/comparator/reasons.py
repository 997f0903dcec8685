"""A verdict's reasons, in sentences."""

from __future__ import annotations

from collections.abc import Callable

from tracereplay.comparator.evidence import Evidence
from tracereplay.comparator.measure import Finding
from tracereplay.comparator.metrics import BIAS_ROWS
from tracereplay.comparator.settings import explains
from tracereplay.comparator.staleness import Versions
from tracereplay.rollout import Quantity
from tracereplay.verdict import Cause

__all__ = ["DOES", "OTHER_GOLDEN", "OTHER_WEIGHTS", "why_diverged", "why_inconclusive"]

OTHER_WEIGHTS = "The two engines ran other weights; nothing can be compared."

# A golden trace that was packed has another digest and the same content; then nothing differs, and it matches.
OTHER_GOLDEN = (
    "The candidate is a replay of another golden trace, by its digest, and differs from this one: what it was "
    "fed is not known. Replay this golden trace."
)


def why_inconclusive(evidence: Evidence) -> list[str]:
    """What keeps the evidence from being enough; empty where nothing does."""
    found = []
    if not evidence.golden.complete:
        found.append("The golden recording is incomplete; only what it holds was compared.")
    if not evidence.candidate.complete:
        found.append("The candidate's trace is incomplete; only what it holds was compared.")
    if evidence.golden.dropped:
        found.append(
            f"{evidence.golden.dropped} steps were left out of the golden recording; nothing is known of them."
        )
    share, least = evidence.coverage.share, evidence.policy.min_coverage
    if share < least:
        found.append(f"Only {share:.1%} of golden's calls could be compared; the policy asks for {least:.1%}.")
    if evidence.unstable:
        sites = ", ".join(evidence.unstable[:3])
        found.append(
            f"The candidate does not repeat itself: {len(evidence.unstable)} sites differ between two passes "
            f"on the same inputs, the first at {sites}."
        )
    return found


def why_diverged(evidence: Evidence, cause: Cause | None) -> list[str]:
    """The cause in words, then what it did to tokens and logprobs."""
    reasons = [_CAUSES[cause](evidence)] if cause else _why_visible(evidence)
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
    inputs = "on golden inputs" if evidence.mode == "injected" else "although all before it is identical"
    words = f"{first.operator or 'The operator'} at {first.key.site} {DOES[first.error_class]} {inputs}."
    if evidence.tie:
        words += (
            " Its worst row nearly ties: the logits of the last expert chosen and of the next are no further "
            "apart than the router's own error, so the two may have taken other experts there (a routing flip)."
        )
    return words + (_lean(evidence, first) if first.error_class == "biased" else "")


def _lean(evidence: Evidence, first: Finding) -> str:
    leaning = [f.operator for f in evidence.comparison.findings if f.error_class == "biased" and f.operator]
    kinds = ", ".join(dict.fromkeys(leaning))
    return (
        f" It leans by {first.metrics.bias_ulp:+.2f} ulp. Operators that lean: {kinds}. A way of rounding that an "
        "engine has would show in most that differ."
    )


def _truncation(within: list[Finding]) -> str:
    """Who seems to truncate: its results are smaller by half an ulp on average for each rounding."""
    words = ""
    for side, sign in (("Golden", 1), ("The candidate", -1)):
        leaning = [f for f in within if f.rows >= BIAS_ROWS and sign * f.metrics.bias_ulp >= TRUNCATES]
        if leaning:
            kinds = ", ".join(dict.fromkeys(f.operator for f in leaning))
            words += f" {side} seems to truncate where the other rounds to nearest: {kinds}."
    return words


def _why_edge(evidence: Evidence) -> str:
    first = evidence.comparison.first()
    assert first is not None
    return (
        f"What arrives at input {first.key.index} of {first.key.site} {DOES[first.error_class]}, although every "
        "operator before it gave golden results: the fault lies between operators."
    )


def _other_quantity(evidence: Evidence) -> str:
    """That logprobs differ in meaning, not in value."""
    assert evidence.rollout is not None
    reported = evidence.rollout.reported
    assert reported is not None
    return (
        "The two report different quantities as logprobs: "
        f"golden {QUANTITIES[reported.golden]}, the candidate {QUANTITIES[reported.candidate]}. Raw logprobs "
        f"computed from both sides' logits differ by {reported.raw_max_diff:.4g} at most."
    )


def _other_update(evidence: Evidence) -> str:
    """What became of keys and values when weights were updated under way."""
    golden, candidate = (_of_update(versions) for versions in evidence.versions)
    return f"Weights were updated under way, and not alike: in golden {golden}; in the candidate {candidate}."


def _flips(evidence: Evidence) -> str:
    """Rows that went to other experts."""
    turned = [router for router in evidence.routing if router.flips]
    flips, rows = sum(r.flips for r in turned), sum(r.rows for r in evidence.routing)
    near = [r.near_ties for r in evidence.routing if r.near_ties is not None]
    ties = f"; {sum(near)} rows nearly tie, within the router's own error" if near else ""
    return f"Routing flips: {flips} of {rows} rows went to other experts, the first at {turned[0].site}{ties}."


def _of_update(versions: Versions) -> str:
    if not versions.changes:
        return "never"
    steps = ", ".join(map(str, versions.changes[:3])) + (" and later" if len(versions.changes) > 3 else "")
    at, rows = versions.first_stale, f"{versions.stale} row{'s' if versions.stale != 1 else ''}"
    if at is None:
        return f"before step {steps}, and no row attended to keys and values of older weights"
    return (
        f"before step {steps}, and {rows} attended to keys and values of older weights, the first in request "
        f"{at.request} at position {at.position}"
    )


QUANTITIES: dict[Quantity, str] = {
    "raw": "raw ones (log-softmax of the logits)",
    "scaled": "temperature-scaled ones",
    "filtered": "filtered ones (after temperature, top-k, top-p and min-p)",
    "logit": "logits",
    "other": "something that is none of raw, temperature-scaled and filtered",
}


def _why_setting(evidence: Evidence) -> str:
    first = evidence.comparison.first()
    if evidence.other_quantity:
        said = [f"{d.name}: {d.golden!r} to {d.candidate!r}" for d in evidence.settings if explains(d, "Sampler")]
        return _other_quantity(evidence) + (f" A setting says so: {'; '.join(said)}." if said else "")
    if evidence.update_explains:
        return _other_update(evidence)
    operator = first.operator if first is not None else ""
    named = [d for d in evidence.settings if explains(d, operator) or (first is None and d.name == "dtype")]
    words = "; ".join(f"{d.name} is {d.golden!r} in golden and {d.candidate!r} in the candidate" for d in named)
    where = f" That changes what {operator} at {first.key.site} computes." if first is not None else ""
    return f"A setting differs: {words}.{where}"


def _why_structure(evidence: Evidence) -> str:
    sites = evidence.unmatched
    return f"{len(sites)} of golden's sites have no counterpart that can be compared, the first {sites[0]}."


def _why_unobserved(evidence: Evidence) -> str:
    first = None if evidence.rerun is None else evidence.rerun.first_different()
    where = f"; the rerun first differs at {first.key.site}" if first is not None else ""
    return f"Every operator that could explain it is identical on golden inputs: something is not observed{where}."


def _why_rounding(evidence: Evidence) -> str:
    within = [f for f in evidence.comparison.findings if f.error_class == "rounding"]
    kinds = list(dict.fromkeys(f.operator for f in within if f.operator))
    settings = [d.name for d in evidence.settings if d.effect == "numeric"]
    return (
        "Every operator and edge is within tolerance; small differences add up. Those that round otherwise: "
        f"{', '.join(kinds)}."
        + _truncation(within)
        + (f" Settings that round otherwise: {', '.join(settings)}." if settings else "")
    )


_CAUSES: dict[Cause, Callable[[Evidence], str]] = {
    "operator": _why_operator, "edge": _why_edge, "setting": _why_setting, "structure": _why_structure,
    "unobserved": _why_unobserved, "rounding": _why_rounding,
}  # fmt: skip

TRUNCATES = 0.4  # ulp on average; a rounding by truncation leans by half an ulp

DOES = {
    "exceeds": "exceeds the tolerance",
    "nonfinite": "is not finite where golden is",
    "biased": "leans one way by more than rounding does",
}


def _why_visible(evidence: Evidence) -> list[str]:
    first = evidence.comparison.first()
    if first is None:
        return []
    return [
        f"The first visible difference beyond tolerance is at {first.key.site}; it may be inherited. "
        "Replay the golden trace to learn which operator is to blame."
    ]
