"""A pass as tables of rows: one for each tensor of each site, whose values are read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.census import Census
from tracereplay.errors import DamagedTrace
from tracereplay.event import Layout, RowKey, RowMap, Sampled, Site, Value
from tracereplay.sitemap import Pair
from tracereplay.trace.shards import join

__all__ = [
    "LANE", "Array", "CallInfo", "Ints", "Numbered", "Pairs", "PassIndex", "StepInfo", "Table", "TableKey",
    "TableSide", "Tensor", "gather", "pair_rows",
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


class StepInfo(NamedTuple):
    """One step of a pass.

    Args:
        number: of the step.
        rows: its row map's bytes.
        weight_updates: how often the engine's weights had been updated before, within the pass.
        census: of the pass so far, if one was taken in it.
        padding: real rows, and those of the CUDA graphs that it replayed; None if it replayed none.
    """

    number: int
    rows: bytes
    weight_updates: int
    census: Census | None = None
    padding: tuple[int, int] | None = None


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


@dataclass(frozen=True, slots=True)
class Numbered:
    """A row map's rows as far as they have numbers, and where in the tensor each of them lies."""

    rows: RowMap
    ids: Ints
    at: Ints

    def in_lane(self, lane: int) -> Numbered:
        return self if not lane else Numbered(self.rows, self.ids + lane * LANE, self.at)


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

    def add(self, known: Numbered, order: int, tensor: Tensor) -> None:
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
        rejected: rows of each site that were computed for draft tokens and thrown away.
        steps: in order.
        sampled: what each place's token was, by place; the last sampling stands.
        pairs: of golden in a candidate's naming: what of golden each site is.
        apart: of golden: sites that are known to have no pair, with the reason.
    """

    calls: tuple[CallInfo, ...]
    tables: Mapping[TableKey, Table]
    sites: Mapping[str, Site]
    notes: tuple[str, ...]
    unknown: Mapping[str, int]
    steps: tuple[StepInfo, ...]
    sampled: Mapping[RowKey, Sampled]
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def sampler(self) -> str | None:
        """The site of the sampler; None if it was not recorded."""
        return next((site.name for site in self.sites.values() if site.role == "sampler"), None)

    @property
    def census(self) -> Census | None:
        """What computes in its steps; None if no census was taken."""
        return next((step.census for step in reversed(self.steps) if step.census is not None), None)

    @property
    def schedule(self) -> tuple[bytes, ...]:
        """For each step, its row map's bytes."""
        return tuple(step.rows for step in self.steps)

    @property
    def padding(self) -> Mapping[int, int]:
        """By a step's number of rows, how many its CUDA graphs have; without steps that replayed none."""
        return dict(sorted(step.padding for step in self.steps if step.padding))


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
