"""Which golden row is which candidate row: every tensor of a pass as a table of rows.

    steps, calls, ranks  ──index_pass──▶  PassIndex: one Table for each (site, side, index)
    two Tables           ──pair_rows──▶   Pairs: golden row i is candidate row j

Only row maps are read here; tensors stay in their files until `gather` asks for rows. Rows are numbered by a
`RowFinder` (golden's added, candidate's looked up), so that batches may be composed differently, prompts
chunked, and a row that a prefix cache skipped is stood in for by one with the same beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tracereplay.comparator.numbers.tables import (
    CallInfo,
    Ints,
    Numbered,
    PassIndex,
    StepInfo,
    Table,
    TableKey,
    Tensor,
)
from tracereplay.engines.known import family_of
from tracereplay.engines.roles import with_roles
from tracereplay.event import Call, Layout, RowKey, RowMap, Sampled, Site, Step, Value, rejected
from tracereplay.sitemap import SiteMap
from tracereplay.trace import Trace

__all__ = ["index_pass", "sites_of"]


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
    return index if site_map is None else replace(index, pairs=site_map.pairs, apart=site_map.apart)


def _steps(trace: Trace, name: str, rank: int, site_map: SiteMap | None) -> Iterator[Step]:
    steps = trace.steps(name, rank)
    return iter(steps) if site_map is None else map(site_map.step, steps)


class _Builder:
    def __init__(self, sites: Mapping[str, Site], number_rows: Callable[[RowMap], Ints]) -> None:
        self._sites = sites
        self._number_rows = number_rows
        self._numbered: dict[int, Numbered] = {}
        self._calls: list[CallInfo] = []
        self._tables: dict[TableKey, Table] = {}
        self._notes: dict[str, None] = {}
        self._unknown: dict[str, int] = {}
        self._rejected: dict[str, int] = {}
        self._steps: list[StepInfo] = []
        self._sampled: dict[RowKey, Sampled] = {}

    def build(self) -> PassIndex:
        for table in self._tables.values():
            _turn(table)
            table.seal()
        return PassIndex(
            tuple(self._calls), self._tables, self._sites, tuple(self._notes), self._unknown,
            tuple(self._steps), self._sampled, rejected=self._rejected,
        )  # fmt: skip

    def step(self, step: Step, others: Sequence[Step | None]) -> None:
        self._numbered.clear()  # row maps are shared within a step, and are known by their identity
        self._notes.update(dict.fromkeys(step.notes))
        padding = (len(step.rows), step.padded) if step.padded else None
        self._steps.append(StepInfo(step.number, step.rows.tobytes(), step.weight_updates, step.census, padding))
        self._sampled.update((sampled.key, sampled) for sampled in step.sampled)
        elsewhere = [{(c.site, c.number): c for c in other.calls} if other else {} for other in others]
        taken: dict[str, list[Ints]] = {}
        for call in step.calls:
            calls = [call, *(c for found in elsewhere if (c := found.get((call.site, call.number))))]
            lane = _lane(taken.setdefault(call.site, []), self._known(call.rows_out).ids)
            self._add(step.number, calls, lane, whole=len(calls) == 1 + len(others))

    def _known(self, rows: RowMap) -> Numbered:
        known = self._numbered.get(id(rows))
        if known is None:
            numbers = self._number_rows(rows)
            at = np.flatnonzero(numbers >= 0)
            known = self._numbered[id(rows)] = Numbered(rows, numbers[at], at)
        return known

    def _add(self, step: int, calls: Sequence[Call], lane: int, *, whole: bool) -> None:
        call, order = calls[0], len(self._calls)
        self._calls.append(CallInfo(order, step, call.site, call.number, call.fed))
        away = max(int(rejected(rows).sum()) for rows in (call.rows_in, call.rows_out))
        if away:
            self._rejected[call.site] = self._rejected.get(call.site, 0) + away
        unknown = int((~rejected(call.rows_out)).sum()) - len(self._known(call.rows_out).ids)
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
