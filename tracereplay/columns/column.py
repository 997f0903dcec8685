"""The rows and the tensors of a table.

a table's places in the kinds ──▶ Pattern: its rows, shared by all tables with the same places
                              ──▶ TensorColumn: its tensors, read window by window
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tracereplay.columns.kinds import FormValue, Occurrence
from tracereplay.columns.stacks import plain
from tracereplay.columns.store import Columns
from tracereplay.columns.tensors import LANE, Array, Ints, Tensor, as_rows, edges
from tracereplay.dtypes import nbytes, numpy_dtype

__all__ = ["Pattern", "Places", "TensorColumn", "make_pattern"]

SCATTERED = 8  # times that rows asked for go from one window to another, before they are sorted by windows


@dataclass(frozen=True, eq=False)
class Pattern:
    """The rows of a table. Tables that lie alike in all kinds share one.

    Args:
        steps: of each tensor, ``int64 [tensors]``.
        occurrence: which of its kind's it is, ``int64 [tensors]``.
        ids, tensor, at, repeats: see `tables.Table`.
        reach: of each tensor how many rows it must have, ``int64 [tensors]``.
        plans: how its rows are read.
    """

    steps: Ints
    occurrence: Ints
    ids: Ints
    tensor: Ints
    at: Ints
    repeats: int
    reach: Ints
    plans: _Plans = field(default_factory=lambda: _Plans())

    def places(self, alike: Ints) -> Ints:
        """For each row number its index in `ids` (-1: none), ``int64 [numbers]``.

        Args:
            alike: see `RowFinder.alike`. A row that was never seen here is replaced by one with the same prefix:
                golden's sampler may have a row that was computed as part of another sample's prompt.
        """
        numbers = self.ids % LANE  # of an operator that is called twice with the same rows, the last call
        found = np.full(len(alike), -1, np.int64)
        found[alike[numbers]] = np.arange(len(numbers))
        found = found[alike]
        found[numbers] = np.arange(len(numbers))
        return found


Places = tuple[tuple[int, tuple[tuple[int, int], ...]], ...]  # of each kind: row map and lane of each occurrence


def make_pattern(columns: Columns, places: Places) -> Pattern:
    """The rows of the tables that lie at these places."""
    parts = [
        (columns.steps_of(kind), np.full(len(columns.steps_of(kind)), i), rows, lane)
        for kind, found in places
        for i, (rows, lane) in enumerate(found)
    ]
    steps = np.concatenate([part[0] for part in parts])
    occurrence = np.concatenate([part[1] for part in parts])
    counts = [len(part[0]) for part in parts]
    maps, lanes = (np.repeat(np.array([part[i] for part in parts], np.int64), counts) for i in (2, 3))
    order = np.lexsort((occurrence, steps))
    steps, occurrence, maps, lanes = steps[order], occurrence[order], maps[order], lanes[order]
    first, length = columns.rows(steps, maps)
    begin = np.cumsum(length) - length
    at = np.arange(int(length.sum())) - np.repeat(begin, length)
    ids = columns.ids[np.repeat(first, length) + at]
    tensor = np.repeat(np.arange(len(steps)), length)
    known = ids >= 0
    ids, at, tensor = ids[known], at[known], tensor[known]
    ids = ids + lanes[tensor] * LANE
    reach = np.zeros(len(steps), np.int64)
    reach[tensor] = at + 1  # they ascend, so that the last one stands
    # The last computation of a row stands: np.unique keeps the first, so it is shown the reverse.
    _, back = np.unique(ids[::-1], return_index=True)
    keep = np.sort(len(ids) - 1 - back)
    repeats = len(ids) - len(keep)
    if repeats:
        ids, at, tensor = ids[keep], at[keep], tensor[keep]
    return Pattern(steps, occurrence, ids, tensor, at, repeats, reach)


class _Cut(NamedTuple):
    """Rows of a table that are read in one go: of one window, and of the same occurrence in each of its steps.

    Args:
        start, stop: which of the rows asked for.
        window: their window.
        tensor: of the first row.
        picks: of a window's steps and a tensor's rows, as an index of ``[steps, rows, width]``; None: ``whole``.
        whole: first step, number of steps and of rows, where those are rows from the first on of each step.
        places: the same as bytes: equal for rows that lie in their windows alike.
    """

    start: int
    stop: int
    window: int
    tensor: int
    picks: tuple[Any, Any] | None
    whole: tuple[int, int, int]
    places: tuple[bytes, bytes]

    def of(self, stack: Array) -> Array:
        """These rows of ``[steps, rows, width]``, ``[rows, width]``; without a copy where that can be."""
        if self.picks is not None:
            found: Array = stack[self.picks]
            return found
        start, steps, rows = self.whole
        part = stack[start : start + steps, :rows]
        return part.reshape(steps * rows, part.shape[2])


class _Plan(NamedTuple):
    """How rows are read: cut by cut, and in which order.

    Args:
        picks: the rows, sorted by windows if they are not asked for nearly in that order.
        order: of ``picks`` among the rows asked for; None: that order.
        cuts: of ``picks``.
    """

    picks: Ints
    order: Ints | None
    cuts: Sequence[_Cut]


class _Plans:
    """Of the rows that were asked for last: tables that share a pattern are asked for the same ones, by the same
    arrays, which nobody changes."""

    def __init__(self) -> None:
        self._known: deque[tuple[Ints, _Plan]] = deque(maxlen=4)

    def of(self, pattern: Pattern, columns: Columns, picks: Ints) -> _Plan:
        for known, plan in self._known:
            if known is picks:
                return plan
        plan = _plan(pattern, columns, picks)
        self._known.append((picks, plan))
        return plan

    def forget(self) -> None:
        """Windows are about to be others."""
        self._known.clear()


def _plan(pattern: Pattern, columns: Columns, picks: Ints) -> _Plan:
    tensors = pattern.tensor[picks]
    window = columns.blocks[1][pattern.steps[tensors]]
    order: Ints | None = None
    if len(edges(window, pattern.occurrence[tensors])) > SCATTERED + 2 * len(np.unique(window)):
        # The other pass batches requests otherwise: neighbours there are far from each other here.
        order = np.lexsort((pattern.steps[tensors], pattern.at[picks], pattern.occurrence[tensors], window))
        picks = picks[order]
    return _Plan(picks, order, list(_cut(pattern, columns, picks)))


def _cut(pattern: Pattern, columns: Columns, picks: Ints) -> Iterator[_Cut]:
    tensors = pattern.tensor[picks]
    steps, occurrence = pattern.steps[tensors], pattern.occurrence[tensors]
    window, rows = columns.blocks[1][steps], pattern.at[picks]
    places = steps - columns.windows[window]
    for a, b in pairwise(edges(window, occurrence)):
        picked, whole = _index(places[a:b], rows[a:b])
        alike = places[a:b].tobytes(), rows[a:b].tobytes()
        yield _Cut(a, b, int(window[a]), int(tensors[a]), picked, whole, alike)


def _index(places: Ints, at: Ints) -> tuple[tuple[Any, Any] | None, tuple[int, int, int]]:
    """See `_Cut`: rows ``at`` of steps ``places``."""
    start, count = int(places[0]), int(places[-1]) - int(places[0]) + 1
    if len(at) == count and (at == at[0]).all() and (np.diff(places) == 1).all():
        return (slice(start, start + count), int(at[0])), (0, 0, 0)
    rows = len(at) // count if count > 0 else 0
    whole = rows > 0 and rows * count == len(at) and (at.reshape(count, rows) == np.arange(rows)).all()
    if whole and (places.reshape(count, rows) == np.arange(start, start + count)[:, None]).all():
        return None, (start, count, rows)
    return (places, at), (0, 0, 0)


class TensorColumn(Sequence[Tensor]):
    """The tensors of a table, in order of its calls.

    Args:
        columns: of the pass.
        pattern: of the table.
        occurrences: by kind.
    """

    def __init__(
        self, columns: Columns, pattern: Pattern, occurrences: Mapping[int, Sequence[Occurrence]]
    ) -> None:
        self.columns, self.pattern, self.occurrences = columns, pattern, occurrences

    def __len__(self) -> int:
        return len(self.pattern.steps)

    def __getitem__(self, place: Any) -> Any:
        """The tensor; what it holds is read by `load`."""
        step = int(self.pattern.steps[place])
        return self.occurrences[int(self.columns.kind_of[step])][int(self.pattern.occurrence[place])].tensor

    @property
    def kinds(self) -> Iterator[Tensor]:
        """All that differ in their form."""
        for occurrences in self.occurrences.values():
            for occurrence in occurrences:
                yield occurrence.tensor

    @cached_property
    def _calls(self) -> Ints:
        """The place of each occurrence's call in its kind's steps, ``int64 [kinds, occurrences]``."""
        return self._by_occurrence(lambda occurrence: occurrence.call)

    def _by_occurrence(self, of: Callable[[Occurrence], int]) -> Ints:
        """A number of each occurrence, ``int64 [kinds, occurrences]``."""
        most = max(map(len, self.occurrences.values()), default=0)
        found = np.zeros((len(self.columns.kinds), most), np.int64)
        for kind, occurrences in self.occurrences.items():
            found[kind, : len(occurrences)] = [of(occurrence) for occurrence in occurrences]
        return found

    def windows(self, picks: Ints) -> Ints:
        """The window that each of these rows is read in, ``int64 [picks]``."""
        found: Ints = self.columns.blocks[1][self.pattern.steps[self.pattern.tensor[picks]]]
        return found

    def order(self, picks: Ints) -> Ints:
        """The calls that computed these rows, ``int64 [picks]``."""
        tensors = self.pattern.tensor[picks]
        steps = self.pattern.steps[tensors]
        found: Ints = (
            self.columns.before[steps] + self._calls[self.columns.kind_of[steps], self.pattern.occurrence[tensors]]
        )
        return found

    @property
    def sizes(self) -> Ints:
        """How many rows each tensor has, padding included, ``int64 [tensors]``."""
        return self._each(lambda tensor: tensor.values[0].shape[tensor.axis])

    def _each(self, of: Callable[[Tensor], int]) -> Ints:
        """A number of each tensor, ``int64 [tensors]``."""
        found = self._by_occurrence(lambda occurrence: of(occurrence.tensor))
        result: Ints = found[self.columns.kind_of[self.pattern.steps], self.pattern.occurrence]
        return result

    def turned(self) -> TensorColumn | None:
        """With the dimension of the rows found; None if they have fewer rows than their row maps.

        Rows are along dimension 1 where a tensor is too short for its row map in dimension 0 and not in 1. One
        such call decides for the site: with three rows or fewer ``[3, rows]`` could be read both ways.
        """
        first, second = (self._each(partial(_size, dim)) for dim in (0, 1))
        if not (self.pattern.reach > first).any():
            return self
        if (self.pattern.reach > second).any():
            return None
        return self.mapped(lambda tensor: Tensor(tensor.values, tensor.layout, 1))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> TensorColumn:
        """With every tensor changed."""
        changed = {
            kind: [occurrence._replace(tensor=change(occurrence.tensor)) for occurrence in occurrences]
            for kind, occurrences in self.occurrences.items()
        }
        return TensorColumn(self.columns, self.pattern, changed)

    def with_other(self, other: TensorColumn, change: Callable[[Tensor, Tensor], Tensor]) -> TensorColumn | None:
        """Each tensor joined with the other column's of the same call; None if they are not of the same calls."""
        same = self.pattern is other.pattern and self.occurrences.keys() == other.occurrences.keys()
        if not same:
            return None
        joined: dict[int, list[Occurrence]] = {}
        for kind, mine in self.occurrences.items():
            theirs = other.occurrences[kind]
            if [o.call for o in mine] != [o.call for o in theirs]:
                return None
            joined[kind] = [
                o._replace(tensor=change(o.tensor, p.tensor)) for o, p in zip(mine, theirs, strict=True)
            ]
        return TensorColumn(self.columns, self.pattern, joined)

    # -- reading ----------------------------------------------------------------------------------------

    def load(self, place: int) -> Array:
        """A tensor in its storage dtype, ``[rows, width]``."""
        tensor: Tensor = self[place]
        self.columns.cursor.step = int(self.pattern.steps[place])
        return tensor.load(bits=self.columns.bits)

    def _load_alone(self, place: int) -> Array:
        """As `load`, without decoding more of its chunk than need be."""
        step = int(self.pattern.steps[place])
        tensor: Tensor = self[place]
        value = plain(tensor)
        if value is None or value.located.strided:
            return self.load(place)
        chunk = self.columns.first_chunks(step, step + 1, value.rank)[0] + value.located.chunk
        data = self.columns.segments[value.rank].tensor_alone(chunk, value.located.tensor)
        if len(data) != nbytes(value.dtype, value.shape):
            return self.load(place)
        return as_rows(np.frombuffer(data, numpy_dtype(value.dtype)).reshape(value.shape), tensor.axis)

    def content(self) -> tuple[object, ...]:
        """What equal columns share: the rows, and in each kind the values that are read."""
        values = tuple(
            (kind, tuple(_identity(occurrence.tensor) for occurrence in occurrences))
            for kind, occurrences in self.occurrences.items()
        )
        return id(self.columns), id(self.pattern), values

    def rows(self, picks: Ints, *, alone: bool = False) -> Array:
        """Rows of the table in their storage dtype, ``[len(picks), width]``; see `tables.gather`."""
        plan = self.pattern.plans.of(self.pattern, self.columns, picks)
        runs = [self._run(cut, plan.picks, alone) for cut in plan.cuts]
        found: Array = runs[0] if len(runs) == 1 else np.concatenate(runs)
        if plan.order is None:
            return found
        rows = np.empty_like(found)
        rows[plan.order] = found
        return rows

    def stored_alike(self, picks: Ints, other: TensorColumn, others: Ints) -> bool:
        """Whether the rows of both are in chunks that are the same, byte for byte, at the same places."""
        mine = self.pattern.plans.of(self.pattern, self.columns, picks)
        theirs = other.pattern.plans.of(other.pattern, other.columns, others)
        if mine.order is not None or theirs.order is not None or len(mine.cuts) != len(theirs.cuts):
            return False
        return all(self._alike(cut, other, second) for cut, second in zip(mine.cuts, theirs.cuts, strict=True))

    def _alike(self, cut: _Cut, other: TensorColumn, second: _Cut) -> bool:
        if cut.places != second.places:
            return False
        tensor, theirs = self[cut.tensor], other[second.tensor]
        mine, value = plain(tensor), plain(theirs)
        if mine is None or value is None or tensor.axis or theirs.axis:
            return False
        if mine.located._replace(strides=(), chunk=0) != value.located._replace(strides=(), chunk=0):
            return False
        if mine.located.strided and mine.located.strides != value.located.strides:
            return False
        return self.columns.stacks.alike(
            (cut.window, mine.rank, mine.located.chunk), other.columns.stacks,
            (second.window, value.rank, value.located.chunk),
        )  # fmt: skip

    def _run(self, cut: _Cut, picks: Ints, alone: bool) -> Array:
        stacked = None if alone else self.columns.stacks.tensor(cut.window, self[cut.tensor])
        if stacked is not None:
            return cut.of(stacked)
        load = self._load_alone if alone else self.load
        picked = picks[cut.start : cut.stop]
        tensors, at = self.pattern.tensor[picked], self.pattern.at[picked]
        found = [load(int(tensors[a]))[at[a:b]] for a, b in pairwise(edges(tensors))]
        return found[0] if len(found) == 1 else np.concatenate(found)


def _identity(tensor: Tensor) -> object:
    """Equal for tensors that read the same values in the same way; else for no two."""
    values = [v for v in tensor.values if isinstance(v, FormValue)]
    if type(tensor) is not Tensor or len(values) < len(tensor.values):
        return id(tensor)
    return tuple((v.rank, v.place) for v in values), tensor.layout, tensor.axis


def _size(dim: int, tensor: Tensor) -> int:
    shape = tensor.values[0].shape
    return shape[dim] if dim < len(shape) else 0
