"""The index: where a segment's frames are, so that one call of a large trace is read without the rest.

INDEX frames form a chain from the last to the first. Each has the places of the frames since the one before it, so
that the writer need not remember a long recording. In memory the places are columns of numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tracereplay.errors import DamagedTrace
from tracereplay.storage.files import File
from tracereplay.trace.frames import HEADER_SIZE, Tag, fetch, scan
from tracereplay.trace.limits import Limits
from tracereplay.trace.plain import decode_record, unpack

__all__ = ["Index", "IndexBuilder", "Places", "indexed", "scanned"]

EVERY = 4096  # chunks and steps; an INDEX frame of some 50 kB
_ENTRY = 32  # bytes that an entry takes at most
_LARGEST = (1 << 63) - 1  # that a column holds; no chunk is that large

Table = npt.NDArray[np.int64]  # [frames, columns]


@dataclass(slots=True)
class IndexBuilder:
    """What the next INDEX frame will say.

    Args:
        sites: offset and length of SITES frames.
        chunks: offset, length and decoded size of DATA frames.
        steps: number of the step, offset and length of its STEP frame.
        last: where the INDEX frame before begins; 0 if there is none.
        before: how many chunks and steps the INDEX frames before have.
    """

    sites: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[tuple[int, int, int]] = field(default_factory=list)
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    last: int = 0
    before: tuple[int, int] = (0, 0)

    @property
    def all_chunks(self) -> int:
        """How many chunks there are in the segment."""
        return self.before[0] + len(self.chunks)

    @property
    def all_steps(self) -> int:
        """How many steps there are in the segment."""
        return self.before[1] + len(self.steps)

    def due(self) -> bool:
        """Whether there is enough for a frame."""
        return len(self.chunks) + len(self.steps) >= EVERY

    def room(self) -> int:
        """Bytes that the frame would take, at most."""
        return _ENTRY * (len(self.sites) + len(self.chunks) + len(self.steps))

    def keep_chunks(self, count: int) -> None:
        """Forgets the chunks after the first ``count`` of the segment."""
        del self.chunks[count - self.before[0] :]

    def take(self) -> dict[str, Any]:
        """The record, after which the builder is empty."""
        record = {"previous": self.last, "sites": self.sites, "chunks": self.chunks, "steps": self.steps}
        self.before = (self.all_chunks, self.all_steps)
        self.sites, self.chunks, self.steps = [], [], []
        return record


class Places(Sequence[tuple[int, ...]]):
    """Where the frames of one kind are, in order: tuples of what the columns are.

    Args:
        table: int64 ``[frames, columns]``.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, place: slice) -> Places: ...
    def __getitem__(self, place: int | slice) -> tuple[int, ...] | Places:
        if isinstance(place, slice):
            return Places(self.table[place])
        return tuple(self.table[place].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return map(tuple, self.table.tolist())


@dataclass(frozen=True, slots=True)
class Index:
    """All of a segment's frames, in order.

    Args:
        sites: offset and length of SITES frames.
        chunks: offset, length and decoded size of DATA frames.
        steps: number of the step, offset and length of its STEP frame.
        at: where the last whole frame ends, bytes; 0 if the index was read and not found by a scan.
    """

    sites: Places
    chunks: Places
    steps: Places
    at: int = 0

    def chunks_before(self, offset: int) -> int:
        """How many chunks stand before byte ``offset``."""
        return int(np.searchsorted(self.chunks.table[:, 0], offset))


def indexed(file: File, last: int, limits: Limits) -> Index:
    """The index of a closed segment, read from its INDEX frames.

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
    found = Index(Places(sites), Places(chunks), Places(steps))
    _check_places(file, found)
    return found


def _table(rows: Any, width: int) -> Table:
    """Rows of whole numbers, of which only the first ``width`` are known."""
    return np.array([[int(n) for n in row[:width]] for row in rows], np.int64).reshape(-1, width)


def _check_places(file: File, found: Index) -> None:
    """Raises DamagedTrace unless the frames of each kind stand one after the other in the file."""
    places = {"sites": found.sites.table, "chunks": found.chunks.table[:, :2], "steps": found.steps.table[:, 1:]}
    for kind, frames in places.items():
        offsets, lengths = frames[:, 0], frames[:, 1]
        inside = (lengths >= 0) & (lengths <= file.size) & (offsets >= 0) & (offsets <= file.size)
        ends = np.where(inside, offsets + HEADER_SIZE + lengths, file.size + 1)
        wrong = ~inside | (ends > file.size) | (offsets < np.concatenate([[0], ends[:-1]]))
        if wrong.any():
            at = offsets[np.argmax(wrong)]
            raise DamagedTrace(f"{file.name} is damaged: its index lists {kind} out of order at byte {at}.")


def scanned(file: File) -> Index:
    """The index of a segment that was cut off, found from frame to frame.

    Numbers of steps are their places, since their records are not read.
    """
    sites, chunks, steps = array("q"), array("q"), array("q")
    at = 0
    for frame in scan(file):
        if frame.kind == Tag.DATA:
            chunks.extend((frame.offset, frame.length, min(frame.size, _LARGEST)))
        elif frame.kind == Tag.STEP:
            steps.extend((len(steps) // 3, frame.offset, frame.length))
        elif frame.kind == Tag.SITES:
            sites.extend((frame.offset, frame.length))
        at = frame.end
    return Index(_places(sites, 2), _places(chunks, 3), _places(steps, 3), at)


def _places(numbers: array[int], width: int) -> Places:
    return Places(np.array(numbers, np.int64).reshape(-1, width))
