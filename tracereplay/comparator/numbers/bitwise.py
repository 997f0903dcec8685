"""Which rows of two passes have other bits: exact, table by table, without tolerances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracereplay.comparator.numbers.blocks import pieces
from tracereplay.comparator.numbers.blockwise import mismatch
from tracereplay.comparator.numbers.results import Exclusion, Mask
from tracereplay.comparator.numbers.tables import Array, Ints, PassIndex, Table, TableKey, gather, pair_rows

__all__ = ["PairedRows", "compare_bits"]


@dataclass(frozen=True)
class PairedRows:
    """One tensor's rows in two passes. The arrays run in parallel, ``[rows]``, in the order of the base pass.

    Args:
        ids: numbers of the rows.
        order: the base pass's call that computed the row.
        base, variant: rows of the calls' tensors in which they were computed, padding included.
        differs: whether any bit does.
    """

    ids: Ints
    order: Ints
    base: Ints
    variant: Ints
    differs: Mask


def compare_bits(
    base: PassIndex, variant: PassIndex, exclusions: Sequence[Exclusion] = ()
) -> tuple[Mapping[TableKey, PairedRows], Mapping[TableKey, str]]:
    """Compares every row that both passes have.

    Args:
        base, variant: the passes, their rows numbered by one finder.
        exclusions: rows not to compare.

    Returns:
        The rows of each tensor, and why others could not be compared: the variant has no such site or output, or
        its rows are of another size or kind.
    """
    reasons: dict[TableKey, str] = {}
    jobs: list[tuple[TableKey, Table, Table, Ints, Ints, Mask]] = []
    for key, table in base.tables.items():
        other = variant.tables.get(key)
        reason = mismatch(table, other, key, variant)
        if other is None or reason is not None:
            reasons[key] = reason or ""
            continue
        pairs = pair_rows(table, other)
        out = np.zeros(len(table.ids), bool)
        for exclusion in exclusions:
            if (found := exclusion(table)) is not None:
                out |= found[1]
        keep = ~out[pairs.golden]
        mine, theirs = pairs.golden[keep], pairs.candidate[keep]
        jobs.append((key, table, other, mine, theirs, np.zeros(len(mine), bool)))
    due = (
        (number, start, stop, job)
        for job in jobs
        if len(job[3])
        for number, start, stop in pieces(base.calls.blocks(job[1].order(job[3])))
    )
    for _, start, stop, (_, table, other, mine, theirs, differs) in sorted(due, key=lambda piece: piece[0]):
        differs[start:stop] = _apart(gather(table, mine[start:stop]), gather(other, theirs[start:stop]))
    return {
        key: PairedRows(table.ids[mine], table.order(mine), table.sizes[mine], other.sizes[theirs], differs)
        for key, table, other, mine, theirs, differs in jobs
    }, reasons


def _apart(x: Array, y: Array) -> Mask:
    """Rows with any other bit; a dtype that differs is another in every bit. ``bool [rows]``."""
    if x.dtype != y.dtype:
        return np.ones(len(x), bool)
    bits = [np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in (x, y)]
    apart: Mask = (bits[0] != bits[1]).any(axis=1)
    return apart
