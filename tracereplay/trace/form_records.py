"""A step's record in two: its form, which repeats from step to step, and what is left; and the two as one again.

    record of version 1 ── part ──▶ FORM record, STEP record ── whole ──▶ the same record, to the byte

Records are plain data, as FORMAT.md describes them. What counts towards a content digest is the whole record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["ELSEWHERE", "NOWHERE", "Parted", "apart", "is_whole", "part", "whole"]

ELSEWHERE = -2  # the chunk of a value whose bytes an earlier step has; each step says where
NOWHERE = -1  # the chunk of a value without elements
_FORM_KEYS = ("values", "calls")
_STEP_KEYS = ("form", "chunk", "elsewhere")


class Parted(NamedTuple):
    """Both parts; the step does not say yet which FORM frame has its form."""

    form: dict[str, Any]
    step: dict[str, Any]


def is_whole(step: Mapping[str, Any]) -> bool:
    """Whether the contents of a STEP frame are in one piece, as in version 1, and do not name a form."""
    return "values" in step


def part(record: Mapping[str, Any], first: int) -> Parted:
    """A record of version 1 as a form and what is left of the step.

    Args:
        record: of a step; what it has in other places than writers put it is in them after `whole`, too.
        first: number of the step's first own chunk: how many stand before the STEP frame of the step before.
    """
    values, elsewhere = apart(record["values"], first)
    step = {
        "number": record["number"],
        "chunk": first,
        **({"elsewhere": elsewhere} if elsewhere else {}),
        "maps": record["maps"],
        "sampled": [list(column) for column in zip(*record["sampled"], strict=True)],
        **{k: v for k, v in record.items() if k not in ("number", "maps", "sampled", *_FORM_KEYS)},
    }
    return Parted({"values": values, "calls": record["calls"], "maps": len(record["maps"])}, step)


def apart(values: Sequence[Sequence[Any]], first: int) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Values as a form has them, and where the bytes of those are that an earlier step has: place, chunk, tensor,
    pieces, skip, strided."""
    found: list[tuple[Any, ...]] = []
    elsewhere: list[tuple[Any, ...]] = []
    for place, value in enumerate(values):
        chunk = value[6]
        if chunk >= first:
            found.append((*value[:6], chunk - first, *value[7:11]))
        elif chunk == NOWHERE:
            found.append(tuple(value[:11]))
        else:
            found.append((*value[:6], ELSEWHERE, 0, 1, 0, False))
            elsewhere.append((place, *value[6:11]))
    return found, elsewhere


def whole(form: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """The record of version 1 that the two are parts of.

    Raises:
        Any of `records.WRONG`: they are not.
    """
    first = step["chunk"]
    told = {place: rest for place, *rest in step.get("elsewhere", ())}
    values = []
    for place, value in enumerate(form["values"]):
        chunk = value[6]  # of the rest, only what is known is copied, which `part` did too
        if chunk >= 0:
            values.append([*value[:6], first + chunk, *value[7:11]])
        elif chunk == ELSEWHERE:
            values.append([*value[:6], *told.pop(place)])
        else:
            values.append(value[:11])
    if told or form["maps"] != len(step["maps"]):
        raise ValueError("a step that does not fit its form")
    kept = {k: v for k, v in step.items() if k not in ("number", "maps", "sampled", *_STEP_KEYS)}
    return {
        "number": step["number"],
        "maps": step["maps"],
        "values": values,
        "calls": form["calls"],
        "sampled": [list(row) for row in zip(*step["sampled"], strict=True)],
        **kept,
    }
