"""Tensor parallelism undone and redone: the ranks' pieces of a tensor joined, the whole cut for one rank.

Fused layers (q|k|v, gate|up) are cut part by part, so that a rank's tensor is not a slice of the whole: the
whole is all ranks' q, then all ranks' k, then all ranks' v.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tracereplay.event import Layout

__all__ = ["cut", "join", "part_sizes"]

Array = npt.NDArray[Any]


def part_sizes(layout: Layout, size: int) -> list[int]:
    """Sizes along the cut dimension of each fused part of a rank's tensor of ``size`` there.

    Raises:
        ValueError: ``size`` cannot be divided in the layout's proportions.
    """
    unit, rest = divmod(size, sum(layout.parts))
    if rest:
        raise ValueError(f"{size} elements cannot be divided in the proportions {layout.parts}")
    return [unit * part for part in layout.parts]


def join(pieces: Sequence[Array], layout: Layout) -> Array:
    """The whole tensor from all ranks' pieces, in order of rank."""
    sizes = part_sizes(layout, pieces[0].shape[layout.dim])
    offsets = np.cumsum([0, *sizes])
    whole = [
        _along(piece, layout.dim, offsets[i], offsets[i + 1])
        for i, copies in enumerate(layout.copies)
        for piece in pieces[::copies]
    ]
    return np.concatenate(whole, axis=layout.dim)


def cut(whole: Array, layout: Layout, rank: int, world: int) -> Array:
    """The piece of ``whole`` that ``rank`` of ``world`` holds; the inverse of `join`."""
    # One unit of each part on each rank that holds its own piece, none on a rank that holds a copy.
    totals = [part * (world // copies) for part, copies in zip(layout.parts, layout.copies, strict=True)]
    unit, rest = divmod(whole.shape[layout.dim], sum(totals))
    if rest:
        raise ValueError(f"{whole.shape} cannot be cut for {world} ranks in the proportions {layout.parts}")
    pieces, start = [], 0
    for part, copies, total in zip(layout.parts, layout.copies, totals, strict=True):
        first = start + (rank // copies) * part * unit
        pieces.append(_along(whole, layout.dim, first, first + part * unit))
        start += total * unit
    return np.concatenate(pieces, axis=layout.dim)


def _along(array: Array, dim: int, start: int, stop: int) -> Array:
    index = [slice(None)] * array.ndim
    index[dim] = slice(start, stop)
    return array[tuple(index)]
