"""Compares two passes: pairs their rows, streams their tensors, and says of each what differs.

Tensors are read in blocks of golden's calls, a few dozen MB at a time, so that memory is bounded and both
files are read nearly in order; within a block each tensor's rows of many steps are compared at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import xxhash

from tracereplay.comparator.numbers.blocks import fit, pieces
from tracereplay.comparator.numbers.dtypes import coarser, is_float
from tracereplay.comparator.numbers.leans import judge_leans
from tracereplay.comparator.numbers.results import Comparison, Exclusion, Finding, Mask, Rows
from tracereplay.comparator.numbers.siblings import Group, Groups
from tracereplay.comparator.numbers.tables import (
    LANE,
    Array,
    Ints,
    Pairs,
    PassIndex,
    Table,
    TableKey,
    gather,
    pair_rows,
    surely_equal,
)
from tracereplay.comparator.numbers.tally import Tally, compare_rows
from tracereplay.comparator.numbers.tolerance import (
    Policy,
    allow_convention,
    tally_for,
    tolerance_for,
    unit_factors,
)
from tracereplay.comparator.numbers.watching import Watch
from tracereplay.sitemap import Pair
from tracereplay.verdict import Coverage, NotCompared, Tolerance

__all__ = ["compare_passes", "mismatch", "size_of"]


@dataclass(slots=True)
class _Job:
    """One tensor to compare: paired rows, in golden order."""

    key: TableKey
    operator: str
    role: str
    golden: Table
    candidate: Table
    mine: Ints
    theirs: Ints
    dtypes: tuple[str, str]
    tolerance: Tolerance
    magnitude: Callable[[Array], Array]
    tally: Tally
    reason: str | None = None


@dataclass(slots=True)
class _Worklist:
    """The jobs, and what is left out of them."""

    jobs: list[_Job] = field(default_factory=list)
    left_out: dict[tuple[str, str], int] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    _pairs: dict[tuple[object, object], Pairs] = field(default_factory=dict)
    _kept: dict[tuple[int, bytes], tuple[Ints, Ints]] = field(default_factory=dict)

    def pairs(self, golden: Table, candidate: Table) -> Pairs:
        """The rows that both have; tables with the same rows share them, that memory does not grow with sites."""
        key = golden.pattern, candidate.pattern
        if key not in self._pairs:
            self._pairs[key] = pair_rows(golden, candidate)
        return self._pairs[key]

    def kept(self, pairs: Pairs, keep: Mask) -> tuple[Ints, Ints]:
        """Those of the pairs that are kept; shared, too."""
        key = id(pairs), xxhash.xxh3_128_digest(np.packbits(keep).data)
        if key not in self._kept:
            self._kept[key] = pairs.golden[keep], pairs.candidate[keep]
        return self._kept[key]

    def leave_out(self, key: TableKey, reason: str, rows: int) -> None:
        """Rows of an output, or of an input that is the only one to speak for its site."""
        if rows and key.side != "in":
            self.left_out[key.site, reason] = max(self.left_out.get((key.site, reason), 0), rows)


def compare_passes(
    golden: PassIndex,
    candidate: PassIndex,
    rows: Rows,
    policy: Policy,
    *,
    exclusions: Sequence[Exclusion] = (),
    on_golden_inputs: bool = False,
    until_beyond: bool = False,
    watch: Watch | None = None,
) -> Comparison:
    """Compares every tensor that both passes have.

    Args:
        golden, candidate: the passes.
        rows: what the row numbers stand for.
        policy: tolerances.
        exclusions: rows not to compare, with reasons; the first that names a row gives its reason.
        on_golden_inputs: whether every operator had golden inputs, so that what leans is the operator's own doing.
        until_beyond: stop at the first block with a call out of tolerance (to learn only where that is).
        watch: told of every row.
    """
    calls = _Calls(golden)
    worklist = _Worklist()
    for key, table in golden.tables.items():
        _add_job(worklist, calls, golden, candidate, table, rows, policy, exclusions)
        _note_repeats(worklist, key, table)
    _fit(worklist.jobs, calls)
    if watch is not None:
        _tell(watch, worklist.jobs)
    _stream(worklist.jobs, calls, rows, until_beyond=until_beyond)
    golden.calls.let_go()
    candidate.calls.let_go()
    _allow_conventions(worklist.jobs, golden, candidate, policy, on_golden_inputs=on_golden_inputs)
    found = (_finding(job, golden.pairs.get(job.key.site)) for job in worklist.jobs)
    findings = sorted(found, key=lambda f: (calls.first(f.key.site), f.key.rank))
    _note_extra(worklist, golden, candidate)
    _leave_out_rejected(worklist, golden, candidate)
    return Comparison(tuple(findings), calls.coverage(worklist), tuple(worklist.notes))


def _note_extra(worklist: _Worklist, golden: PassIndex, candidate: PassIndex) -> None:
    """What the candidate has and golden has not: it cannot be judged, but it may explain what can."""
    sites = [site for site in candidate.sites if site not in golden.sites]
    if sites:
        worklist.notes[f"The candidate has {len(sites)} sites that golden has not: {_some(sites)}."] = None
    inputs = [k for k in candidate.tables if k.side == "in" and k.site in golden.sites and k not in golden.tables]
    if inputs:
        names = _some([f"{key.site} (input {key.index})" for key in inputs])
        worklist.notes[f"The candidate gives operators inputs that golden does not: {names}."] = None


def _leave_out_rejected(worklist: _Worklist, golden: PassIndex, candidate: PassIndex) -> None:
    """Drafts that were rejected: their positions are computed again, for the tokens that came instead."""
    for index, who in ((golden, "golden"), (candidate, "the candidate")):
        for site, rows in index.rejected.items():
            if site in golden.sites:
                worklist.left_out[site, f"drafts that {who} rejected"] = rows


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _note_repeats(worklist: _Worklist, key: TableKey, table: Table) -> None:
    if table.repeats and key.side == "out":
        worklist.notes["Some rows were computed more than once; the last computation is compared."] = None


class _Calls:
    """Golden's calls, of which those that were compared are counted, site by site."""

    def __init__(self, index: PassIndex) -> None:
        self.index = index
        self._site = ""
        self._compared, self._due = _NO_CALLS, _NO_CALLS
        self._counts = [0, 0]  # calls with an output row that was compared, and those with none that should be

    def first(self, site: str) -> int:
        return self.index.calls.first.get(site, 1 << 60)

    def mark(self, table: Table, compared: Ints, due: Ints) -> None:
        """Notes which calls had an output row compared, and which had one that should have been.

        A site's tables come one after the other.
        """
        if table.key.side != "in":
            if table.key.site != self._site:
                self._count()
                self._site = table.key.site
            self._compared = np.union1d(self._compared, table.order(compared))
            self._due = np.union1d(self._due, table.order(due))

    def _count(self) -> None:
        self._counts[0] += len(self._compared)
        self._counts[1] += len(np.setdiff1d(self._due, self._compared, assume_unique=True))
        self._compared, self._due = _NO_CALLS, _NO_CALLS

    def coverage(self, worklist: _Worklist) -> Coverage:
        self._count()
        left = tuple(NotCompared(site, rows, reason) for (site, reason), rows in worklist.left_out.items())
        calls, (compared, due) = len(self.index.calls), self._counts
        return Coverage(calls, compared, left, calls - compared - due)


_NO_CALLS: Ints = np.empty(0, np.int64)


# Collecting jobs: structure before numbers.


def _add_job(
    worklist: _Worklist, calls: _Calls, golden: PassIndex, candidate: PassIndex, table: Table, rows: Rows,
    policy: Policy, exclusions: Sequence[Exclusion],
) -> None:  # fmt: skip
    key = table.key
    site = golden.sites.get(key.site)
    operator, role = (site.operator, site.role) if site else ("", "")
    other = candidate.tables.get(key)
    every = np.arange(len(table.ids))
    reason = golden.apart.get(key.site) or mismatch(table, other, key, candidate)
    if other is None or reason is not None:
        calls.mark(table, every[:0], every)
        worklist.leave_out(key, reason or "", len(every))
        if other is not None:
            worklist.jobs.append(_incomparable(key, operator, role, table, other, reason))
        return
    dtypes = _dtype(table), _dtype(other)
    dtype = coarser(*dtypes) if is_float(dtypes[0]) else dtypes[0]
    named = key.site, operator, dtype, "edge" if key.side == "in" else "operator"
    tolerance = tolerance_for(policy, *named, role)
    if tolerance is None:
        rule = policy.rule_for(*named)
        worklist.leave_out(key, f"ignored by the policy: {rule.describe() if rule else ''}", len(every))
        return
    mine, theirs = _paired(worklist, calls, table, other, rows, exclusions)
    tally = tally_for(policy, tolerance, key.site, operator, named[-1], role)
    size = size_of(role, key.side)
    worklist.jobs.append(_Job(key, operator, role, table, other, mine, theirs, dtypes, tolerance, size, tally))


def size_of(role: str, side: str) -> Callable[[Array], Array]:
    """How large golden's elements count in their allowance."""
    return _of_logprobs if role == "sampler" and side == "out" else np.abs


def _of_logprobs(x: Array) -> Array:
    """At least 1: a logprob close to zero is the logarithm of a sum close to 1, and errs as that sum does."""
    return np.maximum(np.abs(x), 1)


def _dtype(table: Table) -> str:
    return table.tensors[0].dtype


def _incomparable(key: TableKey, operator: str, role: str, table: Table, other: Table, reason: str | None) -> _Job:
    none = np.empty(0, np.int64)
    tolerance = Tolerance(0.0, 0.0, _dtype(table) if table.tensors else "")
    return _Job(key, operator, role, table, other, none, none, ("", ""), tolerance, np.abs, Tally(), reason)


def mismatch(table: Table, other: Table | None, key: TableKey, candidate: PassIndex) -> str | None:
    """Why two tensors cannot be compared, or None."""
    what = "input" if key.side == "in" else "output"
    if other is None:
        if key.site not in candidate.sites:
            return "the candidate has no such site"
        if not any(k.site == key.site for k in candidate.tables):
            return "the candidate never called it"
        return f"the candidate's call has no {what} {key.index}"
    for broken in (table.broken, other.broken):
        if broken:
            return f"{what} {key.index}: {broken}"
    mine, theirs = table.signature(), other.signature()
    if mine is None or theirs is None:
        return f"{what} {key.index}: its shape or dtype changes from call to call"
    if mine[1] != theirs[1]:
        return f"{what} {key.index}: a row has {mine[1]} elements in golden and {theirs[1]} in the candidate"
    if is_float(mine[0]) != is_float(theirs[0]):
        return f"{what} {key.index}: its dtype is {mine[0]} in golden and {theirs[0]} in the candidate"
    return None


def _paired(
    worklist: _Worklist, calls: _Calls, table: Table, other: Table, rows: Rows, exclusions: Sequence[Exclusion]
) -> tuple[Ints, Ints]:
    """Indices of the rows to compare; says what is left out, and why."""
    pairs = worklist.pairs(table, other)
    out = np.zeros(len(table.ids), bool)
    for exclusion in exclusions:
        found = exclusion(table)
        if found is not None:
            reason, mask = found
            worklist.leave_out(table.key, reason, int((mask & ~out).sum()))
            out |= mask
    mine, theirs = worklist.kept(pairs, ~out[pairs.golden])
    absent = ~out
    absent[mine] = False
    shared = absent & np.isin(_beginning(table, rows), _beginning(table, rows)[mine])
    worklist.leave_out(table.key, "computed once for requests with an equal beginning", int(shared.sum()))
    due = np.flatnonzero(absent & ~shared)
    worklist.leave_out(table.key, "the candidate has no such rows", len(due))
    calls.mark(table, mine, due)
    return mine, theirs


def _beginning(table: Table, rows: Rows) -> Ints:
    found: Ints = rows.beginning[table.ids % LANE]
    return found


# Streaming: numbers.


def _fit(jobs: Sequence[_Job], calls: _Calls) -> None:
    """Cuts the candidate to what one of golden's blocks needs at once, by the job that has most rows."""
    known = [job for job in jobs if len(job.mine) and job.golden.column and job.candidate.column]
    if known:
        job = max(known, key=lambda job: len(job.mine))
        assert job.candidate.column is not None
        fit(job.candidate.column, job.theirs, calls.index.calls.blocks(job.golden.order(job.mine)))


def _stream(jobs: Sequence[_Job], calls: _Calls, rows: Rows, *, until_beyond: bool) -> None:
    """Compares block after block; within a block one tensor after the other."""
    block, picks = -1, _Picks()
    for number, at, start, stop in heapq.merge(*(_pieces(at, job, calls) for at, job in enumerate(jobs))):
        if until_beyond and number != block and any(j.tally.first_beyond for j in jobs):
            return
        if number != block:
            picks.clear()
        block = number
        _compare_piece(
            jobs[at], picks.of(jobs[at].mine, start, stop), picks.of(jobs[at].theirs, start, stop), calls, rows
        )


def _tell(watch: Watch, jobs: Sequence[_Job]) -> None:
    for job in jobs:
        watch.compared(job.key, job.golden.ids[job.mine] % LANE)
        job.tally.watch = partial(watch.differ, job.key)


def _pieces(at: int, job: _Job, calls: _Calls) -> Iterator[tuple[int, int, int, int]]:
    """A job's rows cut at block boundaries: (block, number of the job, start, stop)."""
    if len(job.mine):
        for block, start, stop in pieces(calls.index.calls.blocks(job.golden.order(job.mine))):
            yield block, at, start, stop


class _Picks:
    """Parts of the jobs' rows: one array for all jobs that share their rows, so that columns know it again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], Ints] = {}

    def of(self, rows: Ints, start: int, stop: int) -> Ints:
        """``rows[start:stop]``; ``rows`` lives as long as its job."""
        key = id(rows), start, stop
        if key not in self._known:
            self._known[key] = rows[start:stop]
        return self._known[key]

    def clear(self) -> None:
        """Forgets them."""
        self._known.clear()


def _compare_piece(job: _Job, mine: Ints, theirs: Ints, calls: _Calls, rows: Rows) -> None:
    if job.dtypes[0] == job.dtypes[1] and surely_equal(job.golden, mine, job.candidate, theirs):
        job.tally.add_equal(len(mine), job.golden.tensors[0].width)
        return

    def place() -> tuple[Array, Array, Array]:
        order = job.golden.order(mine)
        return rows.keys[job.golden.ids[mine] % LANE], order, calls.index.calls.steps(order)

    compare_rows(
        job.tally, gather(job.golden, mine), gather(job.candidate, theirs), job.dtypes,
        unit_factors(job.tolerance), job.magnitude, place,
    )  # fmt: skip


def _allow_conventions(
    jobs: Sequence[_Job], golden: PassIndex, candidate: PassIndex, policy: Policy, *, on_golden_inputs: bool
) -> None:
    """Lets tensors lean by more where that is a rounding convention, or where the lean may be inherited."""
    found: dict[Group, list[Tally]] = {}
    groups = Groups(golden, candidate)
    for job in jobs:
        if not on_golden_inputs:
            allow_convention(job.tally, policy)
        elif job.tally.rows and is_float(job.tolerance.dtype):
            found.setdefault(groups.group_of(job.key, job.tolerance.dtype), []).append(job.tally)
    for group, siblings in found.items():
        judge_leans(siblings, group.dtype, policy.bias_sign_max_ulp)


def _finding(job: _Job, pair: Pair | None) -> Finding:
    tally = job.tally
    called = len(np.unique(job.golden.order(job.mine))) if len(job.mine) else 0
    found: dict[str, Any] = {"first_different": tally.first_different, "first_beyond": tally.first_beyond}
    return Finding(
        job.key, job.operator, job.role, tally.error_class, called, tally.rows, tally.metrics, job.tolerance,
        **found, reason=job.reason or (None if tally.rows else "none of its rows could be compared"),
        pair=pair, inputs=job.candidate.sums,
    )  # fmt: skip
