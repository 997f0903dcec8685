"""Everything that a verdict is based on: the passes of two traces, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tracereplay.comparator.align import Ints, PassIndex, index_pass, sites_of
from tracereplay.comparator.exclusions import (
    after_parting,
    drawn_at_random,
    other_integers,
    unfed_context,
    unfed_input,
)
from tracereplay.comparator.inside import Place, look_inside
from tracereplay.comparator.measure import Comparison, Exclusion, Finding, Rows, compare_passes
from tracereplay.comparator.oracle import consult
from tracereplay.comparator.requests import OtherPrompts, compare_prompts, compare_sampling
from tracereplay.comparator.rollout import rollout_numbers
from tracereplay.comparator.routing import compare_routing, turned_by_a_tie
from tracereplay.comparator.settings import WEIGHTS_UPDATE, compare_settings, compare_updates, explains
from tracereplay.comparator.staleness import Versions, computed_again, of_other_weights, read_versions
from tracereplay.comparator.structure import Unshared, built_otherwise, unshared_before
from tracereplay.comparator.sums import by_sums, note_of_sums, unfed_sums
from tracereplay.comparator.tokens import Generation, compare_tokens, first_differences, read_generation
from tracereplay.comparator.tolerance import Policy
from tracereplay.engines.naming import map_of
from tracereplay.errors import UsageError
from tracereplay.event import RowKey, RowMap
from tracereplay.passes import INJECTED, INJECTED_AGAIN, RECORD, RERUN
from tracereplay.trace import Trace
from tracereplay.trace.parameters import Parameters
from tracereplay.trace.rows import RowFinder
from tracereplay.verdict import Coverage, Mode, RoutingFinding, SettingDifference, TokenFinding
from tracereplay.verdict.inside import Inside, Why
from tracereplay.verdict.oracle import Oracle
from tracereplay.verdict.rollout import Rollout

__all__ = ["Evidence", "gather_evidence"]

# Where a tensor could not be paired at all, as opposed to rows that were left out for a reason.
_ABSENT = ("the candidate has no such site", "the candidate never called it")
_LACKS_OUTPUT = "the candidate's call has no output"


@dataclass(frozen=True)
class Evidence:
    """Everything that the verdict is based on.

    Args:
        comparison: of the pass that belongs to the mode.
        rerun: injected mode: of the rerun, up to where it first leaves the tolerance.
        unstable: sites that differed between two injected passes.
        other_golden: the candidate is a replay of another golden trace, by its digest.
        rollout: importance ratios in the uninjected pass, if there is one and it has logprobs.
        routing: the findings for each router, in the uninjected pass if there is one.
        inside: kernels of the first operator that diverges, else of that with the largest error, if both recorded
            them.
        oracle: the comparison with float64 references, if requested.
        tie: the first divergence is of experts that a near tie in their router chose.
        unshared: operators that only one side runs right before the first divergence, if that is an edge.
        built: configuration in which the two sides' operators at the first divergence differ.
        prompts: requests whose prompts differ.
        versions: golden's and the candidate's weights, in the uninjected pass if there is one.
    """

    golden: Trace
    candidate: Trace
    digest: str
    policy: Policy
    mode: Mode
    settings: tuple[SettingDifference, ...]
    comparison: Comparison
    rerun: Comparison | None
    tokens: TokenFinding
    unstable: tuple[str, ...]
    other_golden: bool
    notes: tuple[str, ...] = ()
    rollout: Rollout | None = None
    versions: tuple[Versions, Versions] = (Versions(), Versions())
    routing: tuple[RoutingFinding, ...] = ()
    inside: Inside | None = None
    oracle: Oracle | None = None
    tie: bool = False
    unshared: Unshared | None = None
    built: tuple[tuple[str, Any, Any], ...] = ()
    prompts: OtherPrompts | None = None

    @property
    def coverage(self) -> Coverage:
        return self.comparison.coverage

    @property
    def other_weights(self) -> bool:
        return any(d.name == "weights" and None not in (d.golden, d.candidate) for d in self.settings)

    @property
    def explaining(self) -> tuple[SettingDifference, ...]:
        """Settings that explain the difference, by what they change at the place where it begins.

        That place is the first divergence if it is to blame, else the first difference of all, before which
        everything is identical. If tokens diverge and no place is out of tolerance, it is any that differs.
        """
        first = self.comparison.first()
        if first is not None:
            begins = first if self.provable else self.comparison.first_different()
            places = [] if begins is None else [begins]
        else:  # what the sampler computes is no reason to part: its tokens come of the logits that it is given
            places = [f for f in self.comparison.findings if f.first_different and f.role != "sampler"]
        return tuple(d for d in self.settings if any(_explains(d, place) for place in places))

    @property
    def besides(self) -> Finding | None:
        """In the injected pass: the first place out of tolerance that no setting explains."""
        beyond = (f for f in self.comparison.findings if f.blamed is not None and self.mode == "injected")
        return next((f for f in beyond if not any(_explains(d, f) for d in self.settings)), None)

    @property
    def other_update(self) -> bool:
        """Whether weights were updated at different places, or with the cache kept on one side only."""
        return any(d.name == WEIGHTS_UPDATE for d in self.settings)

    @property
    def update_explains(self) -> bool:
        """Whether that explains the first divergence, or the difference without one.

        What older weights left is read out of the cache, which no tap sees: attention may differ on equal inputs.
        In the injected pass the cache is golden's too, and what differs there is an operator's own doing.
        """
        first = self.comparison.first()
        if not self.other_update or first is None or not self.provable:
            return self.other_update
        return self.mode != "injected" and first.role == "attention"

    @property
    def tokens_part(self) -> bool:
        return self.tokens.differing > self.policy.differing_tokens

    @property
    def logprobs_part(self) -> bool:
        return (self.tokens.logprob_max or 0.0) > self.policy.logprob_max_abs

    @property
    def other_quantity(self) -> bool:
        """Whether the two report different quantities as logprobs, and the logprobs otherwise agree."""
        reported = None if self.rollout is None else self.rollout.reported
        return reported is not None and reported.differ and reported.raw_max_diff <= self.policy.logprob_max_abs

    @property
    def only_quantity(self) -> bool:
        """Whether nothing else differs: no token, and nothing before the sampler is out of tolerance."""
        first = self.comparison.first()
        return self.other_quantity and not self.tokens_part and (first is None or first.role == "sampler")

    @property
    def blamed(self) -> Finding | None:
        """The first finding out of tolerance, if it is a fact about that place and not about what came before.

        In the injected pass it always is. Elsewhere a value that is not finite is, under a strict policy any
        difference is, and so is the very first difference of all, since what precedes it is identical.
        """
        first = self.comparison.first()
        if first is None or self.mode == "injected" or self.policy.strict or first.error_class == "nonfinite":
            return first
        return None

    @property
    def provable(self) -> bool:
        """Whether the first divergence is to blame: in the injected pass, or if everything before is identical."""
        first = self.comparison.first()
        if self.mode == "injected" or first is None:
            return first is not None
        shown, different = first.blamed, first.first_different
        same_call = shown is not None and different is not None and shown.order == different.order
        return same_call and first is self.comparison.first_different()

    @property
    def unmatched(self) -> list[str]:
        """Sites that the two engines do not share, or whose tensors cannot be compared.

        A call that lacks some outputs and has others is no such site: a compiler removes what nothing uses,
        such as the residual after the last norm.
        """
        findings = self.comparison.findings
        shared = {f.key.site for f in findings if f.kind == "operator"}
        missing = [n for n in self.coverage.not_compared if n.site not in shared]
        found = [n.site for n in missing if n.reason.startswith((*_ABSENT, _LACKS_OUTPUT))]
        found += [f.key.site for f in findings if f.error_class == "incomparable" and f.reason
                  and not f.reason.startswith("none of its rows")]  # fmt: skip
        return list(dict.fromkeys(found))


def gather_evidence(
    golden: Trace, candidate: Trace, policy: Policy, weights: Parameters | None = None
) -> Evidence:
    """Compares the passes of two traces; with ``weights``, also with float64 references.

    Raises:
        UsageError: ``golden`` is not a recording, or ``candidate`` has no pass to compare.
        TraceError: a trace cannot be read.
    """
    golden.require_recording()
    mode, name = _mode(candidate)
    fed = mode == "injected"
    mine, theirs = read_generation(golden, RECORD), _candidate_generation(candidate, mode)
    finder = RowFinder(mine.tokens)
    site_map = map_of(sites_of(golden, RECORD), sites_of(candidate, name).values())
    golden_pass = index_pass(golden, RECORD, _once_each(finder.add), site_map)
    candidate_pass = index_pass(candidate, name, _once_each(finder.find))
    index, other = by_sums(golden_pass, candidate_pass)
    rows = Rows(finder, mine.tokens)
    versions = read_versions(index.steps, mine)
    current = read_versions(other.steps, theirs)
    exclusions = [
        *_exclusions(mode, mine, theirs, index, other, rows),
        *([computed_again(versions, index, rows), unfed_sums(golden_pass, candidate_pass)] if fed else []),
        of_other_weights(versions, current, rows),
    ]
    comparison = compare_passes(index, other, rows, policy, exclusions=exclusions, isolated=mode == "injected")
    rerun, free, left_out = None, other, exclusions
    isolated, first = comparison if mode == "injected" else None, comparison.first()
    if mode == "injected" and RERUN in candidate.passes:
        again, free = by_sums(golden_pass, index_pass(candidate, RERUN, _once_each(finder.find)))
        current = read_versions(free.steps, theirs)
        left_out = [drawn_at_random(mine, again, rows), of_other_weights(versions, current, rows)]
        rerun = compare_passes(again, free, rows, policy, exclusions=left_out, until_beyond=True)
    forced = mode != "compare"
    tokens, rollout = TokenFinding(), None
    if not (mode == "injected" and rerun is None):
        sampled = index.sampled, free.sampled, mine, theirs
        tokens = compare_tokens(*sampled, forced=forced)
        sides = (golden, "record"), (candidate, name if mode == "compare" else "rerun")
        rollout = rollout_numbers(*sampled, forced=forced, sides=sides)
    digest = golden.digest()
    worst = comparison.first()
    at_edge = worst is not None and worst.kind == "edge"
    given = compare_sampling(mine, theirs) if mode == "compare" else ()
    return Evidence(
        golden=golden,
        candidate=candidate,
        digest=digest,
        policy=policy,
        mode=mode,
        settings=compare_settings(
            golden.run,
            candidate.run,
            drawn=not all(mine.greedy),
            also=(*given, *compare_updates(versions, current)),
        ),
        comparison=comparison,
        rerun=rerun,
        tokens=tokens,
        unstable=_unstable(candidate, candidate_pass, finder, rows),
        other_golden=candidate.run.golden not in (None, digest) and golden.complete,
        notes=(
            *_trace_notes(golden, candidate, index, other),
            *note_of_sums(index, other, fed=fed),
            *comparison.notes,
        ),
        rollout=rollout,
        versions=(versions, current),
        routing=compare_routing(index, free, isolated, left_out),
        oracle=None if weights is None else consult(golden_pass, candidate_pass, rows, weights, same_inputs=fed),
        inside=_look_inside(golden, candidate, name, comparison, policy),
        tie=first is not None and isolated is not None and turned_by_a_tie(index, isolated, first, rows),
        unshared=unshared_before(index, other, worst.key.site) if at_edge and worst is not None else None,
        built=() if worst is None else built_otherwise(*(p.sites.get(worst.key.site) for p in (index, other))),
        prompts=compare_prompts(mine, theirs) if mode == "compare" else None,
    )


def _explains(difference: SettingDifference, place: Finding) -> bool:
    return explains(difference, place.role, place.key.index, edge=place.kind == "edge")


def _look_inside(
    golden: Trace, candidate: Trace, name: str, comparison: Comparison, policy: Policy
) -> Inside | None:
    """What ran inside the operator that matters most, if kernels were recorded on both sides."""
    if {golden.run.level, candidate.run.level} != {"kernel"} or name == RERUN:
        return None
    first = comparison.first()
    why: Why = "largest error" if first is None else "first divergence"
    event = None if first is None else first.blamed
    if first is None:
        first = max(
            (f for f in comparison.findings if f.kind == "operator" and f.first_different is not None),
            key=lambda f: f.metrics.allowance_ratio, default=None,
        )  # fmt: skip
    if first is None or first.kind == "edge":
        return None
    worst = first.metrics.worst if event is None else event.metrics.worst
    assert worst is not None
    key = RowKey(worst.request, worst.sequence, worst.position)
    return look_inside(
        golden,
        candidate,
        name,
        Place(first.key.site, first.operator, key, worst.step, why, _golden_site(first)),
        policy,
    )


def _golden_site(finding: Finding) -> str | None:
    """Golden's one operator of a finding; None where several are joined, or it is a part of one."""
    pair = finding.pair
    if pair is None or (len(pair.golden) == 1 and pair.part is None):
        return finding.key.site if pair is None else pair.golden[0]
    return None


def _mode(candidate: Trace) -> tuple[Mode, str]:
    """The mode, and the pass that it compares."""
    passes = candidate.passes
    if INJECTED in passes:
        return "injected", INJECTED
    if RERUN in passes:
        return "rerun", RERUN
    if RECORD in passes:
        return "compare", RECORD
    raise UsageError(f"{candidate.path} has no pass to compare; it has {list(passes)}.")


def _candidate_generation(candidate: Trace, mode: Mode) -> Generation:
    name = RECORD if mode == "compare" else RERUN if RERUN in candidate.passes else INJECTED
    return read_generation(candidate, name)


def _once_each(number_rows: Callable[[RowMap], Ints]) -> Callable[[RowMap], Ints]:
    """Remembers row maps, since one row map serves many calls and recurs in many passes."""
    known: dict[bytes, Ints] = {}

    def numbered(rows: RowMap) -> Ints:
        content = rows.tobytes()
        if content not in known:
            known[content] = number_rows(rows)
        return known[content]

    return numbered


def _unstable(candidate: Trace, index: PassIndex, finder: RowFinder, rows: Rows) -> tuple[str, ...]:
    """Sites whose injected results are not reproducible, if the injected pass was run twice."""
    if INJECTED_AGAIN not in candidate.passes:
        return ()
    again = index_pass(candidate, INJECTED_AGAIN, _once_each(finder.find))
    found = compare_passes(index, again, rows, Policy().made_strict())
    return tuple(dict.fromkeys(f.key.site for f in found.findings if f.rows and f.error_class != "identical"))


def _trace_notes(golden: Trace, candidate: Trace, index: PassIndex, other: PassIndex) -> list[str]:
    notes = [note for trace in (golden, candidate) for note in trace.run.notes]
    notes += [*index.notes, *other.notes]
    if index.schedule != other.schedule:
        notes.append(
            f"The engines composed their batches differently: {len(index.schedule)} steps in golden, "
            f"{len(other.schedule)} in the candidate. Rows are matched one by one."
        )
    return list(dict.fromkeys(notes))


def _exclusions(
    mode: Mode, mine: Generation, theirs: Generation, index: PassIndex, other: PassIndex, rows: Rows
) -> Sequence[Exclusion]:
    parted = first_differences(mine, theirs)
    found = [after_parting(parted, rows)] if parted else []
    found.append(drawn_at_random(mine, index, rows))
    if mode == "injected":
        found += [unfed_input(index, rows), unfed_context(index, rows), other_integers(index, other)]
    return found
