"""Own errors cancelled in the candidate's process, while all else runs as it would.

Holding an operator to its golden output would also wipe out all that it inherited: the residual stream passes
through every norm, so held norms bring any drift to zero, whoever caused it. What is taken away here is only
what the operator itself does otherwise, as an injected pass has measured it on golden inputs:

    out = actual - (injected - golden)      row by row; exactly golden wherever actual has injected's bits

The second half is what makes the closure check exact: with everything cancelled, every operator is given golden
inputs, repeats its injected output, and hands on golden bits. At an input the same is done to what arrives, which
cancels the edge before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tracereplay.cancellation import Cancellation
from tracereplay.event import RowMap
from tracereplay.replayer.tables import BITS, RowTables, laid_out

__all__ = ["CancelledRows"]


class CancelledRows:
    """The `Replacement` of a pass in which own errors are cancelled.

    Args:
        golden: the golden recording's rows.
        injected: this engine's rows of an injected pass with that golden.
        names: the site of each slot.
        selection: what to cancel.
    """

    def __init__(
        self, golden: RowTables, injected: RowTables, names: Mapping[int, str], selection: Cancellation
    ) -> None:
        self._golden, self._injected, self._names, self._selection = golden, injected, names, selection

    def rows(self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor) -> torch.Tensor | None:
        if not self._selection.takes(self._names.get(slot, ""), side, index):
            return None
        golden = self._golden.find(slot, side, index, rows, like)
        injected = self._injected.find(slot, side, index, rows, like)
        if golden is None or injected is None:
            return None
        known = (golden[1] >= 0) & (injected[1] >= 0)
        if not known.any():
            return None
        at = self._golden.targets(known)
        g, b = (
            tables.picked(data, places[known], like.dtype)
            for tables, (data, places) in ((self._golden, golden), (self._injected, injected))
        )
        given = laid_out(like, like)
        return given.index_copy_(0, at, cancelled(like[at], b, g))


def cancelled(actual: torch.Tensor, injected: torch.Tensor, golden: torch.Tensor) -> torch.Tensor:
    """``actual`` without the own error; all three of one shape and dtype.

    Where the error is not finite there is nothing to subtract, and the actual value stays.
    """
    same = _bits(actual) == _bits(injected)
    moved = actual.double() - (injected.double() - golden.double())
    without = torch.where(torch.isfinite(moved), moved, actual.double()).to(actual.dtype)
    return torch.where(same, golden, without)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(BITS[x.element_size()])
