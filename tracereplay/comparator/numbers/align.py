"""Which golden row is which candidate row: every tensor of a pass as a table of rows.

    records of steps  ──index_pass──▶  PassIndex: one Table for each (site, side, index)
    two Tables        ──pair_rows──▶   Pairs: golden row i is candidate row j

Only row maps are read here; tensors stay in their files until `gather` asks for rows. Rows are numbered by a
`RowFinder` (golden's added, candidate's looked up), so that batches may be composed differently, prompts
chunked, and a row that a prefix cache skipped is stood in for by one with the same beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tracereplay.columns.calls import Calls
from tracereplay.columns.kinds import Kind
from tracereplay.columns.read import Added, PassReader, columns_of
from tracereplay.columns.store import Columns
from tracereplay.comparator.numbers.tables import Ints, PassIndex, StepInfo, Steps, Table
from tracereplay.comparator.tokens.sampled import SampledTokens
from tracereplay.engines.known import family_of
from tracereplay.engines.roles import with_roles
from tracereplay.event import RowMap, Site, rejected
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
    segments = [trace.segment(name, rank) for rank in trace.ranks(name)]
    sites = sites_of(trace, name) if site_map is None else site_map.sites
    reader = PassReader(number_rows, sites, site_map, Columns(segments))
    builder = _Builder(sites)
    for added in reader.steps():
        builder.step(added)
    index = builder.build(reader.columns)
    return index if site_map is None else replace(index, pairs=site_map.pairs, apart=site_map.apart)


class _Builder:
    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites
        self._notes: dict[str, None] = {}
        self._unknown: dict[str, int] = {}
        self._rejected: dict[str, int] = {}
        self._steps = Steps()
        self._sampled = SampledTokens()

    def build(self, columns: Columns) -> PassIndex:
        tables = {key: Table(key, column, broken) for key, column, broken in columns_of(columns)}
        return PassIndex(
            Calls(columns), tables, self._sites, tuple(self._notes), self._unknown, self._steps,
            self._sampled, rejected=self._rejected,
        )  # fmt: skip

    def step(self, added: Added) -> None:
        record, ids = added.record, added.ids
        self._notes.update(dict.fromkeys(record.notes))
        padding = (len(record.rows), record.padded) if record.padded else None
        self._steps.add(
            StepInfo(record.number, record.rows.tobytes(), record.weight_updates, record.census, padding)
        )
        self._sampled.add(record.sampled)
        if min((int(numbers.min(initial=0)) for numbers in ids), default=0) < 0:
            self._count_unnumbered(added.kind, record.maps, ids)

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
