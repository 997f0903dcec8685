"""Looking inside one operator: finding its call on both sides, and comparing kernel by kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tracereplay.comparator.kernels.inside.sequence import align, computing, results
from tracereplay.comparator.kernels.inside.values import Difference, Values, described, worst
from tracereplay.comparator.numbers.tolerance import Policy
from tracereplay.event import Call, Kernel, RowKey, Step, Value, flatten
from tracereplay.passes import RECORD
from tracereplay.trace import Trace
from tracereplay.trace.select import step_of
from tracereplay.verdict.inside import Inside, KernelRow, SharedValue, Why
from tracereplay.verdict.measures import BEYOND

__all__ = ["Place", "look_inside"]

ONLY_WRITTEN = frozenset({"out", "output", "result", "c"})  # names of arguments in kernels' schemas


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
    sides = [
        [k for k in step.kernels if (k.site, k.call) == (call.site, call.number)] for step, call in (mine, theirs)
    ]
    if not all(sides):
        return Inside(*said, 0, not_compared="no kernels were recorded of it on both sides")
    values = _values(mine[1], theirs[1], place, policy)
    rows, shared = _compare(computing(sides[0]), computing(sides[1]), values)
    return Inside(*said, len(values.keys), tuple(rows), tuple(shared), _first(rows))


def _call(step: Step, site: str, place: Place) -> tuple[Step, Call] | None:
    """The site's call of the step that has the row."""
    for call in step.calls:
        if call.site == site and (call.rows_out == np.array(place.key, np.int32)).all(axis=1).any():
            return step, call
    return None


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


def _compare(
    golden: Sequence[Kernel], candidate: Sequence[Kernel], values: Values
) -> tuple[list[KernelRow], list[SharedValue]]:
    pairs = align(golden, candidate)
    rows = [_row(None if i is None else golden[i], None if j is None else candidate[j], values) for i, j in pairs]
    unpaired = [n for n, (i, j) in enumerate(pairs) if i is None or j is None]
    shared = []
    for n in unpaired:
        i, _ = pairs[n]
        others = [(m, candidate[j]) for m in unpaired if (j := pairs[m][1]) is not None]
        if i is not None:
            given = results(golden[i]).items()
            shared += [s for name, v in given if (s := _nearest(n, name, v, golden[i].name, others, values))]
    return rows, shared


def _row(golden: Kernel | None, candidate: Kernel | None, values: Values) -> KernelRow:
    one = golden or candidate
    assert one is not None
    row = KernelRow(_name(golden), _name(candidate), ", ".join(map(described, results(one).values())))
    if golden is None or candidate is None:
        return row
    takes = _worst(_tensors(golden), _tensors(candidate), golden.name, values)
    gives = _worst([*results(golden).values()], [*results(candidate).values()], golden.name, values)
    inputs = None if takes is None else takes.error_class
    if gives is None:
        return replace(row, inputs=inputs)
    return replace(row, inputs=inputs, error_class=gives.error_class, metrics=gives.metrics)


def _name(kernel: Kernel | None) -> str | None:
    return None if kernel is None else kernel.name


def _tensors(kernel: Kernel) -> list[Value]:
    """Its tensor arguments but for those it only writes: what is in them before means nothing."""
    read = [argument for name, argument in kernel.by_name().items() if name not in ONLY_WRITTEN]
    return [argument for argument in flatten(read) if isinstance(argument, Value)]


def _worst(mine: Sequence[Value], theirs: Sequence[Value], kernel: str, values: Values) -> Difference | None:
    found = [d for a, b in zip(mine, theirs, strict=False) if (d := values.compare(a, b, kernel)) is not None]
    return worst(found)


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
