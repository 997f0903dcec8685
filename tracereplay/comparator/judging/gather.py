"""From two traces to the evidence: which passes are compared in which mode, and what of them counts.

    mode       judged pass   free pass    golden inputs
    injected   injected      rerun        fed
    rerun      rerun         rerun        -
    compare    record        record       -            tokens are not forced and may part

The judged pass is compared operator by operator. In the free one nothing is fed, so that errors add up as they
would: it tells of tokens, logprobs and routers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tracereplay.comparator.details import Details
from tracereplay.comparator.judging.evidence import Evidence
from tracereplay.comparator.judging.routing import compare_routing, turned_by_a_tie
from tracereplay.comparator.judging.settings import compare_settings, compare_updates
from tracereplay.comparator.judging.staleness import Versions, computed_again, of_other_weights, read_versions
from tracereplay.comparator.judging.structure import built_otherwise, unshared_before
from tracereplay.comparator.kernels.inside import Place, look_inside
from tracereplay.comparator.numbers.align import index_pass, sites_of
from tracereplay.comparator.numbers.blockwise import compare_passes
from tracereplay.comparator.numbers.exclusions import (
    after_parting,
    drawn_at_random,
    other_integers,
    past_the_end,
    unfed_calls,
    unfed_context,
    unfed_input,
)
from tracereplay.comparator.numbers.gates import by_gates, gated_inside
from tracereplay.comparator.numbers.results import Comparison, Exclusion, Finding, Rows
from tracereplay.comparator.numbers.sums import by_sums, note_of_sums, unfed_sums
from tracereplay.comparator.numbers.tables import Ints, PassIndex
from tracereplay.comparator.numbers.tolerance import Policy
from tracereplay.comparator.oracle import consult
from tracereplay.comparator.tokens.generation import Generation, compare_tokens, first_differences, read_generation
from tracereplay.comparator.tokens.requests import compare_prompts, compare_sampling
from tracereplay.comparator.tokens.rollout import rollout_numbers
from tracereplay.engines.naming import map_of
from tracereplay.errors import UsageError
from tracereplay.event import RowKey, RowMap
from tracereplay.passes import INJECTED, INJECTED_AGAIN, RECORD, RERUN
from tracereplay.trace import Trace
from tracereplay.trace.parameters import Parameters
from tracereplay.trace.rows import RowFinder
from tracereplay.verdict import Mode, SettingDifference, TokenFinding
from tracereplay.verdict.census import CensusFinding
from tracereplay.verdict.inside import Inside, Why
from tracereplay.verdict.oracle import Oracle
from tracereplay.verdict.rollout import Rollout

__all__ = ["gather_evidence"]


def gather_evidence(
    golden: Trace, candidate: Trace, policy: Policy, weights: Parameters | None = None,
    details: Details | None = None,
) -> Evidence:  # fmt: skip
    """Compares the passes of two traces; with ``weights``, also with float64 references; fills ``details``.

    Raises:
        UsageError: ``golden`` is not a recording, or ``candidate`` has no pass to compare.
        TraceError: a trace cannot be read.
    """
    golden.require_recording()
    sides = _read(golden, candidate)
    judged = _judged(sides, policy, details)
    free = _free(sides, judged, policy, details)
    tokens, rollout = _generated(sides, free, details)
    digest = golden.digest()
    first = judged.comparison.first()
    own_errors = judged.comparison if sides.fed else None  # elsewhere an error may be inherited
    return Evidence(
        golden=golden,
        candidate=candidate,
        digest=digest,
        policy=policy,
        mode=sides.mode,
        settings=_settings(sides, free),
        comparison=judged.comparison,
        rerun=free.comparison,
        tokens=tokens,
        unstable=_unstable(sides),
        other_golden=candidate.run.golden not in (None, digest) and golden.complete,
        notes=_notes(sides, judged),
        rollout=rollout,
        versions=free.versions,
        routing=compare_routing(judged.golden, free.candidate, own_errors, free.exclusions),
        oracle=None if weights is None else _oracle(sides, weights),
        inside=_look_inside(sides, judged.comparison, policy),
        tie=first is not None and _is_tie(sides, judged, first),
        unshared=unshared_before(*judged.passes, first.key.site) if first and first.kind == "edge" else None,
        built=() if first is None else built_otherwise(*(p.sites.get(first.key.site) for p in judged.passes)),
        prompts=compare_prompts(sides.mine, sides.theirs) if sides.mode == "compare" else None,
        census=CensusFinding(sides.golden_pass.census, free.candidate.census),
    )


@dataclass(frozen=True)
class _Sides:
    """Two traces as far as every mode reads them.

    Args:
        mode, name: and the judged pass.
        mine, theirs: what was generated.
        finder, rows: golden's rows, by number.
        golden_pass, candidate_pass: the judged passes, golden's in the candidate's naming.
    """

    golden: Trace
    candidate: Trace
    mode: Mode
    name: str
    mine: Generation
    theirs: Generation
    finder: RowFinder
    rows: Rows
    golden_pass: PassIndex
    candidate_pass: PassIndex

    @property
    def fed(self) -> bool:
        """Whether every operator was given golden inputs."""
        return self.mode == "injected"

    def index(self, name: str) -> PassIndex:
        """Another pass of the candidate's."""
        return index_pass(self.candidate, name, _once_each(self.finder.find))


def _read(golden: Trace, candidate: Trace) -> _Sides:
    mode, name = _mode(candidate)
    mine, theirs = read_generation(golden, RECORD), _candidate_generation(candidate, mode)
    finder = RowFinder(mine.tokens)
    site_map = map_of(sites_of(golden, RECORD), sites_of(candidate, name).values())
    golden_pass = index_pass(golden, RECORD, _once_each(finder.add), site_map)
    candidate_pass = index_pass(candidate, name, _once_each(finder.find))
    rows = Rows(finder, mine.tokens)
    return _Sides(golden, candidate, mode, name, mine, theirs, finder, rows, golden_pass, candidate_pass)


@dataclass(frozen=True)
class _Judged:
    """The pass that the mode names, compared operator by operator.

    Args:
        golden, candidate: the passes, by the inputs that can be compared.
        versions: of the weights, golden's and the candidate's.
        exclusions: what was left out.
    """

    golden: PassIndex
    candidate: PassIndex
    versions: tuple[Versions, Versions]
    exclusions: Sequence[Exclusion]
    comparison: Comparison

    @property
    def passes(self) -> tuple[PassIndex, PassIndex]:
        return self.golden, self.candidate


def _by_what_arrives(golden: PassIndex, candidate: PassIndex, *, fed: bool) -> tuple[PassIndex, PassIndex]:
    """Both passes by the inputs that can be compared: sums added up, router logits where experts make them."""
    return by_sums(golden, by_gates(golden, candidate, fed=fed))


def _judged(sides: _Sides, policy: Policy, details: Details | None) -> _Judged:
    golden, candidate = _by_what_arrives(sides.golden_pass, sides.candidate_pass, fed=sides.fed)
    versions, current = read_versions(golden.steps, sides.mine), read_versions(candidate.steps, sides.theirs)
    exclusions = _exclusions(sides, golden, candidate)
    if sides.fed:
        exclusions += [
            computed_again(versions, golden, sides.rows), unfed_sums(sides.golden_pass, sides.candidate_pass)
        ]  # fmt: skip
    exclusions.append(of_other_weights(versions, current, sides.rows))
    if details is not None:
        details.begin(sides.name, golden, candidate, sides.rows)
    comparison = compare_passes(
        golden, candidate, sides.rows, policy, exclusions=exclusions, on_golden_inputs=sides.fed, watch=details
    )
    if details is not None:
        details.end(golden, candidate, comparison.first())
    return _Judged(golden, candidate, (versions, current), exclusions, comparison)


@dataclass(frozen=True)
class _Free:
    """The pass in which nothing is fed; in an injected replay the rerun, if it was made.

    Args:
        candidate: the pass.
        exclusions: what does not count in it.
        versions: of the weights, golden's and the candidate's.
        comparison: of the rerun of an injected replay, up to where it first leaves the tolerance.
        generated: whether it tells of tokens; an injected pass does not.
    """

    candidate: PassIndex
    exclusions: Sequence[Exclusion]
    versions: tuple[Versions, Versions]
    comparison: Comparison | None = None
    generated: bool = True


def _free(sides: _Sides, judged: _Judged, policy: Policy, details: Details | None) -> _Free:
    if not (sides.fed and RERUN in sides.candidate.passes):
        return _Free(judged.candidate, judged.exclusions, judged.versions, generated=not sides.fed)
    golden, candidate = _by_what_arrives(sides.golden_pass, sides.index(RERUN), fed=False)
    versions, current = judged.versions[0], read_versions(candidate.steps, sides.theirs)
    left_out = [
        past_the_end(sides.mine, sides.rows), drawn_at_random(sides.mine, golden, sides.rows),
        of_other_weights(versions, current, sides.rows)
    ]  # fmt: skip
    rerun = compare_passes(
        golden, candidate, sides.rows, policy, exclusions=left_out, until_beyond=details is None
    )
    if details is not None:
        details.free(rerun)
    return _Free(candidate, left_out, (versions, current), rerun)


def _generated(sides: _Sides, free: _Free, details: Details | None) -> tuple[TokenFinding, Rollout | None]:
    """What became of tokens and logprobs."""
    if not free.generated:
        return TokenFinding(), None
    forced = sides.mode != "compare"
    sampled = sides.golden_pass.sampled, free.candidate.sampled, sides.mine, sides.theirs
    passes = (sides.golden, RECORD), (sides.candidate, RERUN if forced else sides.name)
    tokens = compare_tokens(*sampled, forced=forced)
    if details is not None:
        details.generation(*sampled, forced=forced)
    return tokens, rollout_numbers(*sampled, forced=forced, sides=passes)


def _settings(sides: _Sides, free: _Free) -> tuple[SettingDifference, ...]:
    given = compare_sampling(sides.mine, sides.theirs) if sides.mode == "compare" else ()
    updates = compare_updates(*free.versions)
    drawn = not all(sides.mine.greedy)
    return compare_settings(sides.golden.run, sides.candidate.run, drawn=drawn, also=(*given, *updates))


def _oracle(sides: _Sides, weights: Parameters) -> Oracle:
    return consult(sides.golden_pass, sides.candidate_pass, sides.rows, weights, same_inputs=sides.fed)


def _is_tie(sides: _Sides, judged: _Judged, first: Finding) -> bool:
    """Whether a near tie in a router chose other experts, and that is the first divergence."""
    return sides.fed and turned_by_a_tie(judged.golden, judged.comparison, first, sides.rows)


def _look_inside(sides: _Sides, comparison: Comparison, policy: Policy) -> Inside | None:
    """What ran inside the operator that matters most, if kernels were recorded on both sides."""
    golden, candidate, name = sides.golden, sides.candidate, sides.name
    if {golden.run.level, candidate.run.level} != {"kernel"} or name == RERUN:
        return None
    first = comparison.first()
    why: Why = "largest error" if first is None else "first divergence"
    event = None if first is None else first.onset
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
    if pair is None or (len(pair.golden) == 1 and pair.part is None and pair.order is None):
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


def _unstable(sides: _Sides) -> tuple[str, ...]:
    """Sites whose injected results are not reproducible, if the injected pass was run twice."""
    if INJECTED_AGAIN not in sides.candidate.passes:
        return ()
    strict = Policy().made_strict()
    found = compare_passes(sides.candidate_pass, sides.index(INJECTED_AGAIN), sides.rows, strict)
    return tuple(dict.fromkeys(f.key.site for f in found.findings if f.rows and f.error_class != "identical"))


def _steps(golden: int, candidate: int) -> str:
    """How many batches there were."""
    return (
        f"{golden} steps in each"
        if golden == candidate
        else f"{golden} steps in golden, {candidate} in the candidate"
    )


def _notes(sides: _Sides, judged: _Judged) -> tuple[str, ...]:
    """What a reader must know of the passes."""
    index, other = judged.passes
    notes = [note for trace in (sides.golden, sides.candidate) for note in trace.run.notes]
    notes += [*index.notes, *other.notes]
    if (company := sides.golden.outline(RECORD).said()) is not None:
        notes.append(f"In golden: {company}")
    if not index.steps.same_rows(other.steps):
        notes.append(
            f"The engines put requests into batches differently ({_steps(len(index.steps), len(other.steps))}). "
            "Each row is compared with its own in golden, whatever batch it was in."
        )
    if padded := _padded_otherwise(index.padding, other.padding):
        notes.append(
            f"CUDA graphs pad batches otherwise: {padded}. Real rows are compared; a kernel that is given more "
            "rows may sum in another order."
        )
    return (*dict.fromkeys(notes), *note_of_sums(index, other, fed=sides.fed), *judged.comparison.notes)


def _padded_otherwise(golden: Mapping[int, int], candidate: Mapping[int, int]) -> str:
    """The first number of rows that is padded otherwise, in words; empty if none is."""
    for rows in sorted({*golden, *candidate}):
        one, other = golden.get(rows, rows), candidate.get(rows, rows)
        if one != other:
            real = "1 row" if rows == 1 else f"{rows} rows"
            return f"a step of {real} computes {one} in golden, {other} in the candidate"
    return ""


def _exclusions(sides: _Sides, golden: PassIndex, candidate: PassIndex) -> list[Exclusion]:
    rows, parted = sides.rows, first_differences(sides.mine, sides.theirs)
    found = [after_parting(parted, rows)] if parted else []
    found.append(past_the_end(sides.mine, rows))
    found.append(drawn_at_random(sides.mine, golden, rows))
    if sides.fed:
        found += [
            unfed_input(golden, rows),
            unfed_context(golden, rows),
            unfed_calls(sides.golden_pass, candidate, gated_inside(sides.golden_pass, sides.candidate_pass)),
            other_integers(golden, candidate),
        ]
    return found
