"""Chunks: some tensors' bytes together, laid out as a safetensors file.

    chunk  := length header buffer
    length   u64, little-endian: bytes of the header
    header   JSON: {"0": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}, padded with spaces
    buffer   the tensors, those of the widest words first

A tensor's name is its number in the chunk. The order by width makes a region of each width, which the codecs split
into byte planes in one go; it is also safetensors' own order, by which every tensor lies aligned.
"""

from __future__ import annotations

import json
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tracereplay.dtypes import DTYPES, nbytes
from tracereplay.errors import DamagedTrace

__all__ = [
    "DTYPE_NAMES",
    "MAX_DIMENSIONS",
    "MAX_HEADER",
    "MAX_TENSORS",
    "WIDTHS",
    "Bytes",
    "ChunkBuilder",
    "Entry",
    "read_header",
    "regions",
    "unique",
]

WIDTHS = (8, 4, 2, 1)  # bytes of a word, in the order of their regions
MAX_HEADER = 2 << 20
KEPT = 1 << 20  # bytes of headers that are remembered; what was read of them takes some five times as much
MAX_TENSORS = 8192  # of a chunk as it is written, so that its header stays far below that
MAX_DIMENSIONS = 32  # numpy's limit before 2.0
FEW = 32  # tensors of a region that are not copied together; more of them are so small that copying costs less
_LENGTH = struct.Struct("<Q")
Bytes = bytes | bytearray | memoryview
DTYPE_NAMES = {known.safetensors: name for name, known in DTYPES.items() if known.safetensors}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies in a chunk.

    Args:
        dtype: torch's name; ``uint8`` also for dtypes that safetensors does not know.
        shape: sizes.
        start, end: bytes from the beginning of the chunk.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class ChunkBuilder:
    """A chunk that is being filled with borrowed bytes."""

    def __init__(self) -> None:
        self._regions: dict[int, list[Bytes]] = {width: [] for width in WIDTHS}
        self._sizes = dict.fromkeys(WIDTHS, 0)  # of the regions, bytes
        self._entries: list[tuple[str, tuple[int, ...], int, int]] = []  # dtype, shape, width, start in its region
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, dtype: str, shape: tuple[int, ...], data: Bytes) -> int:
        """Borrows a tensor's contiguous bytes until `take` or `own`, and returns its number in the chunk."""
        width = DTYPES[dtype].word
        self._entries.append((dtype, shape, width, self._sizes[width]))
        self._regions[width].append(data)
        self._sizes[width] += len(data)
        self.size += len(data)
        return len(self._entries) - 1

    def own(self) -> None:
        """Copies what is borrowed, whose lender is about to change it."""
        for pieces in self._regions.values():
            pieces[:] = [b"".join(pieces)]

    def take(self) -> tuple[bytes, list[tuple[int, Bytes]]]:
        """The chunk's beginning (length and header) and, one after the other, its bytes with their widths; empties
        the builder. A region with few tensors is given piece by piece, as it was borrowed; another one joined."""
        bases = dict(zip(WIDTHS, accumulate([0, *list(self._sizes.values())[:-1]]), strict=True))
        header = {str(i): _described(*entry, bases) for i, entry in enumerate(self._entries)}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + _LENGTH.size) % 8)
        filled = [
            (width, piece)
            for width, pieces in self._regions.items()
            for piece in (pieces if len(pieces) <= FEW else [b"".join(pieces)])
            if piece
        ]
        self.__init__()  # type: ignore[misc]
        return _LENGTH.pack(len(text)) + text, filled


def _described(
    dtype: str, shape: tuple[int, ...], width: int, start: int, bases: dict[int, int]
) -> dict[str, Any]:
    begin = bases[width] + start
    size = nbytes(dtype, shape)
    known = DTYPES[dtype]
    if known.safetensors is None:
        return {"dtype": "U8", "shape": [*shape, known.itemsize], "data_offsets": [begin, begin + size],
                "torch": dtype}  # fmt: skip
    return {"dtype": known.safetensors, "shape": list(shape), "data_offsets": [begin, begin + size]}


class _Headers:
    """Headers that were read lately, by their bytes: they repeat from step to step."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, int], list[Entry]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[bytes, int]) -> list[Entry] | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def keep(self, key: tuple[bytes, int], entries: list[Entry]) -> None:
        with self._lock:
            if key not in self._known:
                self._bytes += len(key[0])
            self._known[key] = entries
            while self._bytes > KEPT:
                (text, _), _ = self._known.popitem(last=False)
                self._bytes -= len(text)


_headers = _Headers()


def read_header(start: bytes | memoryview, size: int, name: str) -> list[Entry]:
    """The tensors of a chunk, in order of their numbers; chunks with equal headers share one list.

    Args:
        start: the chunk's beginning, at least its length and header.
        size: of the whole chunk, bytes.
        name: of the segment, for the message.

    Raises:
        DamagedTrace: the header is not one, or its tensors overlap, leave gaps or lie outside.
    """
    if len(start) < _LENGTH.size or (length := _LENGTH.unpack_from(start)[0]) > min(MAX_HEADER, size):
        raise DamagedTrace(f"{name} holds a chunk whose header is longer than the chunk.")
    base = _LENGTH.size + length
    text = bytes(start[_LENGTH.size : base])
    entries = _headers.get((text, size))
    if entries is None:
        entries = _parsed(text, base, size, name)
        _headers.keep((text, size), entries)
    return entries


def _parsed(text: bytes, base: int, size: int, name: str) -> list[Entry]:
    try:
        header = json.loads(text, object_pairs_hook=unique)
        entries = [_entry(header[str(i)], base) for i in range(len(header))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DamagedTrace(f"{name} holds a chunk whose header cannot be read: {error!r}.") from error
    end = base
    for entry in sorted(entries, key=lambda e: (e.start, e.end)):
        if entry.start != end or entry.end < entry.start:
            raise DamagedTrace(
                f"{name} holds a chunk in which tensors overlap or leave a gap at byte {entry.start}."
            )
        end = entry.end
    if end != size:
        raise DamagedTrace(f"{name} holds a chunk of {size} bytes whose tensors end at {end}.")
    return entries


def _entry(data: dict[str, Any], base: int) -> Entry:
    dtype = data.get("torch") or DTYPE_NAMES[data["dtype"]]
    shape, (start, end) = tuple(data["shape"]), data["data_offsets"]
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in (*shape, start, end)):
        raise ValueError("a size or an offset is not a whole number")
    if len(shape) > MAX_DIMENSIONS + 1:
        raise ValueError(f"a tensor of {len(shape)} dimensions")
    if "torch" in data:
        shape = shape[:-1]
    if nbytes(dtype, shape) != end - start:
        raise ValueError(f"a {dtype} tensor of shape {shape} does not take {end - start} bytes")
    return Entry(dtype, shape, base + start, base + end)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where it has a key twice: two readers could take it for two things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def regions(entries: list[Entry], base: int, size: int) -> Iterator[tuple[int, int, int]]:
    """The regions of a chunk as ``(width, start, end)``, widest first; they cover it from ``base`` on.

    Args:
        entries: see `read_header`.
        base: where the buffer begins, bytes.
        size: of the whole chunk, bytes.
    """
    totals = dict.fromkeys(WIDTHS, 0)
    for entry in entries:
        totals[DTYPES[entry.dtype].word] += entry.end - entry.start
    start = base
    for width, total in totals.items():
        if total:
            yield width, start, start + total
            start += total
    assert start == size
