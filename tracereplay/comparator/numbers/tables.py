"""A pass as tables of rows: one for each tensor of each site, whose values are read when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tracereplay.census import Census
from tracereplay.columns.calls import Calls
from tracereplay.columns.column import Pattern, TensorColumn
from tracereplay.columns.tensors import LANE, Array, Ints, TableKey, Tensor
from tracereplay.event import RowKey, Sampled, Site
from tracereplay.sitemap import Pair

__all__ = [
    "LANE", "Array", "Calls", "Ints", "Pairs", "PassIndex", "Pattern", "StepInfo", "Steps", "Table",
    "TableKey", "Tensor", "gather", "pair_rows", "surely_equal",
]  # fmt: skip


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


ROW = 12  # bytes of a row in a row map


class Steps(Sequence[StepInfo]):
    """The steps of a pass in order, in a few bytes each."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._updates = array("q")
        self._rows = bytearray()
        self._ends = array("q", [0])
        self._censuses: dict[int, Census] = {}
        self._paddings: dict[int, tuple[int, int]] = {}

    def add(self, step: StepInfo) -> None:
        """Adds a step."""
        if step.census is not None:
            self._censuses[len(self)] = step.census
        if step.padding is not None:
            self._paddings[len(self)] = step.padding
        self._rows += step.rows
        self._ends.append(len(self._rows))
        self._updates.append(step.weight_updates)
        self._numbers.append(step.number)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        rows = bytes(memoryview(self._rows)[self._ends[place] : self._ends[place + 1]])
        census, padding = self._censuses.get(place), self._paddings.get(place)
        return StepInfo(self._numbers[place], rows, self._updates[place], census, padding)

    @property
    def census(self) -> Census | None:
        """The last one."""
        return self._censuses[max(self._censuses)] if self._censuses else None

    @property
    def paddings(self) -> Iterable[tuple[int, int]]:
        """Of the steps that have one."""
        return self._paddings.values()

    @property
    def rows(self) -> int:
        """How many there are, of all steps together."""
        return len(self._rows) // ROW

    def same_rows(self, other: Steps) -> bool:
        """Whether both have the same rows, step by step."""
        return self._ends == other._ends and self._rows == other._rows


@dataclass(frozen=True, slots=True)
class Table:
    """All rows of one tensor over a pass.

    Args:
        column: the calls' tensors, in order; None if their rows could not be told.
        broken: why, if so; or why some are missing.
        sums: of a sum (`comparator.numbers.sums`): the inputs that add up to it.
    """

    key: TableKey
    column: TensorColumn | None
    broken: str | None = None
    sums: tuple[int, ...] = ()

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The calls' tensors; for what all of them hold, see `gather`."""
        return () if self.column is None else self.column

    @property
    def ids(self) -> Ints:
        """Numbers of the rows, each once (the last computation stands), ``int64 [rows]``."""
        return _NONE if self.column is None else self.column.pattern.ids

    def order(self, picks: Ints) -> Ints:
        """The calls that computed these rows, ``int64 [picks]``."""
        return _NONE if self.column is None else self.column.order(picks)

    @property
    def sizes(self) -> Ints:
        """How many rows the tensor has that each row is in, padding included, ``int64 [rows]``."""
        return _NONE if self.column is None else self.column.sizes[self.column.pattern.tensor]

    @property
    def pattern(self) -> Pattern | None:
        """Where its rows are; tables whose rows are the same share one."""
        return None if self.column is None else self.column.pattern

    @property
    def repeats(self) -> int:
        """Rows that were computed again and are left out."""
        return 0 if self.column is None else self.column.pattern.repeats

    def signature(self) -> tuple[str, int] | None:
        """Dtype and width of all its tensors, or None if they are not the same throughout."""
        if self.column is None:
            return None
        kinds = {(tensor.dtype, tensor.tail): tensor for tensor in self.column.kinds}
        found = {(tensor.dtype, tensor.width) for tensor in kinds.values()}
        return found.pop() if len(found) == 1 else None


_NONE: Ints = np.empty(0, np.int64)


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

    calls: Calls
    tables: Mapping[TableKey, Table]
    sites: Mapping[str, Site]
    notes: tuple[str, ...]
    unknown: Mapping[str, int]
    steps: Steps
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
        return self.steps.census

    @property
    def padding(self) -> Mapping[int, int]:
        """By a step's number of rows, how many its CUDA graphs have; without steps that replayed none."""
        return dict(sorted(self.steps.paddings))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows that both tables have: indices into golden's and into the candidate's, in golden order."""

    golden: Ints
    candidate: Ints


def pair_rows(golden: Table, candidate: Table) -> Pairs:
    """The rows of ``golden`` that ``candidate`` has too."""
    one, other = golden.ids, candidate.ids
    if one is other or (len(one) == len(other) and (one == other).all()):
        every = np.arange(len(one))
        return Pairs(every, every)
    _, mine, theirs = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    order = np.argsort(mine, kind="stable")
    return Pairs(mine[order], theirs[order])


def gather(table: Table, picks: Ints, *, alone: bool = False) -> Array:
    """Rows ``picks`` of the table in their storage dtype, ``[len(picks), width]``.

    Args:
        table: with a column.
        picks: at least one.
        alone: whether nothing else of these steps is read, so that chunks are decoded only as far as they must be.
    """
    assert table.column is not None
    return table.column.rows(picks, alone=alone)


def surely_equal(golden: Table, mine: Ints, candidate: Table, theirs: Ints) -> bool:
    """Whether these rows are equal to the bit because their chunks are stored alike; False: unknown."""
    if golden.column is None or candidate.column is None:
        return False
    return golden.column.stored_alike(mine, candidate.column, theirs)
