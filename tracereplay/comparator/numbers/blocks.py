"""A pass in blocks of calls, so that comparing reads files nearly in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

from tracereplay.columns.tensors import Ints, edges

__all__ = ["pieces"]


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
