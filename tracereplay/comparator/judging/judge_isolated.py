"""From a golden trace and calls replayed in isolation to a verdict.

There was no engine and no generation: only settings of the environment are compared, and there are no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tracereplay.comparator.judging.reasons import DOES, OTHER_GOLDEN, does
from tracereplay.comparator.judging.settings import compare_settings
from tracereplay.comparator.kernels.compiled import WHY_COMPILED_DIFFERS, compilation_of
from tracereplay.comparator.kernels.isolated import OTHER_FORM, IsolatedKernels, compare_isolated_kernels
from tracereplay.comparator.numbers.align import index_pass
from tracereplay.comparator.numbers.blockwise import compare_passes
from tracereplay.comparator.numbers.findings import divergence_of, operators_of, source_of
from tracereplay.comparator.numbers.results import Comparison, Rows
from tracereplay.comparator.numbers.tables import PassIndex
from tracereplay.comparator.numbers.tolerance import Policy
from tracereplay.comparator.oracle import consult
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.passes import ISOLATED, RECORD
from tracereplay.trace import Trace
from tracereplay.trace.parameters import Parameters
from tracereplay.trace.rows import RowFinder
from tracereplay.trace.run import Run
from tracereplay.verdict import Cause, Coverage, Divergence, NotCompared, Outcome, Verdict
from tracereplay.verdict.isolated import Isolated, NotReplayed
from tracereplay.verdict.oracle import Oracle

__all__ = ["judge_isolated"]

_OF_PROCESS = ("versions", "device")  # what a process without an engine can say of itself


@dataclass(frozen=True)
class _Comparisons:
    """What the comparison found.

    Args:
        operators: the comparison of operators; None if none was run.
        kernels: the comparison of kernels; None if golden has none.
        broken: calls that crashed in the candidate only, or returned something of another form.
        coverage: of the operators' calls, or of the kernels if only these were requested.
        oracle: the comparison with float64 references, if requested.
    """

    operators: Comparison | None
    kernels: IsolatedKernels | None
    broken: tuple[NotReplayed, ...]
    coverage: Coverage
    oracle: Oracle | None

    @property
    def compared(self) -> int:
        return self.coverage.compared_calls + (self.kernels.isolated.compared if self.kernels else 0)

    @property
    def first(self) -> Divergence | None:
        """The first operator out of tolerance, with the kernel inside it that is; else the first such kernel."""
        kernel = None if self.kernels is None else self.kernels.first
        found = None if self.operators is None else self.operators.first()
        if found is None:
            return kernel
        first = divergence_of(found)
        same = kernel is not None and (kernel.site, kernel.step) == (first.site, first.step)
        return replace(first, kernel=kernel.kernel) if same and kernel is not None else first


def judge_isolated(golden: Trace, candidate: Trace, policy: Policy, weights: Parameters | None = None) -> Verdict:
    """Compares the outputs of isolated calls with golden's; with ``weights``, also both with float64 references.

    Raises:
        UsageError: golden is not a recording.
        DamagedTrace: the candidate's calls are not golden's.
    """
    golden.require_recording()
    digest = golden.digest()
    mine, theirs = source_of(golden, digest), source_of(candidate, candidate.digest())
    if candidate.run.golden != digest:
        return Verdict("inconclusive", "isolated", None, (OTHER_GOLDEN,), mine, theirs)
    found = _compare(golden, candidate, policy, weights)
    outcome, cause, reasons = _outcome(golden, candidate, found)
    return Verdict(
        verdict=outcome,
        mode="isolated",
        cause=cause,
        reasons=tuple(reasons),
        golden=mine,
        candidate=theirs,
        settings_diff=compare_settings(_process(golden.run), _process(candidate.run)),
        first_divergence=found.first,
        operators=() if found.operators is None else operators_of(found.operators.findings),
        coverage=found.coverage,
        isolated=None if found.kernels is None else found.kernels.isolated,
        oracle=found.oracle,
        notes=(*golden.run.notes, *candidate.run.notes, *_compiled(golden, found)),
    )


def _process(run: Run) -> Run:
    return Run(engine={name: run.engine.get(name) for name in _OF_PROCESS})


def _compare(golden: Trace, candidate: Trace, policy: Policy, weights: Parameters | None) -> _Comparisons:
    told = list(candidate.run.not_replayed)
    left = [NotReplayed(site, calls, why, site) for site, calls, _, why in told]
    kernels = compare_isolated_kernels(golden, candidate, policy) if golden.run.level == "kernel" else None
    broken = [n for n in (*left, *(kernels.isolated.not_replayed if kernels else ())) if _is_broken(n)]
    findings = kernels.oracle if kernels else None
    any_ran = any(step.calls for step in candidate.segment(ISOLATED, candidate.ranks(ISOLATED)[0]).steps())
    if not any_ran and not left:  # only kernels were asked for
        found = None if kernels is None else Coverage(kernels.isolated.calls, kernels.isolated.compared)
        return _Comparisons(None, kernels, tuple(broken), found or Coverage(), findings)
    finder = RowFinder(read_generation(golden, RECORD).tokens)
    index, other = index_pass(golden, RECORD, finder.add), index_pass(candidate, ISOLATED, finder.find)
    rows = Rows(finder, {})
    comparison = compare_passes(_outputs(index, other), other, rows, policy)
    ran = other.calls.first.keys()
    explained = {site for site, _, _, _ in told}
    of_those = [n for n in comparison.coverage.not_compared if n.site not in explained]
    coverage = replace(
        comparison.coverage,
        golden_calls=sum(n for site, n in index.calls.counts().items() if site in ran or site in explained),
        not_compared=(*of_those, *(NotCompared(site, rows, why) for site, _, rows, why in told)),
    )
    if weights is not None:
        oracle = consult(_of_sites(index, other), other, rows, weights, same_inputs=True)
        findings = oracle if findings is None else _together(oracle, findings)
    return _Comparisons(comparison, kernels, tuple(broken), coverage, findings)


def _of_sites(golden: PassIndex, candidate: PassIndex) -> PassIndex:
    """Golden's pass without the sites of which the candidate has no call."""
    ran = candidate.calls.first.keys()
    tables = {key: table for key, table in golden.tables.items() if key.site in ran}
    sites = {name: site for name, site in golden.sites.items() if name in ran}
    return replace(golden, tables=tables, sites=sites)


def _outputs(golden: PassIndex, candidate: PassIndex) -> PassIndex:
    """The same without inputs, which are golden's on both sides."""
    kept = _of_sites(golden, candidate)
    tables = {key: table for key, table in kept.tables.items() if key.side != "in"}
    return replace(kept, tables=tables)


def _together(one: Oracle, other: Oracle) -> Oracle:
    return Oracle((*one.findings, *other.findings), (*one.not_covered, *other.not_covered))


def _outcome(golden: Trace, candidate: Trace, found: _Comparisons) -> tuple[Outcome, Cause | None, list[str]]:
    """Verdict, cause and reasons; a call that crashes in the candidate only is a divergence."""
    if found.first is not None or found.broken:
        compiled = _compiled(golden, found) if found.first is not None and found.first.kernel is None else ()
        return "diverged", "operator", [*_why(found), *compiled, *map(_why_broken, found.broken)]
    reasons = []
    if not golden.complete:
        reasons.append("The golden recording is incomplete; only what it contains was replayed.")
    if not candidate.complete:
        reasons.append("The candidate's trace is incomplete; only what it contains was compared.")
    if not found.compared:
        calls = found.coverage.golden_calls
        reasons.append(f"None of {calls} calls could be replayed and compared.")
    return ("inconclusive" if reasons else "match"), None, reasons


def _compiled(golden: Trace, found: _Comparisons) -> tuple[str, ...]:
    """That golden's operators were compiled and the isolated ones were not."""
    mode = compilation_of(golden.run)
    if mode is None or found.operators is None:
        return ()
    return (f"Golden's model was compiled ({mode}), but isolated operators run eagerly. {WHY_COMPILED_DIFFERS}.",)


def _is_broken(left: NotReplayed) -> bool:
    return left.crashed or left.reason.startswith(OTHER_FORM)


def _why(found: _Comparisons) -> list[str]:
    first = found.first
    if first is None:
        return []
    operator = f"{first.operator or 'the operator'} at {first.site}"
    place = f"{first.kernel}, in {operator}," if first.kernel else f"{operator[:1].upper()}{operator[1:]}"
    kernels = found.kernels
    drawn = (
        " Given a generator in the same state, it draws different numbers." if kernels and kernels.drawn else ""
    )
    others = _others(kernels.isolated, first.kernel) if kernels else ""
    return [
        f"{place} {does(first.error_class, first.metrics)} on golden inputs, executed in isolation.{drawn}{others}"
    ]


def _others(isolated: Isolated, kernel: str | None) -> str:
    beyond = [f.kernel for f in isolated.kernels if f.error_class in DOES and f.kernel != kernel]
    return f" So do {', '.join(dict.fromkeys(beyond))}." if beyond else ""


def _why_broken(left: NotReplayed) -> str:
    calls = "1 call" if left.calls == 1 else f"{left.calls} calls"
    return f"{calls} of {left.kernel} could not be replayed: {left.reason}; the first at {left.site}."
