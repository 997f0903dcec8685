"""A pass in blocks of calls, so that comparing reads files nearly in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from tracereplay.columns.tensors import Ints

__all__ = ["pieces"]


def pieces(blocks: Ints) -> Iterator[tuple[int, int, int]]:
    """Rows cut where the next block begins, as (block, start, stop).

    Args:
        blocks: of each row the number of its block (`columns.Calls.blocks`), ``int64 [rows]``, at least one row.
    """
    edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
    for start, stop in pairwise(edges):
        yield int(blocks[start]), start, stop
