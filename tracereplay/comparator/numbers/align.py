"""Which golden row is which candidate row: every tensor of a pass as a table of rows.

    records of steps  ──index_pass──▶  PassIndex: one Table for each (site, side, index)
    two Tables        ──pair_rows──▶   Pairs: golden row i is candidate row j

Only row maps are read here; tensors stay in their files until `gather` asks for rows. Rows are numbered by a
`RowFinder` (golden's added, candidate's looked up), so that batches may be composed differently, prompts
chunked, and a row that a prefix cache skipped is stood in for by one with the same beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tracereplay.comparator.numbers.columns import Calls, Columns, Pattern, Places, TensorColumn, make_pattern
from tracereplay.comparator.numbers.kinds import Kind, Occurrence, describe
from tracereplay.comparator.numbers.tables import Ints, PassIndex, StepInfo, Table, TableKey
from tracereplay.engines.known import family_of
from tracereplay.engines.roles import with_roles
from tracereplay.event import Call, RowKey, RowMap, Sampled, Site, rejected
from tracereplay.sitemap import SiteMap
from tracereplay.trace import Trace
from tracereplay.trace.forms import StepRecord
from tracereplay.trace.joined import JoinedSegments
from tracereplay.trace.reader import SegmentReader

__all__ = ["index_pass", "sites_of"]

Segment = SegmentReader | JoinedSegments


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
    segments = [trace.segment(name, rank) for rank in trace.ranks(name)]
    sites = sites_of(trace, name) if site_map is None else site_map.sites
    builder = _Builder(sites, number_rows, site_map, segments)
    for records in _together(segments):
        builder.step(records)
    index = builder.build()
    return index if site_map is None else replace(index, pairs=site_map.pairs, apart=site_map.apart)


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


class _Builder:
    def __init__(
        self, sites: Mapping[str, Site], number_rows: Callable[[RowMap], Ints], site_map: SiteMap | None,
        segments: Sequence[Segment],
    ) -> None:  # fmt: skip
        self._sites = sites
        self._number_rows = number_rows
        self._site_map = site_map
        self._segments = segments
        self._columns = Columns(len(segments))
        self._kinds: dict[tuple[object, ...], Kind] = {}
        self._notes: dict[str, None] = {}
        self._unknown: dict[str, int] = {}
        self._rejected: dict[str, int] = {}
        self._steps: list[StepInfo] = []
        self._sampled: dict[RowKey, Sampled] = {}

    def build(self) -> PassIndex:
        return PassIndex(
            Calls(self._columns), dict(_tables(self._columns)), self._sites, tuple(self._notes), self._unknown,
            tuple(self._steps), self._sampled, rejected=self._rejected,
        )  # fmt: skip

    def step(self, records: Sequence[StepRecord | None]) -> None:
        first = records[0]
        assert first is not None
        self._notes.update(dict.fromkeys(first.notes))
        padding = (len(first.rows), first.padded) if first.padded else None
        rows = first.rows.tobytes()
        self._steps.append(StepInfo(first.number, rows, first.weight_updates, first.census, padding))
        self._sampled.update((sampled.key, sampled) for sampled in first.sampled)
        contents = [m.tobytes() for m in first.maps]
        alike = tuple(contents.index(content) for content in contents)
        ids: list[Ints] = []
        for place, rows_of in enumerate(first.maps):
            ids.append(ids[alike[place]] if alike[place] < place else self._number_rows(rows_of))
        key = (tuple(0 if r is None else id(r.form) for r in records), alike, self._lanes(first, ids))
        kind, new = self._kinds.get(key), key not in self._kinds
        if kind is None:
            kind = self._kinds[key] = self._columns.new_kind([None if r is None else r.form for r in records])
        self._columns.add(kind, records, self._readers(records), ids)
        if new:
            self._describe(kind, records, ids)
        if min((int(numbers.min(initial=0)) for numbers in ids), default=0) < 0:
            self._count_unnumbered(kind, first.maps, ids)

    def _readers(self, records: Sequence[StepRecord | None]) -> list[SegmentReader | None]:
        return [
            None if record is None else segment.source(record.place)
            for segment, record in zip(self._segments, records, strict=True)
        ]

    def _describe(self, kind: Kind, records: Sequence[StepRecord | None], ids: Sequence[Ints]) -> None:
        """Says what steps of a new kind do, of which the last added step is the first."""
        by_map = {id(rows): numbers for rows, numbers in zip(_first(records).maps, ids, strict=True)}

        def lanes(calls: Sequence[Call]) -> list[int]:
            return _lanes_of([(call.site, by_map[id(call.rows_out)]) for call in calls])

        self._columns.cursor.step = len(self._steps) - 1
        describe(kind, records, self._columns.cursor, self._sites, self._site_map, lanes)

    def _lanes(self, record: StepRecord, ids: Sequence[Ints]) -> tuple[int, ...]:
        """The lanes of the calls of sites that are called more than once."""
        sites: dict[str, int] = {}
        for call in record.form.calls:
            sites[call.site] = sites.get(call.site, 0) + 1
        several = [(c.site, ids[c.rows_out]) for c in record.form.calls if sites[c.site] > 1]
        return tuple(_lanes_of(several))

    def _count_unnumbered(self, kind: Kind, maps: Sequence[RowMap], ids: Sequence[Ints]) -> None:
        """Rows of rejected drafts, and rows that golden never computed."""
        away = [int(rejected(rows).sum()) for rows in maps]
        unknown = [int((~rejected(rows)).sum()) - int((n >= 0).sum()) for rows, n in zip(maps, ids, strict=True)]
        for call in kind.calls:
            for counts, count in (
                (self._rejected, max(away[call.rows_in], away[call.rows_out])),
                (self._unknown, unknown[call.rows_out]),
            ):
                if count:
                    counts[call.site] = counts.get(call.site, 0) + count


def _first(records: Sequence[StepRecord | None]) -> StepRecord:
    assert records[0] is not None
    return records[0]


def _lanes_of(calls: Sequence[tuple[str, Ints]]) -> list[int]:
    """For each call the first lane of its site where none of its rows was computed yet in the step."""
    taken: dict[str, list[Ints]] = {}
    found: list[int] = []
    for site, ids in calls:
        lanes, known = taken.setdefault(site, []), ids[ids >= 0]
        lane = next((i for i, before in enumerate(lanes) if not np.isin(known, before).any()), len(lanes))
        lanes[lane : lane + 1] = [np.concatenate([*lanes[lane : lane + 1], known])]
        found.append(lane)
    return found


def _tables(columns: Columns) -> Iterator[tuple[TableKey, Table]]:
    """The tables of a pass, in order of their first calls."""
    patterns: dict[Places, Pattern] = {}
    keys = dict.fromkeys(key for kind in columns.kinds for key in (*kind.tensors, *kind.broken))
    for key in keys:
        broken = next((kind.broken[key] for kind in columns.kinds if key in kind.broken), None)
        found: dict[int, Sequence[Occurrence]] = {
            kind.number: kind.tensors[key] for kind in columns.kinds if key in kind.tensors
        }
        if not found:
            yield key, Table(key, None, broken)
            continue
        places = tuple((n, tuple((o.rows, o.lane) for o in occurrences)) for n, occurrences in found.items())
        if places not in patterns:
            patterns[places] = make_pattern(columns, places)
        turned = TensorColumn(columns, patterns[places], found).turned()
        yield key, Table(key, turned, "the tensor has fewer rows than its row map" if turned is None else broken)
