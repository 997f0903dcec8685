"""Norms that one engine gives x and residual, and the other their sum: compared by the sum.

    golden is given the sum:     what arrives at the candidate's two inputs is added, and compared with it
    candidate is given the sum:  what golden's two inputs add up to, as golden handed it on, is compared with it

Which it is shows in the calls and not in what an operator declares: many a norm can take a residual and is given
none. What a norm hands on as its second output is that sum; where one side has it as an input only, that counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tracereplay.comparator.numbers.results import Exclusion, Mask
from tracereplay.comparator.numbers.tables import Array, PassIndex, Table, TableKey, Tensor
from tracereplay.sitemap import Pair

__all__ = ["ADDENDS", "UNFED_SUM", "by_sums", "note_of_sums", "unfed_sums"]

ADDENDS = (0, 1)  # a norm's inputs that add up: x, and the residual where it is given one

UNFED_SUM = "unfed sum: the candidate was given the sum of x and residual, and was fed golden's x"


@dataclass(frozen=True, slots=True)
class _Sum(Tensor):
    """A tensor and what is added to it, rounded once, to nearest."""

    other: Tensor

    def load(self, *, bits: bool = False) -> Array:
        # Not super(): a dataclass with slots is another class than the one that the body closes over.
        one, two = Tensor.load(self), self.other.load()
        with np.errstate(invalid="ignore", over="ignore"):
            return (one.astype(np.float64) + two.astype(np.float64)).astype(one.dtype)


def by_sums(golden: PassIndex, candidate: PassIndex) -> tuple[PassIndex, PassIndex]:
    """Both passes with one input where one of them has a sum; as they are where none has."""
    mine, theirs = dict(golden.tables), dict(candidate.tables)
    pairs: dict[str, Pair] = {}
    for site in _norms(golden):
        x, residual = (TableKey(site, "in", index) for index in ADDENDS)
        handed_on = TableKey(site, "out", 1)
        if x not in mine or x not in theirs or (residual in mine) == (residual in theirs):
            continue
        if residual in theirs:
            theirs[x] = replace(_added(theirs[x], theirs.pop(residual)), sums=ADDENDS)
            if handed_on in theirs and handed_on not in mine:
                mine[handed_on] = replace(mine[x], key=handed_on)
        else:
            added = _added(mine[x], mine.pop(residual))
            known = mine.pop(handed_on, None) if handed_on not in theirs else None
            mine[x] = added if known is None else replace(known, key=x)
        pair = golden.pairs.get(site, Pair(site, (site,), None, "name"))
        pairs[site] = replace(pair, relation="sum")
    if not pairs:
        return golden, candidate
    tables = _in_order(mine, golden.tables)
    return replace(golden, tables=tables, pairs={**golden.pairs, **pairs}), replace(candidate, tables=theirs)


def unfed_sums(golden: PassIndex, candidate: PassIndex) -> Exclusion:
    """Norms that were given a sum and fed x alone: their results, and what arrives, which came of such a sum.

    In traces that do not say what each call was fed (`unfed_calls`).

    Before it runs, an engine knows what a norm of its can be given, and not that it will be given no residual.

    Args:
        golden, candidate: as they were recorded.
    """
    sites = set()
    for site in _norms(golden):
        had, has = (TableKey(site, "in", ADDENDS[1]) in index.tables for index in (golden, candidate))
        other = candidate.sites.get(site)
        said = site in candidate.calls.where(lambda call: call.fed is not None)
        if had and not has and other is not None and len(other.inputs) > 1 and not said:
            sites.add(site)

    def unfed(table: Table) -> tuple[str, Mask] | None:
        if table.key.site not in sites:
            return None
        return UNFED_SUM, np.ones(len(table.ids), bool)

    return unfed


def note_of_sums(golden: PassIndex, candidate: PassIndex, *, fed: bool) -> list[str]:
    """What is not seen of sums.

    Args:
        golden, candidate: see `by_sums`, which gave them.
        fed: whether the candidate was fed golden's inputs.
    """
    split = [table.key.site for table in candidate.tables.values() if table.sums]
    if not split:
        return []
    what = f"{len(split)} norms, {split[0]} the first, add x and residual themselves; golden has only the sum."
    how = "It was fed as the sum and 0: how the candidate rounds it is not compared."
    return [
        f"{what} {how}" if fed else f"{what} It is compared with what arrived, added up and rounded to nearest."
    ]


def _norms(index: PassIndex) -> Iterator[str]:
    return (site.name for site in index.sites.values() if site.role == "norm")


def _added(x: Table, residual: Table) -> Table:
    """The sum of two inputs of the same calls; it cannot be told where they are not of the same calls."""
    both = None
    if x.column is not None and residual.column is not None:
        both = x.column.with_other(residual.column, lambda one, two: _Sum(one.values, one.layout, one.axis, two))
    if both is None:
        return replace(x, broken="it was given with a residual in some calls and without in others")
    return replace(x, column=both, broken=x.broken or residual.broken)


def _in_order(tables: Mapping[TableKey, Table], before: Mapping[TableKey, Table]) -> dict[TableKey, Table]:
    """The tables in the order of the calls: those that came in since stand at the end of their site's."""
    sites = {key.site: number for number, key in enumerate(before)}
    return dict(sorted(tables.items(), key=lambda item: sites[item[0].site]))
