"""The record of an INDEX frame, and what the END frame says of it: written and read one under the other.

INDEX   {"kinds": bytes, "lengths": bytes, "sizes": bytes, "numbers": bytes}, one number for each frame
END     {"indexes": [[offset, length, start, forms, chunks, steps, first], ...], "sites": [[offset, length]]}
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tracereplay.errors import DamagedTrace
from tracereplay.trace.frames import HEADER_SIZE, MAGIC, Tag
from tracereplay.trace.plain import as_place

__all__ = ["Columns", "Extent", "IndexBuilder", "read_columns", "read_extents"]

EVERY = 1 << 16  # frames that an INDEX frame lists; some 200 kB as stored
_FRAME = 9  # bytes that a frame takes in a record, and a step 8 more
_EXTENT = 80  # bytes that an INDEX frame takes in the END frame at most
_COUNTED = (Tag.FORM, Tag.DATA, Tag.STEP)


class Extent(NamedTuple):
    """An INDEX frame.

    Args:
        offset, length: of the frame; see `frames.Frame`.
        start: where the first frame that it lists begins.
        forms, chunks, steps: how many frames it lists of these kinds.
        first: number of the first step that it lists; 0 if it lists none.
    """

    offset: int
    length: int
    start: int
    forms: int
    chunks: int
    steps: int
    first: int

    @property
    def counts(self) -> dict[Tag, int]:
        """How many frames it lists, by kind."""
        return dict(zip(_COUNTED, (self.forms, self.chunks, self.steps), strict=True))


class Columns(NamedTuple):
    """What an INDEX frame lists, in the order of the segment.

    Args:
        kinds, lengths, sizes: of each frame, int64 ``[frames]``; see `frames.Frame`.
        numbers: of the steps, int64 ``[steps]``.
    """

    kinds: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]


class IndexBuilder:
    """What the next INDEX frame will say, and what END will say of those before it.

    The public attributes: ``extents``, ``sites`` (offset and length of SITES frames) and ``end``, where the last
    frame of the segment ends.
    """

    def __init__(self) -> None:
        self.extents: list[Extent] = []
        self.sites: list[tuple[int, int]] = []
        self.end = len(MAGIC)
        self._begin()

    def _begin(self) -> None:
        self._start = self.end
        self._kinds, self._lengths, self._sizes = bytearray(), array("I"), array("I")
        self._numbers = array("q")

    def add(self, kind: int, length: int, size: int, number: int = 0) -> None:
        """A frame that stands where the last one ends; ``number`` is a step's.

        Raises:
            DamagedTrace: it is larger than any frame that a writer makes.
        """
        if max(length, size) >= 1 << 32:
            raise DamagedTrace(
                f"The frame at byte {self.end} has {max(length, size)} bytes; no index can list it."
            )
        self._kinds.append(kind)
        self._lengths.append(length)
        self._sizes.append(size)
        if kind == Tag.SITES:
            self.sites.append((self.end, length))
        if kind == Tag.STEP:
            self._numbers.append(number)
        self.end += HEADER_SIZE + length

    def cut(self, size: int) -> None:
        """Forgets the frames that end after byte ``size``."""
        while self.end > size and self._kinds:
            self.end -= HEADER_SIZE + self._lengths.pop()
            self._sizes.pop()
            kind = self._kinds.pop()
            if kind == Tag.STEP:
                self._numbers.pop()
            if kind == Tag.SITES:
                self.sites.pop()

    def count(self, kind: Tag) -> int:
        """How many frames of a kind the segment has."""
        return sum(extent.counts[kind] for extent in self.extents) + self._kinds.count(kind)

    def due(self) -> bool:
        """Whether there is enough for a frame."""
        return len(self._kinds) >= EVERY

    def room(self) -> int:
        """Bytes that the frame, and what END says of all of them, would take at most."""
        listed = len(self.extents) + len(self.sites) + 1
        return _FRAME * len(self._kinds) + 8 * len(self._numbers) + _EXTENT * listed

    def take(self) -> dict[str, Any]:
        """The record, to be written where the last frame ends; `wrote` says how long it became."""
        differences = np.diff(np.array(self._numbers, "<i8"), prepend=0).astype("<i8")
        return {
            "kinds": bytes(self._kinds),
            "lengths": _bytes(self._lengths),
            "sizes": _bytes(self._sizes),
            "numbers": differences.tobytes(),
        }

    def wrote(self, offset: int, length: int) -> None:
        """The record is in the INDEX frame at ``offset``; the builder begins anew behind what it lists."""
        forms, chunks, steps = (self._kinds.count(kind) for kind in _COUNTED)
        first = self._numbers[0] if self._numbers else 0
        self.extents.append(Extent(offset, length, self._start, forms, chunks, steps, first))
        if offset == self.end:  # it may stand further behind: in a segment whose index is made afterwards
            self.end += HEADER_SIZE + length
        self._begin()


def _bytes(numbers: array[int]) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def read_columns(record: Mapping[str, Any]) -> Columns:
    """The inverse of `IndexBuilder.take`.

    Raises:
        KeyError, TypeError, ValueError: it is not an INDEX frame's record.
    """
    kinds, lengths, sizes, numbers = (
        np.frombuffer(record[key], dtype).astype(np.int64)
        for key, dtype in (("kinds", "u1"), ("lengths", "<u4"), ("sizes", "<u4"), ("numbers", "<i8"))
    )
    if not len(kinds) == len(lengths) == len(sizes) or np.count_nonzero(kinds == Tag.STEP) != len(numbers):
        raise ValueError("columns of other lengths than each other's")
    return Columns(kinds, lengths, sizes, np.cumsum(numbers))


def read_extents(end: Mapping[str, Any]) -> tuple[list[Extent], list[tuple[int, int]]]:
    """What an END frame says of the INDEX frames and the SITES frames (offset and length).

    Raises:
        KeyError, TypeError, ValueError: it is not what it should be.
    """
    sites = [(as_place(offset), as_place(length)) for offset, length, *_ in end["sites"]]
    return [Extent(*map(as_place, row[:7])) for row in end["indexes"]], sites
