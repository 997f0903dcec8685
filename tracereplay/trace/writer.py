"""Writing one segment: an append-only file, one for each process and pass.

Every tensor's bytes are stored once: a tensor whose content was seen lately in the same segment is
written as a reference to the bytes already there. What one operator gives the next takes is found so,
whatever the allocator did with the addresses.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.event import Request, RowMap, Sampled, Site
from tracereplay.trace import codec, records
from tracereplay.trace.frames import MAGIC, Kind, write_frame

__all__ = ["PendingCall", "SegmentWriter", "TensorBytes"]

CHUNK = 4 << 20  # bytes; large enough to compress well, small enough to read one call without much else
REMEMBERED = 65536  # digests; bounds memory at about 10 MB


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """A tensor to be written: its description and its contiguous bytes (borrowed until the step is written)."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    data: memoryview | bytes


@dataclass(slots=True)
class PendingCall:
    """A call as it is gathered during a step; ``inputs`` and ``outputs`` are keyed by index."""

    slot: int
    number: int
    rows_in: RowMap
    rows_out: RowMap
    inputs: dict[int, TensorBytes] = field(default_factory=dict)
    outputs: dict[int, TensorBytes] = field(default_factory=dict)
    written: dict[int, TensorBytes] = field(default_factory=dict)


class SegmentWriter:
    """Appends steps to a segment file.

    A step's DATA frames come before its STEP frame, which is the commit mark: a reader shows a step
    only when all of it is there.

    Args:
        path: file to create; must not exist.
        meta: plain data about this process (rank, world size, pass name).
        codec_id: how chunks are stored.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any], codec_id: int = codec.ZSTD) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self.failed = False
        self._end = 0
        self._codec = codec_id
        self._chunks = 0
        self._steps = 0
        self._seen: OrderedDict[tuple[bytes, int], tuple[int, int]] = OrderedDict()
        self._append([MAGIC, *write_frame(Kind.META, codec.pack(dict(meta)))])

    def sites(self, sites: Iterable[Site]) -> None:
        """Says which sites the following steps speak of; may be called again with more."""
        payload = codec.pack([records.write_site(s) for s in sites])
        self._append(write_frame(Kind.SITES, payload))

    def step(
        self, number: int, rows: RowMap, calls: Sequence[PendingCall], sampled: list[Sampled], notes: list[str],
        requests: Sequence[Request] = (),
    ) -> None:  # fmt: skip
        """Appends one step and commits it.

        Raises:
            OSError: it could not be written. The segment keeps the steps before it and takes no more.
        """
        if self.failed:
            raise OSError(errno.EIO, "the segment was given up after an earlier error")
        chunk = bytearray()
        pieces: list[bytes | memoryview] = []
        maps: dict[bytes, int] = {records.write_rows(rows): 0}

        def place(tensors: Mapping[int, TensorBytes]) -> list[records.Located]:
            return [self._place(tensors[i], chunk, pieces) for i in sorted(tensors)]

        packed = []
        for call in calls:
            rows_in = maps.setdefault(records.write_rows(call.rows_in), len(maps))
            rows_out = maps.setdefault(records.write_rows(call.rows_out), len(maps))
            inputs, outputs = place(call.inputs), place(call.outputs)
            written = {i: self._place(t, chunk, pieces) for i, t in call.written.items()}
            packed.append(records.write_call(call.slot, call.number, inputs, outputs, rows_in, rows_out, written))
        self._flush(chunk, pieces)
        payload = codec.pack(records.write_step(number, list(maps), packed, sampled, notes, list(requests)))
        pieces.extend(write_frame(Kind.STEP, payload))
        self._append(pieces)
        self._steps += 1

    def close(self, summary: Mapping[str, Any]) -> None:
        """Writes the end mark; a segment without one is incomplete."""
        self._append(write_frame(Kind.END, codec.pack({"steps": self._steps, **summary})))
        os.close(self._fd)

    def abandon(self) -> None:
        """Closes the file as it is, without an end mark."""
        os.close(self._fd)

    def _place(self, tensor: TensorBytes, chunk: bytearray, pieces: list[bytes | memoryview]) -> records.Located:
        key = (xxhash.xxh3_128_digest(tensor.data), len(tensor.data))
        found = self._seen.get(key)
        if found is None:
            if chunk and len(chunk) + len(tensor.data) > CHUNK:
                self._flush(chunk, pieces)
            found = self._seen[key] = (self._chunks, len(chunk))
            chunk += tensor.data
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return (tensor.dtype, tensor.shape, tensor.strides, *found)

    def _flush(self, chunk: bytearray, pieces: list[bytes | memoryview]) -> None:
        if chunk:
            pieces.extend(write_frame(Kind.DATA, codec.encode(bytes(chunk), self._codec), self._codec))
            self._chunks += 1
            chunk.clear()

    def _append(self, pieces: Iterable[bytes | memoryview]) -> None:
        data = memoryview(b"".join(pieces))
        end = self._end + len(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            # A torn frame in the middle would hide all that follows: cut it off, and write no more.
            self.failed = True
            os.ftruncate(self._fd, self._end)
            raise
        self._end = end
