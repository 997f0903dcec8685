"""A pass by columns: what each of its steps adds to its kind, in a few bytes.

    records ──Columns.add──▶ kind, numbers of rows, places of chunks: arrays over the steps
    a table's places in the kinds ──▶ Pattern: its rows, shared by all tables with the same places
                                  ──▶ TensorColumn: its tensors, read window by window

A comparison holds this for all steps, and bytes of tensors only for the window that it is at. So its memory hardly
grows with the length of a generation.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tracereplay.columns.kinds import BLOCK, Cursor, FormValue, Kind, Occurrence
from tracereplay.columns.stacks import Stacks
from tracereplay.columns.tensors import LANE, Array, Ints, Tensor, as_rows
from tracereplay.dtypes import nbytes, numpy_dtype
from tracereplay.trace.forms import ELSEWHERE, Form, StepRecord
from tracereplay.trace.joined import JoinedSegments
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.records import Located

__all__ = ["CallInfo", "Calls", "Columns", "Pattern", "Places", "Segment", "TensorColumn", "make_pattern"]


class CallInfo(NamedTuple):
    """One call of a pass.

    Args:
        order: counts calls over the whole pass in execution order.
        fed: see `event.Call`.
    """

    order: int
    step: int
    site: str
    number: int
    fed: tuple[int, ...] | None = None


Segment = SegmentReader | JoinedSegments


def _ints(numbers: array[int]) -> Ints:
    return np.frombuffer(numbers, np.int64) if numbers else np.empty(0, np.int64)


class Columns:
    """The steps of a pass, added one after the other.

    Args:
        segments: of the pass's ranks.
        block: bytes of tensors that are read at a time; 0: `kinds.BLOCK`.
        held: bytes of chunks that are kept; 0: of two blocks.
        bits: whether tensors are read as integers of their element size; for others than numpy's own dtypes,
            ml_dtypes must be installed otherwise.
    """

    def __init__(
        self, segments: Sequence[Segment], block: int = 0, held: int = 0, *, bits: bool = False
    ) -> None:  # fmt: skip
        self.block = block or BLOCK
        self.held, self.bits = held or 2 * self.block, bits
        self.kinds: list[Kind] = []
        self.cursor = Cursor(self.read)
        self.segments = segments
        self._kind = array("q")
        self._number = array("q")
        self._ids = array("q")  # numbers of rows, map after map
        self._maps = array("q", [0])  # where each map's numbers begin
        self._first_map = array("q")  # of each step
        self._chunk = [array("q") for _ in segments]
        self._elsewhere = [array("q") for _ in segments]  # place, chunk, tensor, pieces, skip, strided
        self._elsewhere_at = [array("q", [0]) for _ in segments]

    def new_kind(self, forms: Sequence[Form | None]) -> Kind:
        """A kind of steps, of which nothing is known yet but the ranks' forms."""
        self.kinds.append(Kind(len(self.kinds), tuple(forms)))
        return self.kinds[-1]

    def add(self, kind: Kind, records: Sequence[StepRecord | None], ids: Sequence[Ints]) -> None:
        """Adds a step.

        Args:
            kind: of it.
            records: of all ranks.
            ids: numbers of the rows of each of the first rank's maps, -1 where they have none.
        """
        first = records[0]
        assert first is not None
        self._kind.append(kind.number)
        self._number.append(first.number)
        self._first_map.append(len(self._maps) - 1)
        for numbers in ids:
            self._ids.frombytes(np.ascontiguousarray(numbers, np.int64).tobytes())
            self._maps.append(len(self._ids))
        for rank, record in enumerate(records):
            self._chunk[rank].append(-1 if record is None else record.chunk)
            for place, told in ({} if record is None else record.elsewhere).items():
                self._elsewhere[rank].extend((place, *map(int, told)))
            self._elsewhere_at[rank].append(len(self._elsewhere[rank]))

    # -- what the steps say -----------------------------------------------------------------------------

    @cached_property
    def kind_of(self) -> Ints:
        """For each step the number of its kind, ``int64 [steps]``."""
        return _ints(self._kind)

    @cached_property
    def numbers(self) -> Ints:
        """For each step its number, ``int64 [steps]``."""
        return _ints(self._number)

    @cached_property
    def before(self) -> Ints:
        """For each step how many calls are before it, and how many there are, ``int64 [steps + 1]``."""
        counts = np.array([len(kind.calls) for kind in self.kinds], np.int64)
        return np.concatenate([[0], np.cumsum(counts[self.kind_of])])

    @cached_property
    def blocks(self) -> tuple[Ints, Ints]:
        """For each step its (first) block and its window, ``int64 [steps]`` each.

        Blocks are consecutive steps with at most `block` bytes, or parts of a larger step. A window is the steps
        of one kind that follow each other in a block.
        """
        sizes = np.array([kind.size for kind in self.kinds], np.int64)
        extra = np.array([int(kind.block.max(initial=0)) for kind in self.kinds], np.int64)
        block, window = np.zeros(len(self.kind_of), np.int64), np.zeros(len(self.kind_of), np.int64)
        at = room = 0
        number, last = -1, -1
        for step, kind in enumerate(self.kind_of.tolist()):
            size = int(sizes[kind])
            if number < 0 or size > room:
                at = at + 1 if number >= 0 else 0
                room, last = self.block, -1
            room -= size
            if kind != last:
                number, last = number + 1, kind
            block[step], window[step] = at, number
            if extra[kind]:
                at, room = at + int(extra[kind]), 0
        return block, window

    @cached_property
    def windows(self) -> Ints:
        """For each window its first step, and the number of steps, ``int64 [windows + 1]``."""
        window = self.blocks[1]
        return np.concatenate([np.flatnonzero(np.diff(window, prepend=-1)), [len(window)]])

    def steps_of(self, kind: int) -> Ints:
        """The steps of a kind, in order."""
        return self._by_kind[kind]

    @cached_property
    def _by_kind(self) -> list[Ints]:
        order = np.argsort(self.kind_of, kind="stable")
        bounds = np.searchsorted(self.kind_of[order], np.arange(len(self.kinds) + 1))
        return [order[a:b] for a, b in pairwise(bounds.tolist())]

    def rows(self, steps: Ints, maps: Ints) -> tuple[Ints, Ints]:
        """Where the numbers of row maps are in `ids`: first, and how many. ``steps`` and ``maps`` in parallel."""
        starts = _ints(self._maps)
        at = _ints(self._first_map)[steps] + maps
        return starts[at], starts[at + 1] - starts[at]

    @cached_property
    def ids(self) -> Ints:
        """Numbers of rows, map after map."""
        return _ints(self._ids)

    # -- bytes ------------------------------------------------------------------------------------------

    def first_chunks(self, start: int, stop: int, rank: int) -> Sequence[int]:
        """The first own chunk of each of these steps."""
        return self._chunk[rank][start:stop]

    def read(self, step: int, rank: int, place: int) -> bytes:
        """The bytes of a value; ``place`` is its place in the form."""
        form = self.kinds[self._kind[step]].forms[rank]
        assert form is not None
        return self.segments[rank].load(self._located(step, rank, form.values[place], place))

    def _located(self, step: int, rank: int, value: Located, place: int) -> Located:
        if value.chunk >= 0:
            return value._replace(chunk=self._chunk[rank][step] + value.chunk)
        if value.chunk != ELSEWHERE:
            return value
        told = self._elsewhere[rank]
        for i in range(self._elsewhere_at[rank][step], self._elsewhere_at[rank][step + 1], 6):
            if told[i] == place:
                chunk, tensor, pieces, skip, strided = told[i + 1 : i + 6]
                return value._replace(chunk=chunk, tensor=tensor, pieces=pieces, skip=skip, strided=bool(strided))
        raise AssertionError(place)

    @cached_property
    def stacks(self) -> Stacks:
        """Chunks of many steps at once."""
        return Stacks(self)


class Calls(Sequence[CallInfo]):
    """The calls of a pass in execution order; made when they are asked for."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return int(self._columns.before[-1])

    def __getitem__(self, order: Any) -> Any:
        if isinstance(order, slice):
            return [self[i] for i in range(*order.indices(len(self)))]
        order = range(len(self))[order]
        step = int(np.searchsorted(self._columns.before, order, side="right")) - 1
        return self._call(step, order - int(self._columns.before[step]), order)

    def __iter__(self) -> Iterator[CallInfo]:
        order = 0
        for step, kind in enumerate(self._columns.kind_of.tolist()):
            for place in range(len(self._columns.kinds[kind].calls)):
                yield self._call(step, place, order)
                order += 1

    def _call(self, step: int, place: int, order: int) -> CallInfo:
        columns = self._columns
        call = columns.kinds[int(columns.kind_of[step])].calls[place]
        return CallInfo(order, int(columns.numbers[step]), call.site, call.number, call.fed)

    def let_go(self) -> None:
        """Forgets the tensors that were read."""
        self._columns.stacks.let_go()

    def steps(self, orders: Ints) -> Ints:
        """The numbers of the steps that these calls are in."""
        found: Ints = self._columns.numbers[np.searchsorted(self._columns.before, orders, side="right") - 1]
        return found

    @cached_property
    def first(self) -> Mapping[str, int]:
        """By site its first call."""
        columns = self._columns
        found: dict[str, int] = {}
        for kind in columns.kinds:
            start = int(columns.before[columns.steps_of(kind.number)[0]])
            for place, call in enumerate(kind.calls):
                found[call.site] = min(found.get(call.site, start + place), start + place)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def counts(self) -> Mapping[str, int]:
        """By site how many calls it has."""
        found: dict[str, int] = {}
        for kind in self._columns.kinds:
            steps = len(self._columns.steps_of(kind.number))
            for call in kind.calls:
                found[call.site] = found.get(call.site, 0) + steps
        return found

    def where(self, wanted: Any) -> Mapping[str, Ints]:
        """By site the calls for which ``wanted(KindCall)`` holds, in order."""
        columns = self._columns
        found: dict[str, list[Ints]] = {}
        for kind in columns.kinds:
            starts = columns.before[columns.steps_of(kind.number)]
            for place, call in enumerate(kind.calls):
                if wanted(call):
                    found.setdefault(call.site, []).append(starts + place)
        return {site: np.sort(np.concatenate(parts)) for site, parts in found.items()}

    def blocks(self, orders: Ints) -> Ints:
        """The block of each of these calls; see `Columns.blocks`."""
        columns = self._columns
        steps = np.searchsorted(columns.before, orders, side="right") - 1
        found = columns.blocks[0][steps]
        if self._large:
            within = np.concatenate([kind.block for kind in columns.kinds])
            starts = np.cumsum([0, *(len(kind.calls) for kind in columns.kinds)])
            found = found + within[starts[columns.kind_of[steps]] + orders - columns.before[steps]]
        return found

    @cached_property
    def _large(self) -> bool:
        return any(kind.block.any() for kind in self._columns.kinds)


@dataclass(frozen=True, eq=False)
class Pattern:
    """The rows of a table. Tables that lie alike in all kinds share one.

    Args:
        steps: of each tensor, ``int64 [tensors]``.
        occurrence: which of its kind's it is, ``int64 [tensors]``.
        ids, tensor, at, repeats: see `tables.Table`.
        reach: of each tensor how many rows it must have, ``int64 [tensors]``.
    """

    steps: Ints
    occurrence: Ints
    ids: Ints
    tensor: Ints
    at: Ints
    repeats: int
    reach: Ints

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


class _Run(NamedTuple):
    """Rows in one window: which of its steps they are in, and where in the tensor."""

    window: int
    rank: int
    located: Located
    places: Ints
    at: Ints


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
    def _calls(self) -> npt.NDArray[np.int32]:
        """The place of each occurrence's call in its kind's steps, ``int32 [kinds, occurrences]``."""
        most = max(map(len, self.occurrences.values()), default=0)
        calls = np.zeros((len(self.columns.kinds), most), np.int32)
        for kind, occurrences in self.occurrences.items():
            calls[kind, : len(occurrences)] = [occurrence.call for occurrence in occurrences]
        return calls

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

    def _each(self, of: Any) -> Ints:
        most = max(map(len, self.occurrences.values()), default=0)
        found = np.zeros((len(self.columns.kinds), most), np.int64)
        for kind, occurrences in self.occurrences.items():
            found[kind, : len(occurrences)] = [of(occurrence.tensor) for occurrence in occurrences]
        result: Ints = found[self.columns.kind_of[self.pattern.steps], self.pattern.occurrence]
        return result

    def turned(self) -> TensorColumn | None:
        """With the dimension of the rows found; None if they have fewer rows than their row maps.

        Rows are along dimension 1 where a tensor is too short for its row map in dimension 0 and not in 1. One
        such call decides for the site: with three rows or fewer ``[3, rows]`` could be read both ways.
        """
        first, second = (self._each(lambda tensor, dim=dim: _size(tensor, dim)) for dim in (0, 1))
        if not (self.pattern.reach > first).any():
            return self
        if (self.pattern.reach > second).any():
            return None
        return self.mapped(lambda tensor: Tensor(tensor.values, tensor.layout, 1))

    def mapped(self, change: Any) -> TensorColumn:
        """With every tensor changed."""
        changed = {
            kind: [occurrence._replace(tensor=change(occurrence.tensor)) for occurrence in occurrences]
            for kind, occurrences in self.occurrences.items()
        }
        return TensorColumn(self.columns, self.pattern, changed)

    def with_other(self, other: TensorColumn, change: Any) -> TensorColumn | None:
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
        value, located = self.columns.stacks.plain(int(self.columns.blocks[1][step]), tensor)
        if value is None or located is None or located.strided:
            return self.load(place)
        chunk = self.columns.first_chunks(step, step + 1, value.rank)[0] + located.chunk
        data = self.columns.segments[value.rank].tensor_alone(chunk, located.tensor)
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
        runs = [self._run(picks[a:b], alone) for a, b in self._runs(picks)]
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def stored_alike(self, picks: Ints, other: TensorColumn, others: Ints) -> bool:
        """Whether the rows of both are in chunks that are the same, byte for byte, at the same places."""
        mine, theirs = self._single(picks), other._single(others)
        if mine is None or theirs is None:
            return False
        if not (np.array_equal(mine.places, theirs.places) and np.array_equal(mine.at, theirs.at)):
            return False
        if mine.located._replace(strides=(), chunk=0) != theirs.located._replace(strides=(), chunk=0):
            return False
        if mine.located.strided and mine.located.strides != theirs.located.strides:
            return False
        return self.columns.stacks.alike(
            (mine.window, mine.rank, mine.located.chunk), other.columns.stacks,
            (theirs.window, theirs.rank, theirs.located.chunk),
        )  # fmt: skip

    def _single(self, picks: Ints) -> _Run | None:
        """Where rows are, if they are of one window and lie in their steps alike."""
        tensors = self.pattern.tensor[picks]
        steps = self.pattern.steps[tensors]
        window = self.columns.blocks[1][steps]
        occurrence = self.pattern.occurrence[tensors]
        first = int(window[0])
        if (window != first).any() or (occurrence != occurrence[0]).any():
            return None
        tensor: Tensor = self[int(tensors[0])]
        value, located = self.columns.stacks.plain(first, tensor)
        if value is None or located is None or tensor.axis:
            return None
        return _Run(first, value.rank, located, steps - self.columns.windows[first], self.pattern.at[picks])

    def _runs(self, picks: Ints) -> Iterator[tuple[int, int]]:
        """Picks cut where the next window, or another occurrence of the kind, begins."""
        tensors = self.pattern.tensor[picks]
        steps = self.pattern.steps[tensors]
        window, occurrence = self.columns.blocks[1][steps], self.pattern.occurrence[tensors]
        cuts = (window[1:] != window[:-1]) | (occurrence[1:] != occurrence[:-1])
        yield from pairwise([0, *(np.flatnonzero(cuts) + 1).tolist(), len(picks)])

    def _run(self, picks: Ints, alone: bool) -> Array:
        tensors, at = self.pattern.tensor[picks], self.pattern.at[picks]
        first = int(tensors[0])
        step = int(self.pattern.steps[first])
        window = int(self.columns.blocks[1][step])
        stacked = None if alone else self.columns.stacks.tensor(window, self[first])
        if stacked is not None:
            places = self.pattern.steps[tensors] - self.columns.windows[window]
            return _take(stacked, places, at)
        bounds = [0, *(np.flatnonzero(tensors[1:] != tensors[:-1]) + 1).tolist(), len(at)]
        load = self._load_alone if alone else self.load
        found = [load(int(tensors[a]))[at[a:b]] for a, b in pairwise(bounds)]
        return found[0] if len(found) == 1 else np.concatenate(found)


def _identity(tensor: Tensor) -> object:
    """Equal for tensors that read the same values in the same way; else for no two."""
    values = [v for v in tensor.values if isinstance(v, FormValue)]
    if type(tensor) is not Tensor or len(values) < len(tensor.values):
        return id(tensor)
    return tuple((v.rank, v.place) for v in values), tensor.layout, tensor.axis


def _take(stack: Array, places: Ints, at: Ints) -> Array:
    """``stack[places, at]`` of ``[steps, rows, width]``, without a copy where that can be."""
    start, count = int(places[0]), int(places[-1]) - int(places[0]) + 1
    if len(at) == count and (at == at[0]).all() and (np.diff(places) == 1).all():
        found: npt.NDArray[Any] = stack[start : start + count, int(at[0])]
        return found
    rows = len(at) // count if count > 0 else 0
    whole = rows > 0 and rows * count == len(at) and (at.reshape(count, rows) == np.arange(rows)).all()
    if whole and (places.reshape(count, rows) == np.arange(start, start + count)[:, None]).all():
        part = stack[start : start + count, :rows]
        return part.reshape(len(at), part.shape[2])
    return stack[places, at]


def _size(tensor: Tensor, dim: int) -> int:
    shape = tensor.values[0].shape
    return shape[dim] if dim < len(shape) else 0
