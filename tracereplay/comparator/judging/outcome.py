"""From two traces to a verdict: settings before structure, structure before numbers.

    traces ──gather_evidence──▶ Evidence ──_judge──▶ Verdict

The order of the checks is the order in which their outcomes count; see `_outcome`.
"""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

from tracereplay.comparator.details import Details
from tracereplay.comparator.judging.evidence import Evidence
from tracereplay.comparator.judging.gather import gather_evidence
from tracereplay.comparator.judging.judge_isolated import judge_isolated
from tracereplay.comparator.judging.named import with_ids
from tracereplay.comparator.judging.reasons import (
    OTHER_GOLDEN,
    OTHER_WEIGHTS,
    why_diverged,
    why_inconclusive,
    why_unobserved,
)
from tracereplay.comparator.judging.settings import effect_of
from tracereplay.comparator.numbers.findings import divergence_of, edge_of, operators_of, source_of
from tracereplay.comparator.numbers.tolerance import Policy
from tracereplay.errors import OtherWeights, UsageError
from tracereplay.gate import weights_directory
from tracereplay.passes import ISOLATED
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.parameters import Parameters
from tracereplay.verdict import Cause, Mode, Outcome, SettingDifference, Source, Verdict

__all__ = ["compare_traces", "judge_unrun"]


def compare_traces(
    golden: Trace | str | PathLike[str], candidate: Trace | str | PathLike[str], policy: Policy | None = None, *,
    oracle: bool = False, model: Path | None = None, details: Details | None = None,
) -> Verdict:  # fmt: skip
    """Compares a candidate trace with the golden one.

    Args:
        golden: a recording.
        candidate: a replay of it (operators are judged on golden inputs, kernels in isolation), or another
            recording of the same workload (only the first visible difference can be found).
        policy: tolerances; the defaults if None.
        oracle: also compare both sides with float64 references.
        model: the checkpoint whose weights the references need, if it has moved since recording.
        details: an empty one, to be filled with what a report shows beyond the verdict.

    Raises:
        UsageError: ``golden`` is not a recording, or ``candidate`` has no pass to compare.
        TraceError: a trace cannot be read.
    """
    mine = golden if isinstance(golden, Trace) else open_trace(golden)
    theirs = candidate if isinstance(candidate, Trace) else open_trace(candidate)
    theirs.offer_base(mine)
    try:
        weights = Parameters(mine, weights_directory(mine, model)) if oracle else None
        if ISOLATED in theirs.passes:
            return with_ids(judge_isolated(mine, theirs, policy or Policy(), weights), mine)
        _refuse_other_tokens(mine, theirs)
        return with_ids(_judge(gather_evidence(mine, theirs, policy or Policy(), weights, details)), mine)
    finally:
        for given, trace in ((golden, mine), (candidate, theirs)):
            if given is not trace:
                trace.close()


def _refuse_other_tokens(mine: Trace, theirs: Trace) -> None:
    """Raises UsageError if tokens were withheld of one trace, or under another key: none would be equal."""
    one, other = ((trace.run.withheld or {}).get("key") for trace in (mine, theirs))
    if one != other:
        raise UsageError(
            f"{mine.path} and {theirs.path} have no tokens in common that could be compared: they were withheld "
            "under different keys, or of one of them only; record both with the same --withhold-key FILE."
        )


def judge_unrun(golden: Trace, engine: str, found: OtherWeights, mode: Mode) -> Verdict:
    """The verdict if no engine was started because it would have run different weights.

    Args:
        golden: the golden trace.
        engine: name of the candidate.
        found: the weights.
        mode: the mode in which it would have been replayed.
    """
    difference = SettingDifference("weights", found.golden, found.candidate, effect_of("weights"))
    return Verdict(
        verdict="inconclusive",
        mode=mode,
        cause="setting",
        reasons=(str(found),),
        golden=source_of(golden, golden.digest()),
        candidate=Source({"name": engine}, "", None),
        settings_diff=(difference,),
    )


def _judge(evidence: Evidence) -> Verdict:
    outcome, cause, reasons = _outcome(evidence)
    first = evidence.comparison.first()
    visible = None if evidence.rerun is None else evidence.rerun.first()
    findings = evidence.comparison.findings
    divergence = None if first is None else replace(divergence_of(first), kernel=_kernel(evidence))
    return Verdict(
        verdict=outcome,
        mode=evidence.mode,
        cause=cause,
        reasons=tuple(reasons),
        golden=source_of(evidence.golden, evidence.digest),
        candidate=source_of(evidence.candidate, evidence.candidate.digest()),
        settings_diff=evidence.settings,
        first_divergence=None if evidence.other_weights else divergence,
        operators=operators_of(findings),
        edges=tuple(edge_of(f) for f in findings if f.kind == "edge"),
        tokens=replace(
            evidence.tokens,
            allowed=evidence.policy.differing_tokens,
            logprob_allowed=evidence.policy.logprob_max_abs,
        ),
        coverage=evidence.coverage,
        first_visible=None if visible is None or evidence.other_weights else divergence_of(visible),
        notes=evidence.notes,
        rollout=evidence.rollout,
        routing=evidence.routing,
        kernels=evidence.inside,
        oracle=evidence.oracle,
    )


def _kernel(evidence: Evidence) -> str | None:
    """The kernel to blame for the first divergence, if known."""
    inside = evidence.inside
    if inside is None or inside.first is None or inside.why != "first divergence":
        return None
    return inside.rows[inside.first].golden


def _outcome(evidence: Evidence) -> tuple[Outcome, Cause | None, list[str]]:
    """Verdict, cause and reasons.

    1. inconclusive: different weights, or a replay of another golden trace that differs from this one
    2. diverged: a place out of tolerance, or tokens or logprobs
    3. inconclusive: what was compared is within tolerance, but something else computes, or it is too little, or
       is not reproducible
    4. match
    """
    if evidence.other_weights:
        return "inconclusive", "setting", [OTHER_WEIGHTS]
    parted = evidence.conclusive is not None or evidence.tokens_part or evidence.logprobs_part
    if parted and evidence.other_golden:
        return "inconclusive", None, [OTHER_GOLDEN]
    if parted:
        cause = _cause(evidence)
        return "diverged", cause, [*why_diverged(evidence, cause), *why_inconclusive(evidence)]
    reasons = why_inconclusive(evidence)
    if evidence.unobserved:
        return "inconclusive", "unobserved", [why_unobserved(evidence), *reasons]
    return ("inconclusive" if reasons else "match"), None, reasons


def _cause(evidence: Evidence) -> Cause | None:
    """What the difference comes from, as far as known; None if only a replay could tell.

    Settings come first: if one changes what is computed where the difference begins, the operator there does what
    it was told to.
    """
    first = evidence.comparison.first()
    if evidence.only_quantity or evidence.update_explains or evidence.explaining:
        return "setting"
    if first is not None and evidence.provable:
        if evidence.unshared:
            return "structure"
        return "edge" if first.kind == "edge" else "operator"
    if evidence.mode != "injected":
        return None
    if _unobserved(evidence):
        return "unobserved"
    return "structure" if evidence.unmatched else "rounding"


def _unobserved(evidence: Evidence) -> bool:
    """Whether the rerun diverges although nothing does on the same inputs.

    The rerun's first difference of all lies at a place where everything before is still golden. If that very
    place is identical in the injected pass, it reads something that is not recorded.
    """
    findings = evidence.comparison.findings
    if all(f.error_class == "identical" for f in findings if f.rows):
        return not evidence.unmatched
    first = None if evidence.rerun is None else evidence.rerun.first_different()
    injected = {f.key: f.error_class for f in findings if f.rows}
    return first is not None and injected.get(first.key) == "identical"
