"""From a golden trace and calls that were replayed alone to a verdict.

There was no engine and no generation: settings that differ are those of the environment, and tokens say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracereplay.comparator.findings import source_of
from tracereplay.comparator.isolated import OTHER_FORM, KernelsAlone, compare_kernels_alone
from tracereplay.comparator.reasons import DOES, OTHER_GOLDEN
from tracereplay.comparator.settings import compare_settings
from tracereplay.comparator.tolerance import Policy
from tracereplay.errors import UsageError
from tracereplay.isolated import Isolated, NotReplayed
from tracereplay.trace import Trace
from tracereplay.verdict import Cause, Coverage, Outcome, Verdict

__all__ = ["judge_isolated"]

_OF_PROCESS = ("versions", "device")  # what a process without an engine can say of itself


def judge_isolated(golden: Trace, candidate: Trace, policy: Policy) -> Verdict:
    """Compares what calls gave alone with what golden's gave.

    Raises:
        UsageError: golden is no recording.
        DamagedTrace: the candidate's calls are not golden's.
    """
    if "record" not in golden.passes:
        raise UsageError(f"{golden.path} is a replay, not a recording; give the golden recording first.")
    digest = golden.digest()
    mine, theirs = source_of(golden, digest), source_of(candidate, candidate.digest())
    if candidate.run.get("golden") != digest:
        return Verdict("inconclusive", "isolated", None, (OTHER_GOLDEN,), mine, theirs)
    alone = compare_kernels_alone(golden, candidate, policy)
    outcome, cause, reasons = _outcome(golden, candidate, alone)
    return Verdict(
        verdict=outcome,
        mode="isolated",
        cause=cause,
        reasons=tuple(reasons),
        golden=mine,
        candidate=theirs,
        settings_diff=compare_settings(_process(golden.run), _process(candidate.run)),
        first_divergence=alone.first,
        coverage=Coverage(alone.isolated.calls, alone.isolated.compared),
        isolated=alone.isolated,
        oracle=alone.oracle,
        notes=tuple(map(str, [*(golden.run.get("notes") or ()), *(candidate.run.get("notes") or ())])),
    )


def _process(run: Mapping[str, Any]) -> dict[str, Any]:
    engine = run.get("engine") or {}
    return {"engine": {name: engine.get(name) for name in _OF_PROCESS}}


def _outcome(golden: Trace, candidate: Trace, alone: KernelsAlone) -> tuple[Outcome, Cause | None, list[str]]:
    """Verdict, cause and reasons; a call that the candidate dies of, and golden did not, is a divergence."""
    broken = [left for left in alone.isolated.not_replayed if _is_broken(left)]
    if alone.first is not None or broken:
        return "diverged", "operator", [*_why(alone), *map(_why_broken, broken)]
    reasons = []
    if not golden.complete:
        reasons.append("The golden recording is incomplete; only what it holds was replayed.")
    if not candidate.complete:
        reasons.append("The candidate's trace is incomplete; only what it holds was compared.")
    if not alone.isolated.compared:
        reasons.append(f"None of {alone.isolated.calls} calls could be replayed and compared.")
    return ("inconclusive" if reasons else "match"), None, reasons


def _is_broken(left: NotReplayed) -> bool:
    return left.crashed or left.reason.startswith(OTHER_FORM)


def _why(alone: KernelsAlone) -> list[str]:
    first = alone.first
    if first is None:
        return []
    place = f"{first.kernel}, in {first.operator or 'the operator'} at {first.site},"
    drawn = " From a generator in the same state it draws other numbers." if alone.drawn else ""
    others = _others(alone.isolated, first.kernel)
    return [f"{place} {DOES[first.error_class]} on golden's inputs, executed alone.{drawn}{others}"]


def _others(isolated: Isolated, kernel: str | None) -> str:
    beyond = [f.kernel for f in isolated.kernels if f.error_class in DOES and f.kernel != kernel]
    return f" So do {', '.join(dict.fromkeys(beyond))}." if beyond else ""


def _why_broken(left: NotReplayed) -> str:
    calls = "1 call" if left.calls == 1 else f"{left.calls} calls"
    return f"{calls} of {left.kernel} could not be repeated: {left.reason}; the first at {left.site}."
