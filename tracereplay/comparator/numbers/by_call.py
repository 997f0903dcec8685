"""The error of each call of a pass, in golden's order: what a time line shows, where a verdict has the worst.

No verdict follows from it, and nothing is left out: rows that a verdict does not count for a reason (context that
was not fed) are there with what they inherited.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracereplay.columns.calls import Calls
from tracereplay.comparator.numbers.align import index_pass, sites_of
from tracereplay.comparator.numbers.blocks import pieces
from tracereplay.comparator.numbers.blockwise import mismatch, size_of
from tracereplay.comparator.numbers.dtypes import coarser, is_float
from tracereplay.comparator.numbers.metrics import Floats, differing, row_errors
from tracereplay.comparator.numbers.tables import Ints, PassIndex, Table, TableKey, gather, pair_rows, surely_equal
from tracereplay.comparator.numbers.tolerance import Policy, tolerance_for, unit_factors
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.engines.naming import map_of
from tracereplay.event import Site
from tracereplay.passes import INJECTED, RECORD, RERUN
from tracereplay.trace import Trace
from tracereplay.trace.rows import RowFinder

__all__ = ["CallErrors", "errors_by_call"]

ELEMENTS = 1 << 18  # compared at a time


@dataclass(frozen=True)
class CallErrors:
    """Golden's calls, in the candidate's naming.

    Args:
        calls: in order.
        sites: by name.
        errors: of each call the worst error of its outputs over the allowance, ``[calls]``: 0 where they are the
            same to the bit, infinite where one side only is finite, nan where nothing was compared.
    """

    calls: Calls
    sites: dict[str, Site]
    errors: Floats


def errors_by_call(golden: Trace, candidate: Trace, policy: Policy) -> CallErrors | None:
    """The errors of the injected pass, or else of the rerun; None where there is neither."""
    name = next((name for name in (INJECTED, RERUN) if name in candidate.passes), None)
    if name is None:
        return None
    finder = RowFinder(read_generation(golden, RECORD).tokens)
    site_map = map_of(sites_of(golden, RECORD), sites_of(candidate, name).values())
    mine, theirs = index_pass(golden, RECORD, finder.add, site_map), index_pass(candidate, name, finder.find)
    errors = np.full(len(mine.calls), np.nan)
    paired = _pairs(mine, theirs)
    jobs = [
        (block, start, stop, key)
        for key, rows in paired.items()
        for block, start, stop in pieces(mine.calls.blocks(mine.tables[key].order(rows[0])))
    ]
    for _, start, stop, key in sorted(jobs, key=lambda job: job[0]):
        rows = paired[key][0][start:stop], paired[key][1][start:stop]
        found = _ratios(mine.sites.get(key.site), mine.tables[key], theirs.tables[key], *rows, policy)
        if found is not None:
            np.fmax.at(errors, mine.tables[key].order(rows[0]), found)
    mine.calls.let_go()
    theirs.calls.let_go()
    return CallErrors(mine.calls, dict(mine.sites), errors)


def _pairs(mine: PassIndex, theirs: PassIndex) -> dict[TableKey, tuple[Ints, Ints]]:
    """Of each output that can be compared the rows that both sides have."""
    found = {}
    for key, table in mine.tables.items():
        other = theirs.tables.get(key)
        if key.side == "in" or other is None or mismatch(table, other, key, theirs) is not None:
            continue
        pairs = pair_rows(table, other)
        if len(pairs.golden):
            found[key] = pairs.golden, pairs.candidate
    return found


def _ratios(
    site: Site | None, table: Table, other: Table, mine: Ints, theirs: Ints, policy: Policy
) -> Floats | None:
    """Of each row its error over the allowance; None if the policy ignores it."""
    dtypes = table.tensors[0].dtype, other.tensors[0].dtype
    dtype = coarser(*dtypes) if is_float(dtypes[0]) else dtypes[0]
    operator, role = (site.operator, site.role) if site else ("", "")
    tolerance = tolerance_for(policy, table.key.site, operator, dtype, "operator", role)
    if tolerance is None:
        return None
    ratios = np.zeros(len(mine))
    if dtypes[0] == dtypes[1] and surely_equal(table, mine, other, theirs):
        return ratios
    golden, candidate = gather(table, mine), gather(other, theirs)
    different = differing(golden, candidate) if dtypes[0] == dtypes[1] else np.ones(len(golden), bool)
    rows = np.flatnonzero(different)
    peak = policy.peak(table.key.site, operator, dtype, "operator", role)
    stride = max(1, ELEMENTS // max(golden.shape[1], 1))
    for start in range(0, len(rows), stride):
        part = rows[start : start + stride]
        found = row_errors(
            golden[part], candidate[part], *dtypes, unit_factors(tolerance), size_of(role, "out"), peak
        )
        ratios[part] = found.ratio
    return ratios
