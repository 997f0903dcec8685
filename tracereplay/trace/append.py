"""Appending frames to a segment: complete, indexed and included in the segment's content digest."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import xxhash

from tracereplay.trace.chunk import Bytes
from tracereplay.trace.codec import RAW, Encoder
from tracereplay.trace.difference import Spans
from tracereplay.trace.frames import MAGIC, Tag, write_header, write_tail
from tracereplay.trace.index import IndexBuilder
from tracereplay.trace.plain import encode_record, pack

__all__ = ["Appender"]


class Appender:
    """The end of a segment file.

    Args:
        fd: the file, opened for appending.
        encoder: how chunks are stored.
        workers: threads that encode chunks (compressing lets go of the interpreter); 0: the caller does.

    Chunks are written in order, as their encoding is done: ``size`` counts them all only after `settle`.

    The public attributes: ``size`` (bytes of whole frames), ``index`` (what the next INDEX frame will say),
    ``content`` (running xxh3-128 over kind and xxh3-128 of each decoded META, SITES, DATA and STEP payload) and
    ``failed``.
    """

    def __init__(self, fd: int, encoder: Encoder, workers: int = 0) -> None:
        self.size = 0
        self.failed = False
        self.index = IndexBuilder()
        self.content = xxhash.xxh3_128()
        self._fd = fd
        self._encoder = encoder
        self._pool = ThreadPoolExecutor(workers, "tracereplay-encode") if workers else None
        self._ahead = workers + 1  # chunks whose encoding may be under way
        self._own = threading.local()  # each thread's encoder
        self._pending: deque[tuple[Future[Sequence[Bytes]], int]] = deque()

    def magic(self) -> None:
        """Begins a new segment."""
        self._write([MAGIC])

    def record(self, kind: Tag, value: Any, *, counted: bool = True) -> tuple[int, int]:
        """Writes plain data as a frame; returns where its header begins and how long its payload is, in bytes."""
        return self.packed(kind, pack(value), counted=counted)

    def packed(self, kind: Tag, data: bytes, *, counted: bool = True) -> tuple[int, int]:
        """Writes msgpack bytes as a frame; see `record`."""
        self.settle()
        if counted:
            self.content.update(bytes([kind]) + xxhash.xxh3_128_digest(data))
        payload, codec = encode_record(data)
        return self._frame(kind, codec, [payload], len(data))

    def chunk(
        self, start: bytes, buffers: Sequence[tuple[int, Bytes]], bases: Sequence[Spans | None] = (),
        plain: Sequence[Bytes] | None = None,
    ) -> None:  # fmt: skip
        """Writes a chunk and notes it in the index.

        Args:
            start, buffers, bases: see `codec.Encoder.encode`.
            plain: what the buffers stand for, where they are differences.
        """
        state = xxhash.xxh3_128(start)
        for data in [data for _, data in buffers] if plain is None else plain:
            state.update(data)
        self.content.update(bytes([Tag.DATA]) + state.digest())
        size = len(start) + sum(memoryview(data).nbytes for _, data in buffers)
        if self._encoder.codec == RAW:
            # The same bytes are stored. Of more than 240 bytes, xxh3-64 is the lower half of xxh3-128.
            digest = state.intdigest() & (1 << 64) - 1 if size > 240 else None
            self._chunk([start, *(data for _, data in buffers)], size, digest)
            return
        if self._pool is None:
            self._chunk(self._encoder.encode(start, buffers, bases), size)
            return
        self._pending.append((self._pool.submit(self._encode, start, buffers, bases), size))
        while len(self._pending) > self._ahead or (self._pending and self._pending[0][0].done()):
            self._settle_one()

    def settle(self) -> None:
        """Writes the chunks that are being encoded still."""
        while self._pending:
            self._settle_one()

    def _settle_one(self) -> None:
        found, size = self._pending.popleft()
        self._chunk(found.result(), size)

    def _encode(self, *chunk: Any) -> Sequence[Bytes]:
        encoder = getattr(self._own, "encoder", None)
        if encoder is None:
            encoder = self._own.encoder = self._encoder.fellow()
        return encoder.encode(*chunk)

    def _chunk(self, pieces: Sequence[Bytes], size: int, digest: int | None = None) -> None:
        self.index.chunks.append((*self._frame(Tag.DATA, self._encoder.codec, pieces, size, digest), size))

    def write_index(self) -> int:
        """Writes what the index lacks; returns where the last INDEX frame begins."""
        self.index.last = self.record(Tag.INDEX, self.index.take(), counted=False)[0]
        return self.index.last

    def end(self, summary: Mapping[str, Any]) -> None:
        """Writes the index, the END frame and the tail, and waits until the disk has them."""
        last = self.write_index()
        offset = self.size
        said = {**summary, "steps": self.index.all_steps, "index": last, "content": self.content.hexdigest()}
        self.record(Tag.END, said, counted=False)
        self._write([write_tail(offset)])
        os.fsync(self._fd)

    def cut(self, size: int) -> None:
        """Takes back what was written after ``size`` bytes."""
        self._pending.clear()
        os.ftruncate(self._fd, size)
        self.size = size

    def close(self) -> None:
        """Ends the threads; the file stays the caller's."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _frame(
        self, kind: Tag, codec: int, pieces: Sequence[Bytes], size: int, digest: int | None = None
    ) -> tuple[int, int]:
        if digest is None:
            state = xxhash.xxh3_64()
            for piece in pieces:
                state.update(piece)
            digest = state.intdigest()
        length = sum(memoryview(piece).nbytes for piece in pieces)
        offset = self.size
        self._write([write_header(kind, codec, length, size, digest), *pieces])
        return offset, length

    def _write(self, pieces: Sequence[Bytes]) -> None:
        left = [memoryview(piece).cast("B") for piece in pieces]
        size = sum(len(piece) for piece in left)
        try:
            while left:
                done = os.writev(self._fd, left[:64])
                while left and done >= len(left[0]):
                    done -= len(left.pop(0))
                if left:
                    left[0] = left[0][done:]
        except OSError:
            self.failed = True
            os.ftruncate(self._fd, self.size)  # a torn frame in the middle would hide all that follows
            raise
        self.size += size
