"""A pass in blocks of calls, so that comparing reads files nearly in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracereplay.columns.column import TensorColumn
from tracereplay.columns.tensors import Ints, edges

__all__ = ["fit", "pieces"]

SLACK = 1.4  # of what is kept of a pass; a chunk has more than its tensors


def pieces(blocks: Ints) -> Iterator[tuple[int, int, int]]:
    """Rows cut where the next block begins, as (block, start, stop).

    Args:
        blocks: of each row the number of its block (`columns.calls.Calls.blocks`), ``int64 [rows]``, at least one
            row.
    """
    cuts = edges(blocks)
    numbers = blocks[cuts[:-1]].tolist()
    del blocks  # whoever takes piece after piece of many tables holds a few numbers of each
    yield from zip(numbers, cuts[:-1], cuts[1:], strict=True)


def fit(column: TensorColumn, picks: Ints, blocks: Ints) -> None:
    """Cuts a pass into windows so small that those which one block of another pass needs are kept at once.

    Why: it may have put requests into other batches, or one after the other. A block's rows are all over it then,
    and windows that are let go of before all tensors have been read are decoded again for each.

    Args:
        column: of the pass.
        picks: its rows, ``int64 [rows]``.
        blocks: of each the block of the other pass that its partner is in, ``int64 [rows]``.
    """
    columns = column.columns
    while True:
        needed = np.unique(np.stack([blocks, column.windows(picks)], axis=1), axis=0)
        # A step that is a window by itself, such as a long prefill, grows no smaller, whatever else is cut.
        divisible = np.where(np.diff(columns.windows) > 1, columns.window_bytes, 0)
        sizes = np.bincount(np.unique(needed[:, 0], return_inverse=True)[1], divisible[needed[:, 1]])
        if SLACK * sizes.max() <= columns.most or not columns.cut_smaller():
            return
