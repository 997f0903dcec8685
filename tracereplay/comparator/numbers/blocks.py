"""A pass in blocks of calls, so that comparing reads files nearly in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracereplay.columns.tensors import Ints

__all__ = ["pieces"]


def pieces(blocks: Ints) -> Iterator[tuple[int, int, int]]:
    """Rows cut where the next block begins, as (block, start, stop).

    Args:
        blocks: of each row the number of its block (`columns.Calls.blocks`), ``int64 [rows]``, at least one row.
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(blocks)) + 1, [len(blocks)]])
    numbers = blocks[edges[:-1]]
    del blocks  # whoever takes piece after piece of many tables holds a few numbers of each
    yield from zip(numbers.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
