"""Which biases along the values' signs (leans) are a rounding convention of an engine, and which stand alone.

A cast that truncates leans by half an ulp towards zero. An engine whose conversions truncate does so wherever it
converts: against one that rounds to nearest, most operators that differ at all lean, each at all of its sites. A
fault leans where it is, and other operators do not. So a lean is taken for a *convention* only if

- nearly all tensors of its kind (the same output of the same operator class) lean the same way, and
- so does at least one other operator class of that dtype, and
- operator classes that lean are the majority of those that differ.

Either side may be the one that truncates, and both may, in different kernels: the direction has to be the same
within a kind only. TOLERANCES.md has what V0 and V1 show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tracereplay.comparator.numbers.metrics import BIAS_ROWS, Tally

__all__ = ["Group", "conventions"]

NEARLY_ALL = 0.75
CLASSES_AT_LEAST = 2


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that the same code computes: an output or input of an operator class, in one dtype."""

    operator: str
    side: str
    index: int
    dtype: str


def conventions(kinds: Mapping[Group, Sequence[Tally]]) -> frozenset[Group]:
    """The kinds whose lean along the values' signs is a convention; see the module.

    Args:
        kinds: the tensors of a pass in which every operator had golden inputs, so that leans are its own.
    """
    leaning = {kind for kind, tallies in kinds.items() if _lean_together(tallies)}
    found = set()
    for dtype in {kind.dtype for kind in leaning}:
        ours = {k.operator for k, tallies in kinds.items() if _output(k, dtype) and any(map(_differs, tallies))}
        lean = {kind.operator for kind in leaning if _output(kind, dtype)}
        if len(lean) >= CLASSES_AT_LEAST and 2 * len(lean) > len(ours):
            found |= {kind for kind in leaning if kind.dtype == dtype}
    return frozenset(found)


def _output(kind: Group, dtype: str) -> bool:
    return kind.side == "out" and kind.dtype == dtype


def _differs(tally: Tally) -> bool:
    """Whether enough rows differ to tell a lean from chance."""
    return tally.leans[2] >= BIAS_ROWS


def _lean_together(tallies: Sequence[Tally]) -> bool:
    """Whether nearly all lean the same way; one that is identical does not."""
    leans = [tally.sign_lean for tally in tallies if tally.rows >= BIAS_ROWS]
    most = max(sum(lean > 0 for lean in leans), sum(lean < 0 for lean in leans))
    return most > 0 and most >= NEARLY_ALL * len(leans)
