"""Names of operators for people: what repeats is said once, and where names differ nothing is cut.

Five layers' ``model.layers.N.input_layernorm`` are ``model.layers.{0..4}.input_layernorm``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tracereplay.report.clean import clean

__all__ = ["Group", "grouped", "listed"]

_DIGITS = 9  # of a number that may be a layer's
_Key: TypeAlias = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Names that differ in numbers only.

    Args:
        pattern: all of them in one: ``a.{0..4}.b``, fit to be shown.
        names: as they were given.
    """

    pattern: str
    names: tuple[str, ...]

    @property
    def words(self) -> str:
        """The pattern, and how many there are if that is more than one."""
        return self.pattern if len(self.names) == 1 else f"{self.pattern} ({len(self.names)})"


def grouped(names: Iterable[str]) -> list[Group]:
    """Names that differ in numbers only, as one; groups are in the order of their first names."""
    alike: dict[_Key, list[tuple[str, ...]]] = {}
    for name in dict.fromkeys(names):
        parts = tuple(name.split("."))
        alike.setdefault(tuple(None if _is_number(part) else part for part in parts), []).append(parts)
    return [group for members in alike.values() for group in _groups(members)]


def listed(names: Iterable[str], most: int | None = None) -> str:
    """The groups of some names in one line, the first ``most`` of them."""
    groups = grouped(names)
    shown = groups if most is None else groups[:most]
    left = sum(len(group.names) for group in groups[len(shown) :])
    return ", ".join(group.words for group in shown) + (f" and {left} more" if left else "")


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= _DIGITS and str(int(part)) == part


def _groups(members: Sequence[tuple[str, ...]]) -> list[Group]:
    """One group, or several where the numbers are not all combined with each other."""
    places = [i for i in range(len(members[0])) if len({parts[i] for parts in members}) > 1]
    sizes = [len({parts[i] for parts in members}) for i in places]
    if not places or len(members) == _product(sizes):
        return [_group(members, places)]
    by_first: dict[str, list[tuple[str, ...]]] = {}
    for parts in members:
        by_first.setdefault(parts[places[0]], []).append(parts)
    return [group for some in by_first.values() for group in _groups(some)]


def _group(members: Sequence[tuple[str, ...]], places: Sequence[int]) -> Group:
    shown = list(members[0])
    for place in places:
        shown[place] = _span({int(parts[place]) for parts in members})
    return Group(clean(".".join(shown)), tuple(".".join(parts) for parts in members))


def _span(numbers: set[int]) -> str:
    """``{0..4}`` or ``{0..2,5}``."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    words = (f"{low}" if low == high else f"{low}{'..' if high > low + 1 else ','}{high}" for low, high in runs)
    return f"{{{','.join(words)}}}"


def _product(sizes: Iterable[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
