"""Each tensor's bytes once: repeats are found by content, views by the memory that they share.

    tensor ─▶ seen lately?  ──────────────▶ reference
         └──▶ part of memory seen in this step, and unchanged? ─▶ reference into it, with strides
                 └──▶ bytes into the chunk that is being filled, borrowed until it is written

Within a step, a reference is made only where every step with the same tensors so far could make it. Two tensors
that are equal by chance in one step and not in the next (an operator's output, and the recorded one that the next
operator is fed) would give each step a form of its own, and a reader could not take many steps at once.

Memory is known by a number that the recorder gives it for the length of a step. That a number stands for the same
memory says nothing of what is in it: operators write in place, and nobody is told. So a view is a reference only
if its bytes are those of what it views; if not, the memory was written since, and has a new version.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from tracereplay.dtypes import itemsize
from tracereplay.trace.chunk import MAX_TENSORS, Bytes, ChunkBuilder
from tracereplay.trace.records import Located

__all__ = ["CHUNK", "PIECE", "Contents", "TensorBytes", "contiguous", "strided_bytes"]

CHUNK = 1 << 20  # bytes from which a chunk is written: large enough to compress well
PIECE = 4 << 20  # bytes that a chunk has at most: small enough to read one call without much else
# Bytes of tensors that each step stores itself. A step's token may be that of an earlier step by chance: if its
# embedding, and what the first layer makes of it, were stored as references then, steps that are alike would not
# have one form, and a reader could not take many of them at once. It costs about one percent of a trace.
SMALL = 64 << 10
REMEMBERED = 65536  # digests, and places of which it is known how they are stored; bounds memory at about 20 MB

_Way = tuple[int, int, bool]  # which tensor of the step a reference is to, counted; skip; strided
_OWN: _Way = (-1, 0, False)  # a tensor that is stored itself

WriteChunk = Callable[[bytes, list[tuple[int, Bytes]]], None]


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """A tensor to be written, its bytes borrowed until the step is committed (or `SegmentWriter.moved` is called).

    Args:
        dtype: torch's name.
        shape: sizes.
        strides: in elements, as the operator saw it.
        data: its elements one after the other.
        storage: number of the memory that it lies in, within the step; -1: not known.
        start: of its first element in that memory, in elements.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    data: memoryview | bytes
    storage: int = -1
    start: int = 0


class _Stored(NamedTuple):
    """Where a content was put: `records.Located` has the words."""

    chunk: int
    tensor: int
    pieces: int


@dataclass(slots=True)
class _Memory:
    """What is known of one storage in this step.

    Args:
        version: how often it was seen to have been written.
        latest: what was last seen at a place (start, shape, strides, dtype).
        bases: stored parts that views may refer to: first byte, bytes, place.
    """

    version: int = 0
    latest: dict[tuple[Any, ...], bytes] = field(default_factory=dict)
    bases: list[tuple[int, memoryview, _Stored]] = field(default_factory=list)


class Contents:
    """What a segment holds, and the values of the step that is under way.

    Args:
        write_chunk: takes a full chunk's beginning and its regions, whole or in pieces.
    """

    def __init__(self, write_chunk: WriteChunk) -> None:
        self._write_chunk = write_chunk
        self._chunk = ChunkBuilder()
        self._chunks = 0
        self._first = 0  # chunk of the step that is under way
        self._seen: OrderedDict[tuple[bytes, int], _Stored] = OrderedDict()
        self._new: list[tuple[bytes, int]] = []
        self._memories: dict[int, _Memory] = {}
        self._places: dict[Located, int] = {}
        self._ways: OrderedDict[int, _Way] = OrderedDict()  # by what tensors the step had up to there
        self._path = self._count = 0
        self._placed: dict[tuple[int, int], int] = {}  # which tensor of the step was put there
        self.values: list[Located] = []

    def add(self, tensor: TensorBytes) -> int:
        """The value's place among the step's values."""
        self._path = hash((self._path, tensor.dtype, tensor.shape, tensor.strides))
        located = self._locate(tensor)
        place = self._places.get(located)
        if place is None:
            place = self._places[located] = len(self.values)
            self.values.append(located)
        return place

    def moved(self) -> None:
        """Lent bytes are about to go: the chunk keeps a copy, and later views cannot be compared with them."""
        self._chunk.own()
        for memory in self._memories.values():
            memory.bases.clear()

    def flush(self) -> None:
        """Writes the chunk as far as it is filled."""
        if len(self._chunk):
            self._write_chunk(*self._chunk.take())
            self._chunks += 1

    def end_step(self) -> None:
        """Forgets the step's values and memories; contents stay known."""
        self._memories.clear()
        self._places.clear()
        self._placed.clear()
        self._path = self._count = 0
        self.values = []
        self._new.clear()
        self._first = self._chunks

    def mark(self) -> int:
        """How many chunks there are, for `restore`; only between steps."""
        return self._chunks

    def restore(self, chunks: int) -> None:
        """Back to `mark`: the chunks and the contents that were added since are gone."""
        self._chunks = chunks
        self._chunk = ChunkBuilder()
        for key in self._new:
            self._seen.pop(key, None)
        self.end_step()

    # -- one value --------------------------------------------------------------------------------------

    def _locate(self, tensor: TensorBytes) -> Located:
        view = memoryview(tensor.data)
        digest = xxhash.xxh3_128_digest(view)
        memory = self._memories.setdefault(tensor.storage, _Memory()) if tensor.storage >= 0 else None
        skip, strided = 0, False
        stored = self._seen.get((digest, len(view))) if len(view) else _Stored(-1, 0, 0)
        if stored is not None and 0 < len(view) <= SMALL and stored.chunk < self._first:
            stored = None
        if memory is not None:
            self._notice(memory, tensor, digest)
        if stored is None and memory is not None:
            found = _viewed(memory, tensor, digest)
            if found is not None:
                (stored, skip), strided = found, True
        if len(view) and (stored is None or stored.chunk >= self._first):
            way = _OWN if stored is None else (self._placed[stored.chunk, stored.tensor], skip, strided)
            if self._always(way) == _OWN:
                stored, skip, strided = None, 0, False
        if stored is None:
            stored = self._place(tensor, view, digest)
            self._placed[stored.chunk, stored.tensor] = self._count
        self._count += 1
        if memory is not None and not strided and len(view) and contiguous(tensor.shape, tensor.strides):
            memory.bases.append((tensor.start * itemsize(tensor.dtype), view, stored))
        version = memory.version if memory is not None else 0
        return Located(
            tensor.dtype,
            tensor.shape,
            tensor.strides,
            tensor.storage,
            tensor.start,
            version,
            *stored,
            skip,
            strided,
        )

    def _always(self, way: _Way) -> _Way:
        """``way`` if the tensor at this place of a step was always stored in that way; else `_OWN`, for good."""
        known = self._ways.setdefault(self._path, way)
        if known not in (way, _OWN):
            known = self._ways[self._path] = _OWN
        if len(self._ways) > REMEMBERED:
            self._ways.popitem(last=False)
        return known

    def _notice(self, memory: _Memory, tensor: TensorBytes, digest: bytes) -> None:
        """Sees whether the memory was written since it was last seen there."""
        place = (tensor.start, tensor.shape, tensor.strides, tensor.dtype)
        before = memory.latest.get(place)
        if before is not None and before != digest:
            memory.version += 1
            memory.latest.clear()
            memory.bases.clear()
        memory.latest[place] = digest

    def _place(self, tensor: TensorBytes, data: memoryview, digest: bytes) -> _Stored:
        key = (digest, len(data))
        if len(data) > PIECE:
            stored = self._place_large(tensor.dtype, data)
        else:
            if self._chunk.size + len(data) > PIECE:
                self.flush()
            stored = _Stored(self._chunks, self._chunk.add(tensor.dtype, tensor.shape, data), 1)
            if self._chunk.size >= CHUNK or len(self._chunk) >= MAX_TENSORS:
                self.flush()
        self._seen[key] = stored
        self._new.append(key)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return stored

    def _place_large(self, dtype: str, data: memoryview) -> _Stored:
        """A tensor cut into pieces, each in a chunk of its own."""
        self.flush()
        first = self._chunks
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._chunk.add(dtype, (len(piece) // itemsize(dtype),), piece)
            self.flush()
        return _Stored(first, 0, self._chunks - first)


def contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements lie one after the other in the order of the indices."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _viewed(memory: _Memory, tensor: TensorBytes, digest: bytes) -> tuple[_Stored, int] | None:
    """A stored part of the same memory that holds these very bytes at the tensor's strides, and where in it.

    Args:
        digest: xxh3-128 of the tensor's bytes.
    """
    width = itemsize(tensor.dtype)
    begin = tensor.start * width
    extent = (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))) * width
    for first, base, stored in reversed(memory.bases):
        skip = begin - first
        if skip >= 0 and skip + extent <= len(base) and len(tensor.data) <= len(base):
            if xxhash.xxh3_128_digest(strided_bytes(base, skip, tensor.shape, tensor.strides, width)) == digest:
                return stored, skip
            memory.version += 1  # it was written since
            memory.bases.clear()
            return None
    return None


def strided_bytes(
    base: bytes | bytearray | memoryview, skip: int, shape: tuple[int, ...], strides: tuple[int, ...], width: int
) -> bytes:
    """The elements of a view of ``base``, one after the other.

    Args:
        base: bytes.
        skip: bytes before the first element.
        shape, strides: of the view; strides in elements.
        width: bytes of an element.
    """
    view: npt.NDArray[np.void] = np.ndarray(shape, f"V{width}", base, skip, tuple(s * width for s in strides))
    return view.tobytes()
