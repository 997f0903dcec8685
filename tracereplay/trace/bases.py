"""Which bytes of a base trace a candidate's tensors are stored as their difference from: row by row.

    base's steps ──rows──▶ in which of its steps each row is (16 bytes a row: all that grows with the base)
    a candidate's step ──▶ its new tensors' rows ──▶ the base's calls for them ──▶ spans, as long as they can be

A row's counterpart is the row of the same (request, sequence, position) of the same operator's input or output.
Both may have been in batches of other rows; `Part` says where operators are named, joined or cut otherwise. A
wrong counterpart costs space and nothing else: the difference is undone with the same bytes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracereplay.dtypes import itemsize, nbytes
from tracereplay.event import Call, RowMap, Site, Step, make_rows
from tracereplay.trace.dedup import PIECE, contiguous
from tracereplay.trace.difference import Span, Spans
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.records import Located, located_of

__all__ = ["Counterparts", "Part", "PartsOf", "RowBases", "by_name"]

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.bytes_]

_STEPS = 32  # of the base that are kept as they were read


@dataclass(frozen=True, slots=True)
class Part:
    """Where the base has a row of the candidate's, or a part of it.

    Args:
        site, side, index: of the base's value; the side is ``in``, ``out`` or ``written``.
        first, count: the numbers of its row that are meant; a count of None: the whole row.
    """

    site: str
    side: str
    index: int
    first: int = 0
    count: int | None = None


# Of a value of the candidate's (site, side, index, numbers in a row): the parts of which the base has its rows.
PartsOf = Callable[[str, str, int, int], Sequence[Part]]
# Of the base's and the candidate's sites.
Counterparts = Callable[[Mapping[str, Site], Mapping[str, Site]], PartsOf]


def by_name(base: Mapping[str, Site], candidate: Mapping[str, Site]) -> PartsOf:
    """Operators of the same name are the same."""
    return lambda site, side, index, _: [Part(site, side, index)]


@dataclass(slots=True)
class _Wanted:
    """A value of the candidate's, and what was found of its rows.

    Args:
        located: of the value.
        number: which of its site's calls it is of.
        rows: keys of its rows; the tensor may have more, which are padding.
        size: bytes of a row.
        parts: of the row.
        found: ``int64 [rows, parts, 4]``: bytes, chunk, tensor, first byte; all -1: unknown.
    """

    located: Located
    number: int
    rows: Keys
    size: int
    parts: Sequence[Part]
    found: Ints


class RowBases:
    """Finds what a segment's tensors may be stored as their difference from; see `rewrite.Bases`.

    Args:
        base: the base's segment.
        name: its file name.
        parts: where the base has what the candidate computes.
    """

    def __init__(self, base: SegmentReader, name: str, parts: PartsOf) -> None:
        self._base, self._name, self._parts = base, name, parts
        self._rows = _StepOfRow(base)
        self._steps: OrderedDict[int, dict[tuple[str, int], Call]] = OrderedDict()

    def __call__(self, step: Step, first_chunk: int) -> Mapping[tuple[int, int], Spans]:
        """By chunk and tensor, of the tensors that the step has in chunks from ``first_chunk`` on."""
        wanted = self._wanted(step, first_chunk)
        where = {id(one.rows): self._rows.find(one.rows) for one in wanted}
        for place in sorted({int(p) for places in where.values() for p in places if p >= 0}):
            calls, matches = self._calls(place), _Matches()
            for one in wanted:
                for number, part in enumerate(one.parts):
                    call = calls.get((part.site, one.number))
                    if call is not None:
                        _fill(one, number, part, call, matches)
        return {key: spans for one in wanted for key, spans in self._spans(one)}

    def _wanted(self, step: Step, first_chunk: int) -> list[_Wanted]:
        keys: dict[int, Keys] = {}
        found: dict[tuple[int, int], _Wanted] = {}
        for call in step.calls:
            for side, index, value in call.values():
                located, rows = located_of(value), call.rows_of(side)
                place = located.chunk, located.tensor
                if located.chunk < first_chunk or located.strided or place in found:
                    continue
                if not len(rows) or not value.shape or value.shape[0] < len(rows):
                    continue
                size = nbytes(value.dtype, value.shape[1:])
                parts = self._parts(call.site, side, index, size // itemsize(value.dtype))
                if not size or not parts:
                    continue
                if id(rows) not in keys:
                    keys[id(rows)] = _keys(rows)
                unknown = np.full((len(rows), len(parts), 4), -1, np.int64)
                found[place] = _Wanted(located, call.number, keys[id(rows)], size, parts, unknown)
        return list(found.values())

    def _calls(self, place: int) -> dict[tuple[str, int], Call]:
        """The calls of a step of the base, by site and number."""
        if place not in self._steps:
            self._steps[place] = {(call.site, call.number): call for call in self._base.step(place).calls}
            if len(self._steps) > _STEPS:
                self._steps.popitem(last=False)
        self._steps.move_to_end(place)
        return self._steps[place]

    def _spans(self, one: _Wanted) -> Iterator[tuple[tuple[int, int], Spans]]:
        """Of each stored tensor of the value (a large one is cut into several); nothing where no row was found."""
        known = (one.found[:, :, 1] >= 0).all(1) & (one.found[:, :, 0].sum(1) == one.size)
        if not known.any():
            return
        flat = np.where(known[:, None, None], one.found, -1)
        flat[~known, 0, 0] = one.size
        padding = nbytes(one.located.dtype, one.located.shape) - one.size * len(known)
        flat = np.concatenate([flat.reshape(-1, 4), [[padding, -1, -1, -1]]])
        spans = _merged(flat[flat[:, 0] > 0], self._name)
        if one.located.pieces == 1:
            yield (one.located.chunk, one.located.tensor), spans
            return
        for number, part in enumerate(_cut(spans, PIECE)):
            yield (one.located.chunk + number, one.located.tensor * (number == 0)), part


def _fill(one: _Wanted, number: int, part: Part, call: Call, matches: _Matches) -> None:
    """Notes where the base has a part of the rows that a call of its has."""
    value, rows = call.value(part.side, part.index), call.rows_of(part.side)
    if value is None or value.dtype != one.located.dtype or not value.shape or value.shape[0] < len(rows):
        return
    located, row = located_of(value), math.prod(value.shape[1:])
    if located.chunk < 0 or (located.strided and not contiguous(value.shape[1:], value.strides[1:])):
        return
    count = row - part.first if part.count is None else part.count
    if not 0 < count <= row - part.first:
        return
    mine, theirs = matches(one.rows, rows)
    width, apart = itemsize(value.dtype), value.strides[0] if located.strided else row
    begin, size = located.skip + (theirs * apart + part.first) * width, count * width
    piece = begin // PIECE if located.pieces > 1 else np.zeros_like(begin)
    first = begin - piece * PIECE
    found = np.stack(
        [np.full_like(begin, size), located.chunk + piece, np.where(piece, 0, located.tensor), first], 1
    )
    whole = (first + size <= PIECE) | (located.pieces == 1)  # a row that lies in two pieces is left unknown
    one.found[mine[whole], number] = found[whole]


def _merged(flat: Ints, name: str) -> list[Span]:
    """Spans of ``[spans, 4]`` (see `_Wanted.found`), those that follow each other joined."""
    sizes, chunk, tensor, first = flat.T
    follows = (first[1:] == first[:-1] + sizes[:-1]) | (chunk[1:] < 0)
    starts = np.flatnonzero(
        np.concatenate([[True], ~(follows & (chunk[1:] == chunk[:-1]) & (tensor[1:] == tensor[:-1]))])
    )
    joined = zip(np.add.reduceat(sizes, starts).tolist(), flat[starts].tolist(), strict=True)
    return [Span(size) if c < 0 else Span(size, name, c, t, f) for size, (_, c, t, f) in joined]


def _cut(spans: Spans, size: int) -> Iterator[Spans]:
    """The spans for each ``size`` bytes in turn."""
    part: list[Span] = []
    left = size
    for span in spans:
        while span.size > left:
            yield [*part, span._replace(size=left)]
            span = span._replace(size=span.size - left, first=span.first + left)
            part, left = [], size
        part.append(span)
        left -= span.size
    if part:
        yield part


class _Matches:
    """Which rows of two calls are the same; calls of a step mostly have the same rows."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], tuple[Ints, Ints]] = {}

    def __call__(self, keys: Keys, rows: RowMap) -> tuple[Ints, Ints]:
        """Of the rows that ``keys`` and ``rows`` both have, the numbers in either."""
        pair = id(keys), id(rows)
        if pair not in self._found:
            others = _keys(rows)
            order = np.argsort(others, kind="stable")
            at = _find(others[order], keys)
            mine = np.flatnonzero(at >= 0)
            self._found[pair] = mine, order[at[mine]]
        return self._found[pair]


class _StepOfRow:
    """In which step of a segment a row is, the first if it is in several."""

    def __init__(self, segment: SegmentReader) -> None:
        keys = [_keys(segment.record(place).rows) for place in range(len(segment))]
        places = np.repeat(np.arange(len(keys), dtype=np.int32), [len(k) for k in keys])
        self._keys, first = np.unique(np.concatenate([_keys(make_rows([])), *keys]), return_index=True)
        self._places = places[first]

    def find(self, keys: Keys) -> Ints:
        """Places of the steps, -1 where there is none."""
        at = _find(self._keys, keys)
        return np.where(at >= 0, self._places[at], -1) if len(self._places) else at


def _find(ordered: Keys, keys: Keys) -> Ints:
    """Where the keys are in ``ordered``, -1 where they are not."""
    if not len(ordered):
        return np.full(len(keys), -1, np.int64)
    at = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.where(ordered[at] == keys, at, -1)


def _keys(rows: RowMap) -> Keys:
    """A row map as one text a row, which numpy can sort: ``S12 [rows]``."""
    return np.ascontiguousarray(rows, "<i4").view("S12").reshape(-1)
