"""Which operators give other bits on equal inputs, of two passes of one engine that were served differently.

A difference is an operator's *own* if, for that row, all its inputs are equal bit for bit and an output is not. An
operator that reads earlier rows of the sequence (attention, a state space) must have been given equal ones, too.
A difference that arrives at an operator although nothing before it in the forward pass differs, in this row or an
earlier one of its sequence, is the *edge*'s own: an addition between operators, or whatever computed unobserved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tracereplay.comparator.numbers.bitwise import PairedRows, compare_bits
from tracereplay.comparator.numbers.results import Exclusion, Mask, Rows
from tracereplay.comparator.numbers.tables import LANE, Ints, PassIndex, TableKey
from tracereplay.verdict.invariance import Count, RowCounts, flips_between

__all__ = ["Compared", "Own", "compare_runs", "counts_of"]

_READS_EARLIER_ROWS = ("attention", "mixer", "convolution")
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Own:
    """An operator's (or edge's) own difference.

    Args:
        key: the tensor that shows it: of an operator the first output that does.
        operator: class name.
        place: of the site in a forward pass, counted in calls.
        first: (request, sequence, position) of the first row.
        counts: rows by the sizes of their calls, of those whose inputs are equal.
    """

    key: TableKey
    operator: str
    place: int
    first: tuple[int, int, int]
    counts: tuple[Count, ...]

    @property
    def kind(self) -> str:
        return "edge" if self.key.side == "in" else "operator"

    @property
    def rows(self) -> RowCounts:
        """As reports have it."""
        differing, of = (sum(part) for part in zip(*((c.differing, c.rows) for c in self.counts), strict=True))
        return RowCounts(self.first, differing, of, self.counts, flips_between(self.counts))


@dataclass(frozen=True)
class Compared:
    """Two passes, compared.

    Args:
        own: own differences in the order of a forward pass; edges before the operator that they lead to.
        rows: outputs' rows compared.
        differing: rows of outputs and inputs that differ, inherited differences included.
        apart: why some tensors could not be compared.
        counts: for each site, rows with equal inputs by the sizes of their calls.
        wrong: for each site that reads earlier rows, the numbers of the rows whose inputs differ.
    """

    own: tuple[Own, ...]
    rows: int
    differing: int
    apart: Mapping[TableKey, str]
    counts: Mapping[str, tuple[Count, ...]]
    wrong: Mapping[str, Ints] = field(default_factory=dict)


def compare_runs(
    base: PassIndex, variant: PassIndex, rows: Rows, exclusions: Sequence[Exclusion] = (),
    wrong_before: Mapping[str, Ints] | None = None,
) -> Compared:  # fmt: skip
    """Compares two passes of one workload, the same tokens forced, bit for bit.

    Args:
        base, variant: the passes, their rows numbered by one finder.
        rows: what the numbers stand for.
        exclusions: rows not to compare.
        wrong_before: `Compared.wrong` of a pass whose keys and values this one may have taken from a cache.
    """
    paired, apart = compare_bits(base, variant, exclusions)
    sites = _Sites(base, paired, rows, wrong_before or {})
    own = tuple(sites.own())
    outputs = [p for key, p in paired.items() if key.side != "in"]
    differing = sum(int(p.differs.sum()) for p in paired.values())
    return Compared(own, sum(len(p.ids) for p in outputs), differing, apart, sites.counts, sites.wrong)


class _Sites:
    """The sites of a pass in the order of a forward pass, one after the other."""

    def __init__(
        self, base: PassIndex, paired: Mapping[TableKey, PairedRows], rows: Rows, before: Mapping[str, Ints]
    ) -> None:
        self._base, self._rows, self._before = base, rows, before
        self._at: dict[str, dict[TableKey, PairedRows]] = {}
        for key in sorted(paired, key=lambda key: key.rank):
            self._at.setdefault(key.site, {})[key] = paired[key]
        self._place = base.calls.first
        # For each sequence the first position at which something before differs.
        self._tainted: dict[tuple[int, int], int] = {}
        self._inputs: dict[str, list[TableKey]] = {}
        for key in base.tables:
            if key.side == "in":
                self._inputs.setdefault(key.site, []).append(key)
        self.counts: dict[str, tuple[Count, ...]] = {}
        self.wrong: dict[str, Ints] = {}

    def own(self) -> Iterator[Own]:
        """The own differences."""
        for site in sorted(self._at, key=lambda site: self._place.get(site, 1 << 60)):
            tensors = self._at[site]
            arriving = {key: p for key, p in tensors.items() if key.side == "in"}
            yield from self._edges(arriving)
            yield from self._operator(site, arriving, {k: p for k, p in tensors.items() if k.side != "in"})
            for p in tensors.values():
                self._taint(p.ids[p.differs])

    def _edges(self, arriving: Mapping[TableKey, PairedRows]) -> Iterator[Own]:
        for key, p in arriving.items():
            sound = ~self._is_tainted(p.ids)
            if (p.differs & sound).any():
                yield self._found(key, p, sound)

    def _operator(
        self, site: str, arriving: Mapping[TableKey, PairedRows], outputs: Mapping[TableKey, PairedRows]
    ) -> Iterator[Own]:
        wrong = np.unique(np.concatenate([_NONE, *(p.ids[p.differs] for p in arriving.values())]))
        known = self._base.sites.get(site)
        context = known is not None and known.role in _READS_EARLIER_ROWS
        if context:
            wrong = self.wrong[site] = np.union1d(wrong, self._before.get(site, _NONE))
        told = False
        for key, p in outputs.items():
            sound = ~np.isin(p.ids, wrong) & self._given(p.ids, key.site, arriving)
            if context and len(wrong):
                sound &= ~self._behind(p.ids, wrong)
            if site not in self.counts or not told:
                self.counts[site] = _counts(p, sound)
            if not told and (p.differs & sound).any():
                told = True
                yield self._found(key, p, sound)

    def _given(self, ids: Ints, site: str, arriving: Mapping[TableKey, PairedRows]) -> Mask:
        """Rows whose inputs were all compared, as far as the base pass has them as rows."""
        given = np.ones(len(ids), bool)
        for key in self._inputs.get(site, ()):
            compared = arriving[key].ids if key in arriving else _NONE
            given &= ~np.isin(ids, np.setdiff1d(self._base.tables[key].ids, compared))
        return given

    def _behind(self, ids: Ints, wrong: Ints) -> Mask:
        """Rows of sequences that have a wrong row earlier, their own or one with the same beginning."""
        bad = self._rows.beginning[wrong % LANE]
        firsts = {}
        for key, beginnings in self._rows.beginnings.items():
            found = np.flatnonzero(np.isin(beginnings, bad))
            firsts[key] = int(found[0]) if len(found) else 1 << 40
        return self._from(ids, firsts)

    def _from(self, ids: Ints, firsts: Mapping[tuple[int, int], int]) -> Mask:
        keys = self._rows.keys[ids % LANE]
        limits = np.array([firsts.get((r, s), 1 << 40) for r, s in keys[:, :2].tolist()], np.int64)
        mask: Mask = keys[:, 2] >= limits
        return mask

    def _is_tainted(self, ids: Ints) -> Mask:
        return self._from(ids, self._tainted)

    def _taint(self, ids: Ints) -> None:
        for request, sequence, position in self._rows.keys[ids % LANE].tolist():
            key = request, sequence
            self._tainted[key] = min(position, self._tainted.get(key, position))

    def _found(self, key: TableKey, p: PairedRows, sound: Mask) -> Own:
        at = np.flatnonzero(p.differs & sound)
        first = at[np.lexsort((at, p.order[at]))[0]]
        request, sequence, position = self._rows.keys[p.ids[first] % LANE].tolist()
        site = self._base.sites.get(key.site)
        operator = site.operator if site else ""
        place = self._place.get(key.site, 1 << 60)
        return Own(key, operator, place, (request, sequence, position), _counts(p, sound))


def _counts(p: PairedRows, sound: Mask) -> tuple[Count, ...]:
    sizes, of = np.unique(np.stack([p.base[sound], p.variant[sound]], axis=1), axis=0, return_inverse=True)
    rows, differing = np.bincount(of.ravel()), np.bincount(of.ravel(), weights=p.differs[sound])
    found = zip(sizes.tolist(), rows.tolist(), differing.astype(int).tolist(), strict=True)
    return tuple(Count(base, variant, n, d) for (base, variant), n, d in found)


def counts_of(every: Sequence[Sequence[Count]]) -> tuple[Count, ...]:
    """The counts of several comparisons of one site, added up."""
    found: dict[tuple[int, int], list[int]] = {}
    for count in (count for counts in every for count in counts):
        total = found.setdefault((count.base, count.variant), [0, 0])
        total[0] += count.rows
        total[1] += count.differing
    return tuple(Count(*sizes, *total) for sizes, total in sorted(found.items()))
