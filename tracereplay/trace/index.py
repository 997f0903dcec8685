"""The index: where a segment's frames are, so that one call of a large trace is read without the rest.

An INDEX frame lists the frames since the one before it, by their lengths. The END frame says where INDEX frames
are, and which steps and chunks they list; a reader reads those that it needs. Places are columns of numbers.
(In version 1, INDEX frames are a chain from the last to the first, and all of them are read.)
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tracereplay.errors import DamagedTrace
from tracereplay.storage.files import File
from tracereplay.trace.frames import HEADER_SIZE, MAGIC, Tag, fetch, scan
from tracereplay.trace.index_record import Columns, Extent, read_columns, read_extents
from tracereplay.trace.limits import Limits
from tracereplay.trace.plain import decode_record, unpack

__all__ = ["Index", "Places", "chained", "indexed", "scanned"]

BLOCKS = 4  # INDEX frames whose contents are kept; some 2 MB each
_LARGEST = (1 << 63) - 1  # that a column holds; no chunk is that large

Table = npt.NDArray[np.int64]  # [frames, columns]
Tables = Mapping[Tag, Table]


class Places(Sequence[tuple[int, ...]]):
    """Where the frames of one kind are, in order: tuples of what the columns are.

    Args:
        starts: how many frames the blocks before each block have, and at last how many there are.
        table: the nth block, int64 ``[frames, columns]``.
    """

    def __init__(self, starts: Sequence[int], table: Callable[[int], Table]) -> None:
        self.starts, self.table = starts, table

    def __len__(self) -> int:
        return self.starts[-1]

    def block(self, place: int) -> int:
        """Which block has the frame at ``place``."""
        return bisect_right(self.starts, place) - 1

    @overload
    def __getitem__(self, place: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, place: slice) -> list[tuple[int, ...]]: ...
    def __getitem__(self, place: int | slice) -> tuple[int, ...] | list[tuple[int, ...]]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        block = self.block(place := place % len(self))
        return tuple(self.table(block)[place - self.starts[block]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for block in range(len(self.starts) - 1):
            yield from map(tuple, self.table(block).tolist())


class Index:
    """All of a segment's frames, in order.

    Args:
        sites: offset and length of SITES frames.
        counts: for each block, how many other frames it has of each kind.
        tables: reads a block: of each kind, its frames.
        firsts: for each block, the number of its first step.
        at: where the last whole frame ends, bytes; 0 if the index was read and not found by a scan.

    The public attributes: ``sites``, ``forms`` (offset and length), ``chunks`` (offset, length and decoded size)
    and ``steps`` (number of the step, offset and length).
    """

    def __init__(
        self, sites: Sequence[tuple[int, int]], counts: Sequence[Mapping[Tag, int]],
        tables: Callable[[int], Tables], firsts: Sequence[int] = (), at: int = 0,
    ) -> None:  # fmt: skip
        self.sites = sites
        self.at = at
        self._tables = tables
        self._firsts = firsts
        self.forms, self.chunks, self.steps = (
            self._places(kind, counts) for kind in (Tag.FORM, Tag.DATA, Tag.STEP)
        )

    def _places(self, kind: Tag, counts: Sequence[Mapping[Tag, int]]) -> Places:
        starts = list(accumulate((count[kind] for count in counts), initial=0))
        return Places(starts, lambda block: self._tables(block)[kind])

    def first_chunk(self, place: int) -> int:
        """How many chunks stand before the STEP frame of the step before the one at ``place``."""
        if not place:
            return 0
        block = self.steps.block(place - 1)
        offset = self.steps[place - 1][1]
        return self.chunks.starts[block] + int(np.searchsorted(self.chunks.table(block)[:, 0], offset))

    def place_of(self, number: int) -> int | None:
        """Where the step of that number is; None: there is none."""
        likely = bisect_right(self._firsts, number) - 1
        blocks = range(len(self.steps.starts) - 1)
        for block in (*(b for b in blocks if b == likely), *(b for b in blocks if b != likely)):
            found = np.flatnonzero(self.steps.table(block)[:, 0] == number)
            if len(found):
                return self.steps.starts[block] + int(found[0])
        return None


def indexed(file: File, end: int, listed: Mapping[str, Any], limits: Limits) -> Index:
    """The index of a closed segment, whose INDEX frames are read when they are asked for.

    Args:
        file: the segment.
        end: where its END frame begins.
        listed: the END frame's record.
        limits: what reading them may cost.

    Raises:
        DamagedTrace: they cannot be where it says; so do they later, if they do not say what it says.
    """
    try:
        extents, sites = read_extents(listed)
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedTrace(f"{file.name} has an end mark that cannot be read: {error!r}.") from error
    for one, other in pairwise([*extents, None]):
        assert one is not None
        follows = end if other is None else other.start
        if not len(MAGIC) <= one.start <= one.offset <= one.offset + HEADER_SIZE + one.length <= end <= file.size:
            raise DamagedTrace(f"{file.name} is damaged: its index cannot be at byte {one.offset}.")
        if one.start > follows:
            raise DamagedTrace(f"{file.name} is damaged: its index leads from byte {one.start} to byte {follows}.")
    kept: OrderedDict[int, Tables] = OrderedDict()

    def tables(block: int) -> Tables:
        found = kept.get(block)
        if found is None:
            stop = min(extents[block].offset, extents[block + 1].start if block + 1 < len(extents) else end)
            kept[block] = found = _tables(file, extents[block], stop, limits)
            while len(kept) > BLOCKS:
                kept.popitem(last=False)
        return found

    return Index(sites, [extent.counts for extent in extents], tables, [extent.first for extent in extents])


def _tables(file: File, extent: Extent, stop: int, limits: Limits) -> Tables:
    """The frames that an INDEX frame lists: they follow each other from where it says, up to ``stop`` at most."""
    frame, payload = fetch(file, extent.offset, extent.length, Tag.INDEX)
    limits.again(frame.size)
    record = unpack(decode_record(payload, frame.codec, frame.size, file.name), file.name)
    try:
        columns = read_columns(record)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedTrace(f"{file.name} has an index that cannot be read: {error!r}.") from error
    ends = extent.start + np.cumsum(columns.lengths + HEADER_SIZE)
    if len(ends) and int(ends[-1]) > stop:
        raise DamagedTrace(f"{file.name} is damaged: its index lists frames up to byte {ends[-1]}.")
    found = _by_kind(columns, ends - columns.lengths - HEADER_SIZE)
    if {kind: len(table) for kind, table in found.items()} != extent.counts:
        raise DamagedTrace(f"{file.name} is damaged: its end mark does not describe its index at {extent.offset}.")
    limits.chunks(extent.offset, int(found[Tag.DATA][:, 2].sum()))
    return found


def _by_kind(columns: Columns, offsets: Table) -> dict[Tag, Table]:
    found = {}
    for kind in (Tag.FORM, Tag.DATA, Tag.STEP):
        (which,) = np.nonzero(columns.kinds == kind)
        places = [offsets[which], columns.lengths[which]]
        if kind == Tag.DATA:
            places.append(columns.sizes[which])
        if kind == Tag.STEP:
            places.insert(0, columns.numbers)
        found[kind] = np.stack(places, axis=1)
    return found


def chained(file: File, last: int, limits: Limits) -> Index:
    """The index of a closed segment of version 1, read from its INDEX frames.

    Args:
        file: the segment.
        last: where the last INDEX frame begins.
        limits: what reading it may cost.

    Raises:
        DamagedTrace: the chain is broken, or leads forward, or frames are named twice.
    """
    chain: list[tuple[Table, Table, Table]] = []
    before = file.size
    while last:
        if not 0 < last < before:
            raise DamagedTrace(f"{file.name} is damaged: its index leads from byte {before} to byte {last}.")
        frame, payload = fetch(file, last, 1 << 16, Tag.INDEX)
        if frame.end > before:
            raise DamagedTrace(f"{file.name} is damaged: frames of its index overlap at byte {last}.")
        before = last
        limits.record(last, frame.size)
        record = unpack(decode_record(payload, frame.codec, frame.size, file.name), file.name)
        try:
            chain.append((_table(record["sites"], 2), _table(record["chunks"], 3), _table(record["steps"], 3)))
            last = int(record["previous"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DamagedTrace(f"{file.name} has an index that cannot be read: {error!r}.") from error
    chain.reverse()
    sites, chunks, steps = (
        np.concatenate([np.empty((0, width), np.int64), *(part[i] for part in chain)])
        for i, width in enumerate((2, 3, 3))
    )
    _check_places(file, {"sites": sites, "chunks": chunks[:, :2], "steps": steps[:, 1:]})
    limits.chunks(0, sum(chunks[:, 2].tolist()))
    return _of_one_block(sites, {Tag.FORM: _table([], 2), Tag.DATA: chunks, Tag.STEP: steps})


def _table(rows: Any, width: int) -> Table:
    """Rows of whole numbers, of which only the first ``width`` are known."""
    return np.array([[int(n) for n in row[:width]] for row in rows], np.int64).reshape(-1, width)


def _of_one_block(sites: Table, tables: Tables, at: int = 0) -> Index:
    listed = [(offset, length) for offset, length in sites.tolist()]
    return Index(listed, [{kind: len(table) for kind, table in tables.items()}], lambda block: tables, at=at)


def _check_places(file: File, places: Mapping[str, Table]) -> None:
    """Raises DamagedTrace unless the frames of each kind stand one after the other in the file."""
    for kind, frames in places.items():
        offsets, lengths = frames[:, 0], frames[:, 1]
        inside = (lengths >= 0) & (lengths <= file.size) & (offsets >= 0) & (offsets <= file.size)
        ends = np.where(inside, offsets + HEADER_SIZE + lengths, file.size + 1)
        wrong = ~inside | (ends > file.size) | (offsets < np.concatenate([[0], ends[:-1]]))
        if wrong.any():
            at = offsets[np.argmax(wrong)]
            raise DamagedTrace(f"{file.name} is damaged: its index lists {kind} out of order at byte {at}.")


def scanned(file: File, limits: Limits) -> Index:
    """The index of a segment that was cut off, found from frame to frame.

    Numbers of steps are their places, since their records are not read.
    """
    found = {kind: array("q") for kind in (Tag.SITES, Tag.FORM, Tag.DATA, Tag.STEP)}
    at = 0
    for frame in scan(file):
        if frame.kind == Tag.STEP:
            found[Tag.STEP].append(len(found[Tag.STEP]) // 3)
        if frame.kind in found:
            found[Tag(frame.kind)].extend((frame.offset, frame.length))
        if frame.kind == Tag.DATA:
            found[Tag.DATA].append(min(frame.size, _LARGEST))
        at = frame.end
    tables = {
        kind: np.array(numbers, np.int64).reshape(-1, 2 + (kind in (Tag.DATA, Tag.STEP)))
        for kind, numbers in found.items()
    }
    limits.chunks(0, sum(tables[Tag.DATA][:, 2].tolist()))
    return _of_one_block(tables.pop(Tag.SITES), tables, at)
