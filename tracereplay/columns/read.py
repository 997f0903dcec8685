"""Reads a pass by columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tracereplay.columns.column import Pattern, Places, TensorColumn, make_pattern
from tracereplay.columns.kinds import Kind, Occurrence, describe
from tracereplay.columns.store import Columns, Segment
from tracereplay.columns.tensors import Ints, TableKey
from tracereplay.event import Call, RowMap, Site
from tracereplay.sitemap import SiteMap
from tracereplay.trace.forms import Form, StepRecord

__all__ = ["Added", "PassReader", "columns_of"]


class Added(NamedTuple):
    """A step that was read.

    Args:
        record: the first rank's.
        kind: of the step.
        ids: numbers of the rows of each of its row maps, -1 where they have none.
    """

    record: StepRecord
    kind: Kind
    ids: Sequence[Ints]


class PassReader:
    """Reads a pass into columns.

    Args:
        number_rows: ``RowFinder.add`` for golden, ``RowFinder.find`` (or a part of it) for a candidate.
        sites: of the pass, by name, in the naming that ``site_map`` translates into.
        site_map: for golden, whose columns are in the candidate's naming then.
        columns: where they are put; they have the segments.
    """

    def __init__(
        self, number_rows: Callable[[RowMap], Ints], sites: Mapping[str, Site],
        site_map: SiteMap | None, columns: Columns,
    ) -> None:  # fmt: skip
        self.columns = columns
        self._number_rows = number_rows
        self._sites, self._site_map = sites, site_map
        self._kinds: dict[tuple[object, ...], Kind] = {}
        self._several: dict[Form, tuple[tuple[str, int], ...]] = {}  # calls of sites that have several
        self._count = 0

    def steps(self) -> Iterator[Added]:
        """Reads all steps in order; each is added before it is given."""
        for records in _together(self.columns.segments):
            yield self._add(records)

    def _add(self, records: Sequence[StepRecord | None]) -> Added:
        first = _first(records)
        contents = [m.tobytes() for m in first.maps]
        alike = tuple(contents.index(content) for content in contents)
        ids: list[Ints] = []
        for place, rows in enumerate(first.maps):
            ids.append(ids[alike[place]] if alike[place] < place else self._number_rows(rows))
        key = (tuple(0 if r is None else id(r.form) for r in records), alike, self._lanes(first, ids))
        kind, new = self._kinds.get(key), key not in self._kinds
        if kind is None:
            kind = self._kinds[key] = self.columns.new_kind([None if r is None else r.form for r in records])
        self.columns.add(kind, records, ids)
        if new:
            self._describe(kind, records, ids)
        self._count += 1
        return Added(first, kind, ids)

    def _describe(self, kind: Kind, records: Sequence[StepRecord | None], ids: Sequence[Ints]) -> None:
        """Says what steps of a new kind do, of which the last added step is the first."""
        by_map = {id(rows): numbers for rows, numbers in zip(_first(records).maps, ids, strict=True)}

        def lanes(calls: Sequence[Call]) -> list[int]:
            return _lanes_of([(call.site, by_map[id(call.rows_out)]) for call in calls])

        self.columns.cursor.step = self._count
        describe(kind, records, self.columns.cursor, self._sites, self._site_map, lanes)

    def _lanes(self, record: StepRecord, ids: Sequence[Ints]) -> tuple[int, ...]:
        """The lanes of the calls of sites that are called more than once."""
        several = self._several.get(record.form)
        if several is None:
            sites = Counter(call.site for call in record.form.calls)
            several = tuple((c.site, c.rows_out) for c in record.form.calls if sites[c.site] > 1)
            self._several[record.form] = several
        return tuple(_lanes_of([(site, ids[rows]) for site, rows in several]))


def _together(segments: Sequence[Segment]) -> Iterator[list[StepRecord | None]]:
    """Each step of the first rank with those of the same number of the others."""
    others = [_ByNumber(segment) for segment in segments[1:]]
    for place in range(len(segments[0])):
        record = segments[0].record(place)
        yield [record, *(other.find(record.number) for other in others)]


class _ByNumber:
    """A rank's records, asked for in the order of their numbers."""

    def __init__(self, segment: Segment) -> None:
        self._segment, self._place = segment, 0
        self._next: StepRecord | None = None

    def find(self, number: int) -> StepRecord | None:
        while self._next is None or self._next.number < number:
            if self._place == len(self._segment):
                return None
            self._next = self._segment.record(self._place)
            self._place += 1
        return self._next if self._next.number == number else None


def _first(records: Sequence[StepRecord | None]) -> StepRecord:
    assert records[0] is not None
    return records[0]


def _lanes_of(calls: Sequence[tuple[str, Ints]]) -> list[int]:
    """For each call the first lane of its site where none of its rows was computed yet in the step.

    Calls with the same rows have the same array.
    """
    taken: dict[str, list[dict[int, Ints]]] = {}  # of each site's lanes the rows, by the identity of their array
    free: dict[tuple[str, int], int] = {}  # where rows found a place last: lanes only fill
    meet: dict[tuple[int, int], bool] = {}
    found: list[int] = []
    for site, ids in calls:
        lanes = taken.setdefault(site, [])
        lane = free.get((site, id(ids)), 0)
        while lane < len(lanes) and any(_meet(ids, other, meet) for other in lanes[lane].values()):
            lane += 1
        lanes += [{}] * (lane == len(lanes))
        lanes[lane][id(ids)] = ids
        free[site, id(ids)] = lane
        found.append(lane)
    return found


def _meet(one: Ints, other: Ints, known: dict[tuple[int, int], bool]) -> bool:
    """Whether two maps have a row in common."""
    key = id(one), id(other)
    if key not in known:
        known[key] = bool(np.isin(one[one >= 0], other).any())
    return known[key]


def columns_of(columns: Columns) -> Iterator[tuple[TableKey, TensorColumn | None, str | None]]:
    """The tables of a pass that was read, in order of their first calls; where rows cannot be told, why."""
    patterns: dict[Places, Pattern] = {}
    keys = dict.fromkeys(key for kind in columns.kinds for key in (*kind.tensors, *kind.broken))
    for key in keys:
        broken = next((kind.broken[key] for kind in columns.kinds if key in kind.broken), None)
        found: dict[int, Sequence[Occurrence]] = {
            kind.number: kind.tensors[key] for kind in columns.kinds if key in kind.tensors
        }
        if not found:
            yield key, None, broken
            continue
        places = tuple((n, tuple((o.rows, o.lane) for o in occurrences)) for n, occurrences in found.items())
        if places not in patterns:
            patterns[places] = make_pattern(columns, places)
        turned = TensorColumn(columns, patterns[places], found).turned()
        yield key, turned, "the tensor has fewer rows than its row map" if turned is None else broken
