"""Kernels replayed in isolation against golden's: what differs, and what was not replayed and why.

The candidate's step has a kernel at the place of each of golden's (`alone.replay`), so that nothing
needs to be aligned. A result's rows run along its last dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from tracereplay.comparator.numbers.dtypes import coarser, is_float
from tracereplay.comparator.numbers.tables import Array
from tracereplay.comparator.numbers.tally import Event, Tally, compare_rows, onset_of
from tracereplay.comparator.numbers.tolerance import (
    Policy,
    passing_bias,
    passing_tolerance,
    tally_for,
    tolerance_for,
    unit_factors,
)
from tracereplay.comparator.oracle import Duel
from tracereplay.errors import DamagedTrace
from tracereplay.event import Kernel, LeftOut, Named, Opaque, Site, Step, Value, flatten
from tracereplay.passes import ISOLATED, RECORD, REFERENCE
from tracereplay.trace import Trace
from tracereplay.verdict import Divergence
from tracereplay.verdict.isolated import NOT_ASKED, Isolated, KernelFinding, NotReplayed
from tracereplay.verdict.measures import ErrorClass, Tolerance, precedence
from tracereplay.verdict.oracle import NotCovered, Oracle, OracleFinding

__all__ = ["OTHER_FORM", "IsolatedKernels", "compare_isolated_kernels", "draws"]

OTHER_FORM = (
    "returned something different"  # how a reason begins where results have another shape, dtype or number
)
_UNWRITTEN = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
)


@dataclass(frozen=True, slots=True)
class IsolatedKernels:
    """What the comparison found.

    Args:
        isolated: for the verdict.
        first: the first kernel out of tolerance; see `verdict.measures.precedence`.
        drawn: whether that kernel draws random numbers.
        oracle: both sides against the same calls on float64 inputs, if these were made.
    """

    isolated: Isolated
    first: Divergence | None = None
    drawn: bool = False
    oracle: Oracle | None = None


@dataclass(slots=True)
class _Compared:
    """What was found so far of one kernel with results of one dtype.

    Args:
        drawn: whether it draws random numbers, from a generator whose state was recorded.
        places: of each call that differs, by its order: the site, and which result differs first.
    """

    kernel: str
    tolerance: Tolerance
    tally: Tally
    drawn: bool
    calls: int = 0
    last: int = -1
    places: dict[int, tuple[Site, int]] = field(default_factory=dict)

    @property
    def error_class(self) -> ErrorClass:
        """Over all calls; results without elements, which have no rows, are the same."""
        return self.tally.error_class if self.tally.rows else "identical"

    @property
    def onset(self) -> Event | None:
        """The first call that is out of tolerance, if any."""
        return onset_of(self.error_class, self.tally.first_different, self.tally.first_beyond)


def compare_isolated_kernels(golden: Trace, candidate: Trace, policy: Policy) -> IsolatedKernels:
    """Compares the pass `isolated` of a candidate with the kernels of golden.

    Raises:
        DamagedTrace: the candidate's kernels are not at golden's places.
    """
    comparison = _Comparison(policy)
    for rank in golden.ranks(RECORD):
        comparison.add(golden, candidate, rank)
    found = comparison.found()
    return found if REFERENCE not in candidate.passes else replace(found, oracle=_consult(golden, candidate))


def _consult(golden: Trace, candidate: Trace) -> Oracle:
    """Holds every kernel that has a reference against it, all sites of a kernel together."""
    duels: dict[str, Duel] = {}
    left: dict[str, str] = {}
    for rank in golden.ranks(RECORD):
        passes = (golden, RECORD), (candidate, ISOLATED), (candidate, REFERENCE)
        for mine, theirs, exact in zip(
            *(trace.segment(name, rank).steps() for trace, name in passes), strict=True
        ):
            for kernel, other, reference in zip(mine.kernels, theirs.kernels, exact.kernels, strict=True):
                if other.failed or _nothing_to_compare(kernel) or _other_form(kernel, other):
                    continue
                if not any(is_float(_form(result)[0]) for result in _all(kernel)):
                    continue
                if reference.failed or _other_form(kernel, reference):
                    left.setdefault(kernel.name, reference.failed or "the reference has another form")
                    continue
                results = map(list, map(_results, (kernel, other, reference)))
                for (a, dtype), (b, other_dtype), (truth, _) in zip(*results, strict=True):
                    if is_float(dtype) and a.size:
                        same = truth.astype(np.float64)
                        duels.setdefault(kernel.name, Duel()).add(a, b, (same, same), (dtype, other_dtype))
    findings = [OracleFinding("", "", n, 0, d.rows, *d.errors, d.nearer) for n, d in duels.items()]
    return Oracle(tuple(findings), tuple(NotCovered("", n, why) for n, why in left.items() if n not in duels))


class _Comparison:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._compared: dict[tuple[str, str], _Compared] = {}
        self._left: dict[tuple[str, str], tuple[int, str]] = {}
        self._calls = 0

    def add(self, golden: Trace, candidate: Trace, rank: int) -> None:
        """Compares what one rank recorded."""
        sites = golden.sites(RECORD, rank)
        pairs = zip_longest(golden.segment(RECORD, rank).steps(), candidate.segment(ISOLATED, rank).steps())
        for mine, theirs in pairs:
            if mine is None or theirs is None or [*map(_name, mine.kernels)] != [*map(_name, theirs.kernels)]:
                raise DamagedTrace(
                    f"{candidate.path} does not have the kernels of {golden.path}, which it is a replay of."
                )
            for kernel, other in zip(mine.kernels, theirs.kernels, strict=True):
                if other.failed != NOT_ASKED:
                    self._kernel(mine, sites[kernel.site], kernel, other)

    def found(self) -> IsolatedKernels:
        findings = tuple(map(_finding, self._compared.values()))
        left = tuple(NotReplayed(name, n, why, site) for (name, why), (n, site) in self._left.items())
        beyond = [(c, onset) for c in self._compared.values() if (onset := c.onset) is not None]
        first = min(beyond, key=lambda pair: precedence(pair[0].error_class, pair[1].order), default=None)
        isolated = Isolated(self._calls, findings, left)
        return (
            IsolatedKernels(isolated)
            if first is None
            else IsolatedKernels(isolated, _divergence(*first), first[0].drawn)
        )

    def _kernel(self, step: Step, site: Site, kernel: Kernel, other: Kernel) -> None:
        order, self._calls = self._calls, self._calls + 1
        reason = other.failed or _nothing_to_compare(kernel) or _other_form(kernel, other)
        if reason:
            self._leave(kernel, reason)
            return
        pairs = list(zip(_results(kernel), _results(other), strict=True))
        rules = [self._tolerance(site, kernel, mine[1], theirs[1]) for mine, theirs in pairs]
        if None in rules:
            self._leave(kernel, "ignored by the policy")
            return
        for index, ((mine, theirs), tolerance) in enumerate(zip(pairs, rules, strict=True)):
            assert tolerance is not None
            self._result(step, site, kernel, order, index, mine, theirs, tolerance)

    def _tolerance(self, site: Site, kernel: Kernel, *dtypes: str) -> Tolerance | None:
        dtype = coarser(*dtypes) if is_float(dtypes[0]) else dtypes[0]
        return tolerance_for(self._policy, site.name, kernel.name, dtype, "operator")

    def _result(
        self, step: Step, site: Site, kernel: Kernel, order: int, index: int, mine: tuple[Array, str],
        theirs: tuple[Array, str], tolerance: Tolerance,
    ) -> None:  # fmt: skip
        known = self._compared.get((kernel.name, tolerance.dtype))
        if known is None:
            # Some kernels may have been chosen, which cannot show whether most of the engine's lean alike.
            tally = tally_for(self._policy, tolerance, site.name, kernel.name, "operator", conventional=True)
            known = self._compared[kernel.name, tolerance.dtype] = _Compared(
                kernel.name, tolerance, tally, draws(kernel)
            )
        known.calls += known.last != order
        known.last = order
        rows = len(mine[0])
        before = known.tally.equal
        compare_rows(
            known.tally, mine[0], theirs[0], (mine[1], theirs[1]), unit_factors(tolerance), np.abs,
            lambda: (_keys(step, rows), np.full(rows, order), np.full(rows, step.number)),
        )  # fmt: skip
        if known.tally.equal - before != mine[0].size:
            known.places.setdefault(order, (site, index))

    def _leave(self, kernel: Kernel, reason: str) -> None:
        calls, site = self._left.get((kernel.name, reason), (0, kernel.site))
        self._left[kernel.name, reason] = calls + 1, site


def _name(kernel: Kernel) -> str:
    return kernel.name


def draws(kernel: Kernel) -> bool:
    """Whether a kernel draws random numbers: it has a generator, and is no attention without dropout."""
    random = any(isinstance(a, Opaque) and a.kind == "Generator" for a in flatten(kernel.given))
    return random and not ("scaled_dot_product" in kernel.name and kernel.by_name().get("dropout_p", 0.0) == 0)


def _nothing_to_compare(kernel: Kernel) -> str | None:
    """Why golden has nothing to compare a result with."""
    name = kernel.name.split(".")[1]
    results = [*flatten(kernel.outputs), *kernel.written.values()]
    if name in _UNWRITTEN:
        return "nothing to compare: its result is uninitialized memory"
    if not any(isinstance(r, Value | bool | int | float) for r in results):
        named = any(isinstance(r, Named) for r in results)
        return f"nothing to compare: it gives {'a parameter, or a view of one' if named else 'nothing'}"
    left = next((r for r in results if isinstance(r, LeftOut)), None)
    return None if left is None else f"nothing to compare: {left.reason} was not recorded"


def _other_form(kernel: Kernel, other: Kernel) -> str | None:
    """How the candidate's results differ from golden's in number, shape or kind of dtype."""
    mine, theirs = list(map(_form, _all(kernel))), list(map(_form, _all(other)))
    if len(mine) != len(theirs):
        return f"{OTHER_FORM}: {len(theirs)} results for {len(mine)}"
    for index, (golden, candidate) in enumerate(zip(mine, theirs, strict=True)):
        if golden[1] != candidate[1] or is_float(golden[0]) != is_float(candidate[0]):
            return f"{OTHER_FORM}: result {index} is {_words(candidate)}, and {_words(golden)} in golden"
    return None


def _words(form: tuple[str, tuple[int, ...]]) -> str:
    return f"{form[0]}{list(form[1])}"


def _all(kernel: Kernel) -> list[Any]:
    """Its results that can be compared: tensors and numbers, returned or written."""
    results = [*flatten(kernel.outputs), *(kernel.written[i] for i in sorted(kernel.written))]
    return [r for r in results if isinstance(r, Value | bool | int | float)]


def _form(result: Value | float) -> tuple[str, tuple[int, ...]]:
    if isinstance(result, Value):
        return result.dtype, result.shape
    return ("float64" if isinstance(result, float) else "int64"), ()


def _results(kernel: Kernel) -> Iterator[tuple[Array, str]]:
    """Each result as rows ``[rows, width]`` in storage dtype, and its dtype."""
    for result in _all(kernel):
        dtype, shape = _form(result)
        array = result.numpy() if isinstance(result, Value) else np.array(result, dtype)
        yield array.reshape(-1, shape[-1] if shape and array.size else 1), dtype


def _keys(step: Step, rows: int) -> Array:
    """Which token each row is, ``[rows, 3]``: the step's rows where there are as many, else its first for all."""
    if rows == len(step.rows):
        return step.rows
    first = step.rows[:1] if len(step.rows) else np.zeros((1, 3), np.int32)
    return np.repeat(first, rows, axis=0)


def _finding(compared: _Compared) -> KernelFinding:
    tally = compared.tally
    first = compared.onset or tally.first_different
    site = compared.places[first.order][0].name if first is not None else ""
    return KernelFinding(
        compared.kernel, compared.tolerance.dtype, compared.error_class, compared.calls, tally.metrics,
        compared.tolerance, passing_tolerance(compared.tolerance, compared.error_class, tally.metrics), site,
        0 if first is None else first.step,
    )  # fmt: skip


def _divergence(compared: _Compared, event: Event) -> Divergence:
    site, index = compared.places[event.order]
    worst = event.metrics.worst
    assert worst is not None
    tally = compared.tally
    return Divergence(
        kind="operator", site=site.name, operator=site.operator, kernel=compared.kernel,
        error_class=compared.error_class, request=worst.request, sequence=worst.sequence, position=worst.position,
        step=event.step, index=index, metrics=event.metrics, tolerance=compared.tolerance,
        passing_tolerance=passing_tolerance(compared.tolerance, compared.error_class, tally.metrics),
        passing_bias=passing_bias(compared.error_class, tally.metrics),
    )  # fmt: skip
