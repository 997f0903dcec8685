"""A pass in blocks of calls, so that comparing reads files nearly in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from tracereplay.comparator.numbers.tables import Ints, PassIndex

__all__ = ["block_numbers", "pieces"]

BLOCK = 32 << 20  # bytes of golden tensors; half of what a segment reader keeps at hand


def block_numbers(index: PassIndex) -> Ints:
    """For each call of a pass the number of its block, ``int64 [calls]``."""
    size = np.zeros(len(index.calls), np.int64)
    for table in index.tables.values():
        if len(table.ids):
            size += np.bincount(table.order, minlength=len(size)) * table.tensors[0].width * 4
    blocks: Ints = np.cumsum(size) // BLOCK
    return blocks


def pieces(blocks: Ints) -> Iterator[tuple[int, int, int]]:
    """Rows cut where the next block begins, as (block, start, stop).

    Args:
        blocks: of each row the number of its block, ``int64 [rows]``, at least one row.
    """
    edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
    for start, stop in pairwise(edges):
        yield int(blocks[start]), start, stop
