"""Steps of a segment anew, with chosen requests, tokens, sites and positions: the writing side of `cutting`.

A trace that is made so is one that a recording could have made (`recorder.choosing`): prompts and tokens of the
requests that are kept are whole up to where they are cut, so that a replay can force them; of operators it has
fewer rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.dtypes import itemsize
from tracereplay.event import Call, Constant, Kernel, Named, Request, RowMap, Sampled, Step, Value, flatten
from tracereplay.trace.dedup import TensorBytes
from tracereplay.trace.forms import Form, StepRecord
from tracereplay.trace.joined import JoinedSegments
from tracereplay.trace.kernels import Kernels, write_kernels
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.records import write_census
from tracereplay.trace.writer import CallOfStep, SegmentWriter

__all__ = ["Cut", "Rules", "StepCutter", "turned_tensors"]

Ints: TypeAlias = npt.NDArray[np.int64]
Tap: TypeAlias = tuple[str, str, int]  # site, side and number
_FAR = 1 << 40  # a position that no sequence reaches


@dataclass(frozen=True)
class Cut:
    """What is kept of a trace.

    Args:
        requests: their numbers, in ascending order; they are numbered anew in this order.
        tokens: by request, how many generated tokens of each of its sequences are kept at most; of others all.
        sites: those of which calls are kept; None: all. All stay known by name, so that another trace's sites are
            paired with them as before.
        positions: of each sequence, those of which operators' rows are kept: from the first to before the second
            (None: to the end).
        kernels: sites of which kernels are kept, in steps that are kept with all their rows: a kernel's tensors do
            not say which rows they have. None: all that ``sites`` has.
    """

    requests: tuple[int, ...]
    tokens: Mapping[int, int] = field(default_factory=dict)
    sites: frozenset[str] | None = None
    positions: tuple[int, int | None] = (0, None)
    kernels: frozenset[str] | None = None


class Rules:
    """A `Cut` as it is applied to rows.

    Args:
        cut: what is kept.
        prompts: the length of each request's prompt; 0 where it is not known, and then its tokens are not cut.
    """

    def __init__(self, cut: Cut, prompts: Sequence[int]) -> None:
        self.cut = cut
        most = max(cut.requests, default=-1) + 1
        self._number = np.full(most, -1, np.int32)
        self._number[list(cut.requests)] = np.arange(len(cut.requests))
        self._end = np.full(most, _FAR, np.int64)  # the first position whose token is not kept
        for request, tokens in cut.tokens.items():
            if request < most and request < len(prompts) and prompts[request]:
                self._end[request] = prompts[request] + max(tokens, 1)

    def number(self, request: int) -> int:
        """What a request is called from now on; -1: it is not kept."""
        return int(self._number[request]) if 0 <= request < len(self._number) else -1

    def of_requests(self, rows: RowMap) -> npt.NDArray[np.bool_]:
        """Which rows belong to requests that are kept, however far."""
        known = (rows[:, 0] >= 0) & (rows[:, 0] < len(self._number))
        known[known] = self._number[rows[known, 0]] >= 0
        return known

    def of_steps(self, rows: RowMap) -> npt.NDArray[np.bool_]:
        """Which rows are kept in a step's own map: those up to the one that gave the last token."""
        kept = self.of_requests(rows)
        # The row of a rejected draft has the position -1 - p.
        position = np.where(rows[kept, 2] < 0, -1 - rows[kept, 2].astype(np.int64), rows[kept, 2])
        kept[kept] = position < self._end[rows[kept, 0]] - 1
        return kept

    def of_operators(self, rows: RowMap) -> npt.NDArray[np.bool_]:
        """Which rows are kept in operators' tensors."""
        kept = self.of_steps(rows)
        first, behind = self.cut.positions
        position = np.where(rows[:, 2] < 0, -1 - rows[:, 2].astype(np.int64), rows[:, 2])
        return kept & (position >= first) & (position < (_FAR if behind is None else behind))

    def token(self, sampled: Sampled) -> bool:
        """Whether a sampled token is kept."""
        request = sampled.key.request
        return self.number(request) >= 0 and sampled.key.position < self._end[request]

    def renumbered(self, rows: RowMap) -> RowMap:
        """Kept rows, with the requests' new numbers."""
        found: RowMap = np.array(rows, np.int32)
        found[:, 0] = self._number[rows[:, 0]]
        return found


@dataclass(frozen=True, eq=False)
class _Rows:
    """The kept rows of one row map.

    Args:
        places: their numbers in it, in ascending order; None: all of them, and what pads them.
        map: their row map, with the requests' new numbers.
        of: how many rows there were.
    """

    places: Ints | None
    map: RowMap
    of: int


class StepCutter:
    """Writes what is kept of the steps of a segment, which come in their order.

    Args:
        rules: what is kept.
        slots: of the sites, by name.
        turned: see `turned_tensors`.
        writer: of the new segment.
    """

    def __init__(
        self, rules: Rules, slots: Mapping[str, int], turned: frozenset[Tap], writer: SegmentWriter
    ) -> None:
        self._rules, self._slots, self._turned, self._writer = rules, slots, turned, writer
        self._begun: list[Request] = []  # of steps that were not kept, to come with the next one
        self._census: Mapping[str, object] | None = None
        self._constants: dict[str, Constant] = {}  # that are yet to be written
        self._told_constants = False
        self._passed = 0
        cut = rules.cut
        self._with_kernels = cut.sites if cut.kernels is None else cut.kernels

    def wants(self, record: StepRecord) -> bool:
        """Whether something of a step is kept. What goes on to the next one is noted here; then `add` it."""
        self._begun += [
            replace(request, request=number)
            for request in record.requests
            if (number := self._rules.number(request.request)) >= 0
        ]
        if record.census is not None:
            self._census = write_census(record.census)
        if self._rules.of_steps(record.rows).any() or any(map(self._rules.token, record.sampled)):
            return True
        self._passed += 1 + (0 if record.company is None else record.company[2])
        return False

    def keep_constants(self, step: Step) -> None:
        """Notes what kernels take by name, which the first step of a recording says."""
        if isinstance(step.kernels, Kernels):
            self._constants.update((constant.name, constant) for constant in step.kernels.constants)

    def add(self, step: Step) -> None:
        """Writes what is kept of a step."""
        rules = self._rules
        rows: dict[int, _Rows] = {}
        self.keep_constants(step)
        own = rules.of_steps(step.rows)
        whole = bool(own.all()) and all(map(rules.token, step.sampled))
        calls = [
            (call, self._rows(call.rows_in, rows), self._rows(call.rows_out, rows))
            for call in step.calls
            if rules.cut.sites is None or call.site in rules.cut.sites
        ]
        calls = [one for one in calls if _has_rows(*one)]
        kernels = self._kernels(step) if whole and rules.cut.positions == (0, None) else ()
        constants = self._named_by(kernels)
        places = _Places(self._writer, self._turned)
        order = step.kernels.order() if isinstance(step.kernels, Kernels) else {}
        places.add(calls, [value for kernel in kernels for value in _values_of(kernel)], constants, order)
        record = None
        if kernels:
            record = write_kernels(kernels, constants, places.of_whole, self._slots)
        self._writer.commit(
            step.number,
            rules.renumbered(step.rows[own]),
            [places.call(self._slots[call.site], call, took, gave) for call, took, gave in calls],
            [
                replace(s, key=s.key._replace(request=rules.number(s.key.request)))
                for s in step.sampled
                if rules.token(s)
            ],
            step.notes,
            self._begun,
            step.weight_updates,
            kernels=record,
            census=self._census,
            padded=step.padded if whole else 0,
            company=self._company(step),
        )
        self._begun, self._census, self._passed = [], None, 0

    def _rows(self, rows: RowMap, known: dict[int, _Rows]) -> _Rows:
        found = known.get(id(rows))  # of arrays that live as long as their step
        if found is None:
            kept = self._rules.of_operators(rows)
            places = None if kept.all() else np.flatnonzero(kept)
            found = known[id(rows)] = _Rows(places, self._rules.renumbered(rows[kept]), len(rows))
        return found

    def _kernels(self, step: Step) -> Sequence[Kernel]:
        """The kernels that are kept, with parents by their places among these."""
        wanted = self._with_kernels
        kept = [i for i, kernel in enumerate(step.kernels) if wanted is None or kernel.site in wanted]
        here = {place: n for n, place in enumerate(kept)}
        return [replace(k, parent=here.get(k.parent, -1)) for k in map(step.kernels.__getitem__, kept)]

    def _named_by(self, kernels: Sequence[Kernel]) -> tuple[Constant, ...]:
        """What goes with the kernels of a step: with the first of them all constants; but buffers, which are
        written whole, only where kernels name them."""
        if not kernels:
            return ()
        names = {a.name for k in kernels for a in flatten((*k.given, *k.outputs)) if isinstance(a, Named)}
        named = {name: c for name, c in self._constants.items() if name in names}
        others = () if self._told_constants else [c for name, c in self._constants.items() if name not in named]
        self._told_constants = True
        self._constants = {n: c for n, c in self._constants.items() if n not in named and c.value is not None}
        return (*named.values(), *(replace(c, value=None) for c in others))

    def _company(self, step: Step) -> tuple[int, int, int] | None:
        """The rows and requests that the engine computed besides; see `event.Step`."""
        known = step.rows[:, 0] >= 0
        others = step.rows[known & ~self._rules.of_requests(step.rows), 0]
        rows, requests, passed = (0, 0, 0) if step.company is None else step.company
        found = rows + len(others), requests + len(np.unique(others)), passed + self._passed
        return found if any(found) else None


def _has_rows(call: Call, rows_in: _Rows, rows_out: _Rows) -> bool:
    """Whether something of a call is left; one without any rows had none before."""
    return bool(len(rows_in.map) or len(rows_out.map)) or (rows_in.places is None and rows_out.places is None)


def _values_of(kernel: Kernel) -> Iterable[Value]:
    for argument in flatten((*kernel.given, *kernel.outputs)):
        if isinstance(argument, Value):
            yield argument
        elif (state := getattr(argument, "state", None)) is not None:
            yield state
    yield from kernel.written.values()


class _Places:
    """The values of a step on their way into another segment, each once.

    Args:
        writer: of the segment.
        turned: see `turned_tensors`.
    """

    def __init__(self, writer: SegmentWriter, turned: frozenset[Tap]) -> None:
        self._writer, self._turned = writer, turned
        self._known: dict[tuple[int, int, int], int] = {}

    def add(
        self, calls: Iterable[tuple[Call, _Rows, _Rows]], values: Iterable[Value], constants: Iterable[Constant],
        order: Mapping[int, int],
    ) -> None:  # fmt: skip
        """Adds all values of a step in the order in which they were recorded, so that what lay in one memory is
        told apart as it was."""
        found: dict[tuple[int, int, int], tuple[Value, _Rows | None, int]] = {}
        for call, rows_in, rows_out in calls:
            for side, index, value in call.values():
                rows, axis = rows_out if side == "out" else rows_in, self._axis(call.site, side, index)
                found.setdefault(_key(value, rows, axis), (value, rows, axis))
        for value in (*values, *(c.value for c in constants if c.value is not None)):
            found.setdefault(_key(value, None, 0), (value, None, 0))

        def recorded(item: tuple[object, tuple[Value, _Rows | None, int]]) -> tuple[int, int]:
            value = item[1][0]
            return order.get(id(value), -1), value.version

        for key, taken in sorted(found.items(), key=recorded):
            self._known[key] = self._writer.add(_taken(*taken))

    def of_whole(self, value: Value) -> int:
        """The place of a value that is kept whole."""
        return self._known[_key(value, None, 0)]

    def call(self, slot: int, call: Call, rows_in: _Rows, rows_out: _Rows) -> CallOfStep:
        """A call whose values were added."""
        sides: dict[str, dict[int, int]] = {"in": {}, "out": {}, "written": {}}
        for side, index, value in call.values():
            rows = rows_out if side == "out" else rows_in
            sides[side][index] = self._known[_key(value, rows, self._axis(call.site, side, index))]
        return CallOfStep(
            slot, call.number, rows_in.map, rows_out.map, sides["in"], sides["out"], sides["written"], call.fed
        )

    def _axis(self, site: str, side: str, index: int) -> int:
        return int((site, side, index) in self._turned)


def _key(value: Value, rows: _Rows | None, axis: int) -> tuple[int, int, int]:
    return (id(value), -1, 0) if rows is None or rows.places is None else (id(value), id(rows), axis)


def _taken(value: Value, rows: _Rows | None, axis: int) -> TensorBytes:
    """A value as it is written: whole, or the rows that are kept, which are no view of any memory."""
    data = value.load()
    if rows is None or rows.places is None or not value.shape:
        return TensorBytes(value.dtype, value.shape, value.strides, data, value.storage, value.start)
    whole = np.frombuffer(data, np.dtype((np.void, itemsize(value.dtype)))).reshape(value.shape)
    axis = axis if axis < len(value.shape) and value.shape[axis] >= rows.of else 0
    # Rows of a tensor that has fewer than its map cannot be told, and it stays such a one.
    places = rows.places if value.shape[axis] >= rows.of else rows.places[:0]
    kept = np.ascontiguousarray(whole.take(places, axis))
    strides = tuple(n // max(kept.itemsize, 1) for n in kept.strides)
    return TensorBytes(value.dtype, kept.shape, strides, kept.tobytes())


def turned_tensors(segment: SegmentReader | JoinedSegments) -> frozenset[Tap]:
    """Tensors whose rows are along dimension 1, as readers find out (`columns.column.TensorColumn.turned`): they
    are too short for their row map in dimension 0 in some call, and not in dimension 1."""
    found: set[Tap] = set()
    seen: dict[Form, tuple[int, ...]] = {}
    for record in segment.records():
        lengths = tuple(map(len, record.maps))
        if seen.get(record.form) == lengths:
            continue
        seen[record.form] = lengths
        for call in record.form.calls:
            sides = [
                *(("in", i, v, call.rows_in) for i, v in enumerate(call.inputs)),
                *(("out", i, v, call.rows_out) for i, v in enumerate(call.outputs)),
                *(("written", i, v, call.rows_in) for i, v in call.written),
            ]
            for side, index, place, rows in sides:
                shape = record.form.values[place].shape
                if len(shape) > 1 and shape[0] < lengths[rows] <= shape[1]:
                    found.add((call.site, side, index))
    return frozenset(found)
