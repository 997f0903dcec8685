"""Delta debugging: finding a smallest set that suffices.

``ddmin`` of Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002), section 3: try
each of n parts alone, then all but each part, and halve the parts when neither helps. It ends with a set from
which no single member can be left out (1-minimal). Other sets may suffice too: the question is not monotone,
since two errors can cancel each other. It takes at most n^2 + 3 n questions, and about 2 log2 n if one member
suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

__all__ = ["OutOfBudget", "Smallest", "minimise"]

T = TypeVar("T")


class OutOfBudget(Exception):
    """Raised by the question when the budget is used up."""


@dataclass(frozen=True, slots=True)
class Smallest(Generic[T]):
    """The smallest set found, in the order given; ``proven`` if it is 1-minimal."""

    members: tuple[T, ...]
    proven: bool


def minimise(items: Sequence[T], restores: Callable[[Sequence[T]], bool]) -> Smallest[T]:
    """A 1-minimal subset of ``items`` that still ``restores``.

    Args:
        items: a set that suffices; likely members first.
        restores: the question; it may raise `OutOfBudget`, and then the smallest set so far is returned. It is
            not asked about the empty set, which is known not to suffice.
    """
    kept = list(items)
    try:
        parts = 2
        while len(kept) >= 2:
            smaller, parts = _narrow(kept, parts, restores)
            if smaller is None:
                break
            kept = smaller
    except OutOfBudget:
        return Smallest(tuple(kept), False)
    return Smallest(tuple(kept), True)


def _narrow(kept: list[T], parts: int, restores: Callable[[Sequence[T]], bool]) -> tuple[list[T] | None, int]:
    """A smaller set and the number of parts to cut it into; None if no member can be left out."""
    chunks = _cut(kept, parts)
    for chunk in chunks:
        if restores(chunk):
            return chunk, 2
    for chunk in chunks if parts > 2 else ():  # of two parts each is the other's complement
        rest = [item for item in kept if item not in chunk]
        if restores(rest):
            return rest, max(parts - 1, 2)
    if parts >= len(kept):
        return None, parts
    return kept, min(2 * parts, len(kept))


def _cut(items: list[T], parts: int) -> list[list[T]]:
    """``items`` in parts of nearly equal size."""
    bounds = [len(items) * i // parts for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]
