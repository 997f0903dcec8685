"""Looking inside one operator: finding its call on both sides, and comparing kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from typing import NamedTuple

import numpy as np

from tracereplay.comparator.kernels.inside.sequence import align, computing, inputs, pairs, results
from tracereplay.comparator.kernels.inside.values import Difference, Values, described, worst
from tracereplay.comparator.numbers.tolerance import Policy
from tracereplay.event import Call, Kernel, RowKey, Step, Value, is_triton
from tracereplay.passes import RECORD
from tracereplay.trace import Trace
from tracereplay.trace.select import step_of
from tracereplay.verdict.inside import Inside, KernelRow, SharedValue, Why
from tracereplay.verdict.measures import BEYOND

__all__ = ["Place", "look_inside"]


class Place(NamedTuple):
    """The call to look into.

    Args:
        site, operator: which operator.
        key: a row of the call.
        step: golden's.
        why: why this one.
        golden: the site in golden; None if it is no operator of its own there.
    """

    site: str
    operator: str
    key: RowKey
    step: int
    why: Why
    golden: str | None


def look_inside(golden: Trace, candidate: Trace, pass_name: str, place: Place, policy: Policy) -> Inside:
    """Compares what ran inside the call of golden's recording with what ran inside the candidate's.

    Args:
        golden, candidate: traces with kernels.
        pass_name: the candidate's.
        place: the call.
        policy: tolerances; a kernel's name stands for the operator.
    """
    said = place.site, place.operator, place.why, place.step
    if len(golden.ranks(RECORD)) > 1 or len(candidate.ranks(pass_name)) > 1:
        return Inside(*said, 0, not_compared="kernels of several tensor-parallel ranks are not put together")
    if place.golden is None:
        return Inside(*said, 0, not_compared="golden runs it as several operators, or as a part of one")
    mine = _call(step_of(golden, RECORD, place.step), place.golden, place)
    steps = candidate.segment(pass_name, candidate.ranks(pass_name)[0]).steps()
    theirs = next((found for step in steps if (found := _call(step, place.site, place)) is not None), None)
    if mine is None or theirs is None:
        return Inside(*said, 0, not_compared="there is no such call on both sides")
    sides = [_inside(step, call) for step, call in (mine, theirs)]
    if not all(sides):
        return Inside(*said, 0, not_compared="no kernels were recorded of it on both sides")
    values = _values(mine[1], theirs[1], place, policy)
    rows, shared = _compare(_side(sides[0]), _side(sides[1]), values)
    return Inside(*said, len(values.keys), tuple(rows), tuple(shared), _first(rows))


def _call(step: Step, site: str, place: Place) -> tuple[Step, Call] | None:
    """The site's call of the step that has the row."""
    for call in step.calls:
        if call.site == site and (call.rows_out == np.array(place.key, np.int32)).all(axis=1).any():
            return step, call
    return None


def _inside(step: Step, call: Call) -> list[Kernel]:
    """The call's kernels, with parents by their places among these."""
    places = [i for i, k in enumerate(step.kernels) if (k.site, k.call) == (call.site, call.number)]
    here = {place: n for n, place in enumerate(places)}
    return [replace(k, parent=here.get(k.parent, -1)) for k in map(step.kernels.__getitem__, places)]


def _values(mine: Call, theirs: Call, place: Place, policy: Policy) -> Values:
    """The rows that both calls have."""
    rows = mine.rows_in, theirs.rows_in
    known = {tuple(key): i for i, key in enumerate(rows[1].tolist())}
    kept = [(i, tuple(key)) for i, key in enumerate(rows[0].tolist()) if key[2] >= 0]  # no rejected drafts
    pairs = [(i, known[key]) for i, key in kept if key in known]
    at = np.array(pairs, np.int64).reshape(-1, 2)
    sizes = tuple(_size(call) for call in (mine, theirs))
    return Values(at[:, 0], at[:, 1], (sizes[0], sizes[1]), rows[0][at[:, 0]], place.step, place.site, policy)


def _size(call: Call) -> int:
    """Rows of its tensors, padding included."""
    return next(
        (v.shape[0] for v in call.inputs if v.shape and v.shape[0] >= len(call.rows_in)), len(call.rows_in)
    )


class _Computed(NamedTuple):
    """A kernel that computes, and what it reads."""

    kernel: Kernel
    inputs: Mapping[str, Value]


def _side(kernels: Sequence[Kernel]) -> list[_Computed]:
    return list(starmap(_Computed, zip(computing(kernels), inputs(kernels), strict=True)))


def _compare(
    golden: Sequence[_Computed], candidate: Sequence[_Computed], values: Values
) -> tuple[list[KernelRow], list[SharedValue]]:
    places = align([one.kernel for one in golden], [one.kernel for one in candidate])
    rows = [_row(None if i is None else golden[i], None if j is None else candidate[j], values) for i, j in places]
    unpaired = [n for n, (i, j) in enumerate(places) if i is None or j is None]
    shared = []
    for n in unpaired:
        i, _ = places[n]
        others = [(m, candidate[j].kernel) for m in unpaired if (j := places[m][1]) is not None]
        if i is not None:
            kernel = golden[i].kernel
            given = results(kernel).items()
            shared += [s for name, v in given if (s := _nearest(n, name, v, kernel.name, others, values))]
    return rows, shared


def _row(golden: _Computed | None, candidate: _Computed | None, values: Values) -> KernelRow:
    one = golden or candidate
    assert one is not None
    row = KernelRow(_name(golden), _name(candidate), ", ".join(map(described, results(one.kernel).values())))
    if golden is None or candidate is None:
        return row
    name = golden.kernel.name
    takes = _worst(_inputs(golden, candidate), name, values)
    gives = _worst(pairs(golden.kernel, candidate.kernel), name, values)
    inputs = None if takes is None else takes.error_class
    if gives is None:
        return replace(row, inputs=inputs)
    return replace(row, inputs=inputs, error_class=gives.error_class, metrics=gives.metrics)


def _name(one: _Computed | None) -> str | None:
    return None if one is None else one.kernel.name


def _inputs(golden: _Computed, candidate: _Computed) -> list[tuple[Value, Value]]:
    """By name; in their order where versions of a kernel call them otherwise."""
    mine, theirs = golden.inputs, candidate.inputs
    if mine.keys() == theirs.keys() or is_triton(golden.kernel):
        return [(value, theirs[name]) for name, value in mine.items() if name in theirs]
    return list(zip(mine.values(), theirs.values(), strict=False))


def _worst(compared: Iterable[tuple[Value, Value]], kernel: str, values: Values) -> Difference | None:
    return worst([d for a, b in compared if (d := values.compare(a, b, kernel)) is not None])


def _nearest(
    row: int, name: str, value: Value, kernel: str, others: Sequence[tuple[int, Kernel]], values: Values
) -> SharedValue | None:
    """The candidate's value that is this one: within tolerance, of the same dtype if there is such a one, nearest,
    and of equals the last, since a value may be widened before it is rounded again."""
    found = []
    for n, other in others:
        for theirs in results(other).values():
            difference = values.compare(value, theirs, kernel)
            if difference is not None and difference.error_class not in (*BEYOND, "incomparable"):
                rank = theirs.dtype != value.dtype, difference.metrics.relative_l2, -n
                found.append((rank, n, difference))
    if not found:
        return None
    _, n, difference = min(found, key=lambda one: one[0])
    result = described(value) if name.isdecimal() else f"{name} {described(value)}"
    return SharedValue(row, n, result, difference.error_class, difference.metrics)


def _first(rows: Sequence[KernelRow]) -> int | None:
    """The first kernel out of tolerance on inputs that are within; else the first that differs on equal inputs."""
    for n, row in enumerate(rows):
        if row.error_class in BEYOND and row.inputs not in BEYOND:
            return n
    for n, row in enumerate(rows):
        if row.error_class not in (None, "identical", "incomparable") and row.inputs in (None, "identical"):
            return n
    return None
