"""Which golden row is which candidate row: every tensor of a pass as a table of rows.

    steps, calls, ranks  ──index_pass──▶  PassIndex: one Table for each (site, side, index)
    two Tables           ──pair_rows──▶   Pairs: golden row i is candidate row j

Only row maps are read here; tensors stay in their files until `gather` asks for rows. Rows are numbered by a
`RowFinder` (golden's added, candidate's looked up), so that batches may be composed differently, prompts
chunked, and a row that a prefix cache skipped is stood in for by one with the same beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.engines.known import family_of
from tracereplay.engines.roles import with_roles
from tracereplay.errors import DamagedTrace
from tracereplay.event import Call, Layout, RowKey, RowMap, Sampled, Site, Step, Value
from tracereplay.sitemap import Pair, SiteMap
from tracereplay.trace import Trace
from tracereplay.trace.shards import join

__all__ = [
    "LANE", "Array", "CallInfo", "Ints", "Pairs", "PassIndex", "StepInfo", "Table", "TableKey", "Tensor", "gather",
    "index_pass", "pair_rows", "sites_of",
]  # fmt: skip

Array: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]
TableSide: TypeAlias = Literal["in", "out", "written"]

# A row's number is its finder number plus LANE times its lane: a site that is called twice in a step with
# the same rows has two lanes, and its first calls are compared with first calls.
LANE = 1 << 40

# Inputs come before outputs; what was written in place is an output.
_SIDES: Mapping[TableSide, int] = {"in": 0, "out": 1, "written": 2}


@dataclass(frozen=True, slots=True)
class TableKey:
    """Which tensor of which operator."""

    site: str
    side: TableSide
    index: int

    @property
    def rank(self) -> tuple[int, int]:
        """Order among the tensors of one call."""
        return _SIDES[self.side], self.index


@dataclass(frozen=True, slots=True)
class CallInfo:
    """One call of a pass; ``order`` counts calls over the whole pass in execution order."""

    order: int
    step: int
    site: str
    number: int


class StepInfo(NamedTuple):
    """One step of a pass.

    Args:
        number: of the step.
        rows: its row map's bytes.
        weights: how often the engine's weights had been updated before, within the pass.
    """

    number: int
    rows: bytes
    weights: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One call's tensor, over all ranks that hold a part of it.

    Args:
        values: one for each rank where ``layout`` is given, else rank 0's.
        layout: how the ranks' parts are joined.
        axis: the dimension of the rows, 0 or 1 (positions of multimodal rotary embeddings are ``[3, rows]``).
    """

    values: tuple[Value, ...]
    layout: Layout | None
    axis: int

    @property
    def dtype(self) -> str:
        return self.values[0].dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Sizes of one row, all ranks together."""
        shape = list(self.values[0].shape)
        if self.layout is not None:
            if not -len(shape) <= self.layout.dim < len(shape) or not sum(self.layout.parts):
                raise DamagedTrace(f"A tensor of shape {tuple(shape)} cannot be cut as {self.layout} says.")
            shape[self.layout.dim] = _whole_size(self.layout, shape[self.layout.dim], len(self.values))
        return tuple(shape[: self.axis] + shape[self.axis + 1 :])

    @property
    def width(self) -> int:
        """Elements of one row."""
        return int(np.prod(self.row_shape, dtype=np.int64))

    @property
    def tail(self) -> tuple[int, ...]:
        """Sizes that decide the width: of one rank's part, without the rows."""
        shape = self.values[0].shape
        return shape[1:] if self.axis == 0 else (*shape[:1], *shape[2:])

    def load(self) -> Array:
        """The tensor in its storage dtype, ``[rows, width]``."""
        pieces = [_read(value) for value in self.values]
        try:
            whole = pieces[0] if self.layout is None else join(pieces, self.layout)
        except (ValueError, IndexError) as error:
            raise DamagedTrace(f"The ranks' parts of a tensor do not fit together: {error}.") from error
        if self.axis:
            whole = np.moveaxis(whole, self.axis, 0)
        return whole.reshape(whole.shape[0], -1) if whole.ndim != 1 else whole.reshape(-1, 1)


def _whole_size(layout: Layout, size: int, ranks: int) -> int:
    unit = size // sum(layout.parts)
    pairs = zip(layout.parts, layout.copies, strict=True)
    return sum(unit * part * -(-ranks // copies) for part, copies in pairs)


def _read(value: Value) -> Array:
    return value.numpy()


@dataclass(slots=True)
class Table:
    """All rows of one tensor over a pass. The four arrays run in parallel, ``[rows]``.

    Args:
        tensors: the calls' tensors, in order.
        ids: numbers of the rows, each once (the last computation stands).
        order: the call that computed the row.
        tensor: index into ``tensors``.
        at: the row's place in that tensor.
        repeats: rows that were computed again and are left out.
        broken: why rows could not be told, if so.
        sums: of a sum (`comparator.numbers.sums`): the inputs that add up to it.
    """

    key: TableKey
    tensors: list[Tensor] = field(default_factory=list)
    ids: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    order: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    tensor: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    at: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    repeats: int = 0
    broken: str | None = None
    sums: tuple[int, ...] = ()
    _parts: list[tuple[Ints, Ints, int]] = field(default_factory=list)

    def add(self, known: _Numbered, order: int, tensor: Tensor) -> None:
        """Adds a call's tensor."""
        self._parts.append((known.ids, known.at, order))
        self.tensors.append(tensor)

    def seal(self) -> None:
        """Makes the arrays of what was added."""
        if not self._parts:
            return
        counts = [len(ids) for ids, _, _ in self._parts]
        ids = np.concatenate([part[0] for part in self._parts])
        at = np.concatenate([part[1] for part in self._parts])
        order = np.repeat([part[2] for part in self._parts], counts)
        tensor = np.repeat(np.arange(len(counts)), counts)
        # The last computation of a row stands: np.unique keeps the first, so it is shown the reverse.
        _, back = np.unique(ids[::-1], return_index=True)
        keep = np.sort(len(ids) - 1 - back)
        self.repeats = len(ids) - len(keep)
        self.ids, self.order, self.tensor, self.at = ids[keep], order[keep], tensor[keep], at[keep]
        self._parts.clear()

    def signature(self) -> tuple[str, int] | None:
        """Dtype and width of all its tensors, or None if they are not the same throughout."""
        kinds = {(tensor.dtype, tensor.tail): tensor for tensor in self.tensors}
        found = {(tensor.dtype, tensor.width) for tensor in kinds.values()}
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class PassIndex:
    """A pass as tables of rows.

    Args:
        calls: in execution order.
        tables: keyed by site, side and index.
        sites: what is known of each site.
        notes: what the steps say could not be seen, each once.
        unknown: for a candidate, rows of each site that golden never computed.
        steps: in order.
        sampled: what each place's token was, by place; the last sampling stands.
        pairs: of golden in a candidate's naming: what of golden each site is.
    """

    calls: tuple[CallInfo, ...]
    tables: Mapping[TableKey, Table]
    sites: Mapping[str, Site]
    notes: tuple[str, ...]
    unknown: Mapping[str, int]
    steps: tuple[StepInfo, ...]
    sampled: Mapping[RowKey, Sampled]
    pairs: Mapping[str, Pair] = field(default_factory=dict)

    @property
    def sampler(self) -> str | None:
        """The site of the sampler; None if it was not recorded."""
        return next((site.name for site in self.sites.values() if site.role == "sampler"), None)

    @property
    def schedule(self) -> tuple[bytes, ...]:
        """For each step, its row map's bytes."""
        return tuple(step.rows for step in self.steps)


def sites_of(trace: Trace, name: str) -> dict[str, Site]:
    """The sites of a pass by name, each with its role."""
    return with_roles(trace.sites(name, next(iter(trace.ranks(name)), 0)), family_of(trace.run.engine))


def index_pass(
    trace: Trace, name: str, number_rows: Callable[[RowMap], Ints], site_map: SiteMap | None = None
) -> PassIndex:
    """Reads the row maps of a pass.

    Args:
        trace: an open trace.
        name: of the pass.
        number_rows: ``RowFinder.add`` for golden, ``RowFinder.find`` (or a part of it) for a candidate.
        site_map: for golden, whose index is in the candidate's naming then.
    """
    builder = _Builder(sites_of(trace, name) if site_map is None else site_map.sites, number_rows)
    ranks = trace.ranks(name)
    others = [{step.number: step for step in _steps(trace, name, rank, site_map)} for rank in ranks[1:]]
    for step in _steps(trace, name, ranks[0], site_map):
        builder.step(step, [steps.get(step.number) for steps in others])
    index = builder.build()
    return index if site_map is None else replace(index, pairs=site_map.pairs)


def _steps(trace: Trace, name: str, rank: int, site_map: SiteMap | None) -> Iterator[Step]:
    steps = trace.steps(name, rank)
    return iter(steps) if site_map is None else map(site_map.step, steps)


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A row map's rows as far as they have numbers, and where in the tensor each of them lies."""

    rows: RowMap
    ids: Ints
    at: Ints

    def in_lane(self, lane: int) -> _Numbered:
        return self if not lane else _Numbered(self.rows, self.ids + lane * LANE, self.at)


class _Builder:
    def __init__(self, sites: Mapping[str, Site], number_rows: Callable[[RowMap], Ints]) -> None:
        self._sites = sites
        self._number_rows = number_rows
        self._numbered: dict[int, _Numbered] = {}
        self._calls: list[CallInfo] = []
        self._tables: dict[TableKey, Table] = {}
        self._notes: dict[str, None] = {}
        self._unknown: dict[str, int] = {}
        self._steps: list[StepInfo] = []
        self._sampled: dict[RowKey, Sampled] = {}

    def build(self) -> PassIndex:
        for table in self._tables.values():
            _turn(table)
            table.seal()
        return PassIndex(
            tuple(self._calls), self._tables, self._sites, tuple(self._notes), self._unknown,
            tuple(self._steps), self._sampled,
        )  # fmt: skip

    def step(self, step: Step, others: Sequence[Step | None]) -> None:
        self._numbered.clear()  # row maps are shared within a step, and are known by their identity
        self._notes.update(dict.fromkeys(step.notes))
        self._steps.append(StepInfo(step.number, step.rows.tobytes(), step.weights))
        self._sampled.update((sampled.key, sampled) for sampled in step.sampled)
        elsewhere = [{(c.site, c.number): c for c in other.calls} if other else {} for other in others]
        taken: dict[str, list[Ints]] = {}
        for call in step.calls:
            calls = [call, *(c for found in elsewhere if (c := found.get((call.site, call.number))))]
            lane = _lane(taken.setdefault(call.site, []), self._known(call.rows_out).ids)
            self._add(step.number, calls, lane, whole=len(calls) == 1 + len(others))

    def _known(self, rows: RowMap) -> _Numbered:
        known = self._numbered.get(id(rows))
        if known is None:
            numbers = self._number_rows(rows)
            at = np.flatnonzero(numbers >= 0)
            known = self._numbered[id(rows)] = _Numbered(rows, numbers[at], at)
        return known

    def _add(self, step: int, calls: Sequence[Call], lane: int, *, whole: bool) -> None:
        call, order = calls[0], len(self._calls)
        self._calls.append(CallInfo(order, step, call.site, call.number))
        unknown = len(call.rows_out) - len(self._known(call.rows_out).ids)
        if unknown:
            self._unknown[call.site] = self._unknown.get(call.site, 0) + unknown
        for key, values, rows in _tensors(calls):
            table = self._tables.setdefault(key, Table(key))
            layout = self._layout(key)
            if layout is not None and not (whole and len(values) == len(calls)):
                table.broken = "a rank's part is missing"
                continue
            tensor = Tensor(values if layout else values[:1], layout, 0)
            table.add(self._known(rows).in_lane(lane), order, tensor)

    def _layout(self, key: TableKey) -> Layout | None:
        site = self._sites.get(key.site)
        return None if site is None else site.layouts.get(f"{key.side}{key.index}")


def _tensors(calls: Sequence[Call]) -> Iterator[tuple[TableKey, tuple[Value, ...], RowMap]]:
    """The tensors of a call, each over all ranks, with rank 0's rows."""
    call = calls[0]
    for i in range(len(call.inputs)):
        values = tuple(c.inputs[i] for c in calls if i < len(c.inputs))
        yield TableKey(call.site, "in", i), values, call.rows_in
    for i in range(len(call.outputs)):
        values = tuple(c.outputs[i] for c in calls if i < len(c.outputs))
        yield TableKey(call.site, "out", i), values, call.rows_out
    for i in call.written:
        values = tuple(c.written[i] for c in calls if i in c.written)
        yield TableKey(call.site, "written", i), values, call.rows_in


def _lane(taken: list[Ints], ids: Ints) -> int:
    """The first lane of this step where none of the rows was computed yet."""
    for lane, before in enumerate(taken):
        if not np.isin(ids, before).any():
            taken[lane] = np.concatenate([before, ids])
            return lane
    taken.append(ids)
    return len(taken) - 1


def _turn(table: Table) -> None:
    """Finds the dimension of the rows, and cuts off padding.

    Rows are along dimension 1 where a tensor is too short for its row map in dimension 0 and not in 1. One
    such call decides for the site: with three rows or fewer ``[3, rows]`` could be read both ways.
    """
    parts = list(zip(table.tensors, table._parts, strict=True))
    if any(_rows(part) > _size(tensor, 0) for tensor, part in parts):
        if all(_rows(part) <= _size(tensor, 1) for tensor, part in parts):
            table.tensors = [Tensor(t.values, t.layout, 1) for t in table.tensors]
            return
        table.broken = "the tensor has fewer rows than its row map"
        table.tensors, table._parts = [], []


def _rows(part: tuple[Ints, Ints, int]) -> int:
    return int(part[1][-1]) + 1 if len(part[1]) else 0


def _size(tensor: Tensor, dim: int) -> int:
    shape = tensor.values[0].shape
    return shape[dim] if dim < len(shape) else 0


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows that both tables have: indices into golden's and into the candidate's, in golden order."""

    golden: Ints
    candidate: Ints


def pair_rows(golden: Table, candidate: Table) -> Pairs:
    """The rows of ``golden`` that ``candidate`` has too."""
    if len(golden.ids) == len(candidate.ids) and (golden.ids == candidate.ids).all():
        every = np.arange(len(golden.ids))
        return Pairs(every, every)
    _, mine, theirs = np.intersect1d(golden.ids, candidate.ids, assume_unique=True, return_indices=True)
    order = np.argsort(mine, kind="stable")
    return Pairs(mine[order], theirs[order])


def gather(table: Table, picks: Ints) -> Array:
    """Rows ``picks`` of the table in their storage dtype, ``[len(picks), width]``."""
    tensors = table.tensor[picks]
    first = int(tensors[0])
    if (tensors == first).all():
        return _take(table.tensors[first].load(), table.at[picks])
    at = table.at[picks]
    bounds = [0, *(np.flatnonzero(tensors[1:] != tensors[:-1]) + 1).tolist(), len(at)]
    runs = [(int(tensors[a]), at[a:b]) for a, b in pairwise(bounds)]
    return np.concatenate([_take(table.tensors[number].load(), part) for number, part in runs])


def _take(rows: Array, at: Ints) -> Array:
    """``rows[at]``, without a copy where it is all of them."""
    if len(at) == 1:
        return rows[at[0] : at[0] + 1]
    if len(at) == len(rows) and (at[1:] > at[:-1]).all():
        return rows
    return rows[at]
