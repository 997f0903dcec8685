"""Kinds of steps: what all ranks of a pass do in a step, known once for all steps that are alike.

A kind is made of the forms of the ranks' records (`trace.forms`), in the candidate's naming. Its tensors have no
bytes of their own: a `Cursor` says of which step they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from tracereplay.columns.tensors import Ints, TableKey, Tensor
from tracereplay.dtypes import nbytes
from tracereplay.event import Call, RowMap, Site, Step, Value
from tracereplay.sitemap import SiteMap
from tracereplay.trace.forms import Form, StepRecord
from tracereplay.trace.records import Located

__all__ = ["BLOCK", "Cursor", "FormValue", "Kind", "KindCall", "Occurrence", "describe"]

BLOCK = 12 << 20  # bytes of tensors that are compared at a time


@dataclass(slots=True)
class Cursor:
    """Reads the tensors of one step of a pass.

    Args:
        read: the bytes of a value, given the step's place in the pass, the rank, the value's place in the rank's
            form, and where it lies.
        step: which step.
    """

    read: Callable[[int, int, int, Located], bytes]
    step: int = 0

    def load(self, rank: int, place: int, located: Located) -> bytes:
        return self.read(self.step, rank, place, located)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormValue(Value):
    """A value of whichever step the cursor is at.

    Args:
        rank: place of the rank among the pass's.
        place: of the value in the rank's form.
        located: where it lies, as the form says.
    """

    rank: int
    place: int
    located: Located


class KindCall(NamedTuple):
    """A call; see `event.Call`. ``rows_in`` and ``rows_out`` are places among the first rank's row maps."""

    site: str
    number: int
    rows_in: int
    rows_out: int
    fed: tuple[int, ...] | None


class Occurrence(NamedTuple):
    """A tensor of a table in each step of a kind.

    Args:
        call: place of its call in the step.
        rows: place of its row map.
        lane: see `tables.LANE`.
        tensor: to be loaded where the cursor is.
    """

    call: int
    rows: int
    lane: int
    tensor: Tensor


@dataclass(eq=False)
class Kind:
    """What steps of a pass have in common.

    Args:
        number: counts the kinds of a pass.
        forms: of each rank; None of a rank that has no such step.
        calls: in order of execution.
        tensors: by table, in order of the calls.
        broken: tables whose rows cannot be told, and why.
        size: bytes of the tensors that a step stores itself.
        block: for each call the block of the step's, of at most `BLOCK` bytes, that it is in; ``int64 [calls]``.
    """

    number: int
    forms: tuple[Form | None, ...]
    calls: tuple[KindCall, ...] = ()
    tensors: dict[TableKey, list[Occurrence]] = field(default_factory=dict)
    broken: dict[TableKey, str] = field(default_factory=dict)
    size: int = 0
    block: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def describe(
    kind: Kind, records: Sequence[StepRecord | None], cursor: Cursor, sites: Mapping[str, Site],
    site_map: SiteMap | None, lanes: Callable[[Sequence[Call]], Sequence[int]],
) -> None:  # fmt: skip
    """Says of a kind what its steps do.

    Args:
        kind: of which only the forms are known.
        records: of a step of it, of all ranks; the first is there.
        cursor: at this step.
        sites: of the pass, in the candidate's naming.
        site_map: translates into it.
        lanes: of calls.
    """
    steps = [None if record is None else _template(record, rank, cursor) for rank, record in enumerate(records)]
    if site_map is not None:
        steps = [None if step is None else site_map.step(step) for step in steps]
    first = steps[0]
    assert first is not None
    maps = {id(rows): place for place, rows in enumerate(_maps(records))}
    elsewhere = [{(c.site, c.number): c for c in step.calls} if step else {} for step in steps[1:]]
    made: list[KindCall] = []
    for call, lane in zip(first.calls, lanes(first.calls), strict=True):
        calls = [call, *(c for found in elsewhere if (c := found.get((call.site, call.number))))]
        whole = len(calls) == len(steps)
        for side, index, _ in call.values():
            key = TableKey(call.site, side, index)
            values = tuple(v for c in calls if (v := c.value(side, index)) is not None)
            rows = maps[id(call.rows_of(side))]
            site = sites.get(key.site)
            layout = None if site is None else site.layouts.get(f"{key.side}{key.index}")
            if layout is not None and not (whole and len(values) == len(calls)):
                kind.broken[key] = "a rank's part is missing"
                continue
            tensor = Tensor(values if layout else values[:1], layout if len(values) > 1 else None, 0)
            kind.tensors.setdefault(key, []).append(Occurrence(len(made), rows, lane, tensor))
        made.append(KindCall(call.site, call.number, maps[id(call.rows_in)], maps[id(call.rows_out)], call.fed))
    kind.calls = tuple(made)
    kind.block, kind.size = _blocks(kind)


def _maps(records: Sequence[StepRecord | None]) -> Sequence[RowMap]:
    assert records[0] is not None
    return records[0].maps


def _template(record: StepRecord, rank: int, cursor: Cursor) -> Step:
    """The step with values that are read where the cursor is."""
    values = [
        FormValue(
            v.dtype, v.shape, v.strides, partial(cursor.load, rank, place, v), rank=rank, place=place, located=v
        )
        for place, v in enumerate(record.form.values)
    ]
    calls = tuple(
        Call(
            call.site, call.number, tuple(values[v] for v in call.inputs), tuple(values[v] for v in call.outputs),
            record.maps[call.rows_in], record.maps[call.rows_out], {i: values[v] for i, v in call.written},
            call.fed,
        )
        for call in record.form.calls
    )  # fmt: skip
    return Step(record.number, record.rows, calls, ())


def _blocks(kind: Kind) -> tuple[Ints, int]:
    """For each call its block in the step, and the bytes of all of them."""
    sizes = np.zeros(len(kind.calls), np.int64)
    seen: set[tuple[int, int, int] | None] = set()
    for occurrences in kind.tensors.values():
        for occurrence in occurrences:
            for value in occurrence.tensor.values:
                place = None  # of what is put together of several
                if isinstance(value, FormValue):
                    place = value.rank, value.located.chunk, value.located.tensor
                if place not in seen:
                    sizes[occurrence.call] += nbytes(value.dtype, value.shape)
                if place is not None:
                    seen.add(place)
    total = np.cumsum(sizes)
    return (total - sizes) // BLOCK, int(total[-1]) if len(total) else 0
