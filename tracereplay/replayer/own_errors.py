"""Cancels operators' own errors in the candidate's process, and leaves everything else as it is.

Holding an operator to its golden output would also remove inherited errors: the residual stream passes through
every norm, so holding the norms reduces any drift to zero, whatever caused it. Only the operator's own error is
subtracted here, as an injected pass measured it on golden inputs:

    out = actual - (injected - golden)      row by row; exactly golden wherever actual has injected's bits

The second rule makes the closure check exact: with everything cancelled, every operator has golden inputs, repeats
its injected output, and passes on golden bits. Doing the same to an input cancels the edge into it. Where a step's
rows have no own error, bit for bit, nothing is done: most operators of a model have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from tracereplay.cancellation import Cancellation
from tracereplay.event import RowMap
from tracereplay.replayer.ahead import BITS, Ask
from tracereplay.replayer.tables import Found, Known, RowTables, laid_out

__all__ = ["CancelledRows", "cancelled"]


class CancelledRows:
    """The `Replacement` of a pass in which own errors are cancelled.

    Args:
        golden: the golden recording's rows.
        injected: this engine's rows in an injected pass of the same golden trace.
        names: site by slot.
        selection: what to cancel.
    """

    def __init__(
        self, golden: RowTables, injected: RowTables, names: Mapping[int, str], selection: Cancellation
    ) -> None:
        self._golden, self._injected, self._names, self._selection = golden, injected, names, selection

    feeds = False

    def takes(self, slot: int) -> bool:
        """See `recorder.replacement.Replacement`."""
        return self._selection.takes_of(self._names.get(slot, ""))

    def stands_for(self, slot: int, index: int, inputs: int | None) -> Sequence[int]:
        """See `recorder.replacement.Replacement`."""
        return (index,)

    def rows_for(self, rows_of: Callable[[int], tuple[RowMap, RowMap]]) -> None:
        """See `recorder.replacement.Replacement`."""
        for tables in (self._golden, self._injected):
            tables.rows_for(rows_of)

    def rows(
        self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor, inputs: int | None = None
    ) -> torch.Tensor | None:
        found = self._known(slot, side, index, rows, like, inputs)
        if found is None:
            return None
        golden, injected, known = found
        if _same(golden, injected, known):  # without an own error every actual value stays
            return None
        g, b = (
            tables.picked(Ask(slot, side, index, inputs), data, places[known], like.dtype)
            for tables, (data, places) in ((self._golden, golden), (self._injected, injected))
        )
        if known.all() and len(known) == len(like):
            return laid_out(cancelled(like, b, g), like)
        given, at = laid_out(like, like), self._golden.targets(known)
        return given.index_copy_(0, at, cancelled(like[at], b, g))

    def lay_in(
        self, slot: int, side: str, index: int, rows: RowMap, hosts: Sequence[torch.Tensor], inputs: int | None
    ) -> Known | None:
        found = self._known(slot, side, index, rows, hosts[0], inputs)
        if found is None:
            return None
        golden, injected, known = found
        for tables, (data, places), host in zip(
            (self._golden, self._injected), (golden, injected), hosts, strict=True
        ):
            tables.lay_in(data, places, known, host)
        return known

    def _known(
        self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor, inputs: int | None
    ) -> tuple[Found, Found, Known] | None:
        """Both passes' rows of a tap that is chosen, and which are known in both; None if no row is."""
        if not self._selection.takes(self._names.get(slot, ""), side, index):
            return None
        golden = self._golden.find(slot, side, index, rows, like, inputs)
        injected = self._injected.find(slot, side, index, rows, like)
        if golden is None or injected is None:
            return None
        known: Known = (golden[1] >= 0) & (injected[1] >= 0)
        return (golden, injected, known) if known.any() else None


def _same(golden: Found, injected: Found, known: Known) -> bool:
    """Whether both passes have the same bits in the known rows, as far as that can be seen in host memory."""
    mine, theirs = (data[torch.from_numpy(places[known])] for data, places in (golden, injected))
    return mine.dtype == theirs.dtype and bool(torch.equal(_bits(mine), _bits(theirs)))


def cancelled(actual: torch.Tensor, injected: torch.Tensor, golden: torch.Tensor) -> torch.Tensor:
    """``actual`` without the own error; all three of one shape and dtype.

    Where the error is not finite, the actual value remains.
    """
    same = _bits(actual) == _bits(injected)
    moved = actual.double() - (injected.double() - golden.double())
    without = torch.where(torch.isfinite(moved), moved.to(actual.dtype), actual)
    return torch.where(same, golden, without)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(BITS[x.element_size()])
