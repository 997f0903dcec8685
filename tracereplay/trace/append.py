"""Appending frames to a segment: complete, indexed and included in the segment's content digest."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import xxhash

from tracereplay.trace.chunk import Bytes
from tracereplay.trace.codec import RAW, Encoder
from tracereplay.trace.difference import Spans
from tracereplay.trace.form_records import part, whole
from tracereplay.trace.frames import MAGIC, Frame, Tag, write_header, write_tail
from tracereplay.trace.index_record import IndexBuilder
from tracereplay.trace.plain import encode_record, pack
from tracereplay.trace.sealed import SEALED, Seal

__all__ = ["COUNTED", "Appender"]

COUNTED = (Tag.META, Tag.SITES, Tag.DATA, Tag.STEP)  # kinds of frames that are contents; see `digest`
FORMS = 32  # forms that are remembered; one that was forgotten is written again when it is met again
NEAR = 64 << 10  # bytes before the end that a remote reader has anyway
COPIED = 256 << 10  # bytes, decoded, of forms that END repeats


class _Known(NamedTuple):
    """A form that was written: which FORM frame has it, where that ends, and its record."""

    number: int
    end: int
    data: bytes


class Appender:
    """The end of a segment file.

    Args:
        fd: the file, opened for appending.
        encoder: how chunks are stored.
        workers: threads that encode chunks (compressing lets go of the interpreter); 0: the caller does.
        seal: with which frames are sealed; None: they are not.

    Chunks are written in order, as their encoding is done: ``size`` counts them all only after `settle`.

    The public attributes: ``size`` (bytes of whole frames), ``index`` (what the next INDEX frame will say),
    ``content`` (running xxh3-128, see `digest.count_content`) and ``failed``.
    """

    def __init__(self, fd: int, encoder: Encoder, workers: int = 0, seal: Seal | None = None) -> None:
        self.size = 0
        self.failed = False
        self.index = IndexBuilder()
        self.content = xxhash.xxh3_128()
        self._fd = fd
        self._encoder = encoder
        self._seal = seal
        self._pool = ThreadPoolExecutor(workers, "tracereplay-encode") if workers else None
        self._ahead = workers + 1  # chunks whose encoding may be under way
        self._own = threading.local()  # each thread's encoder
        self._pending: deque[tuple[Future[Sequence[Bytes]], int]] = deque()
        self._forms: OrderedDict[bytes, _Known] = OrderedDict()

    def magic(self) -> None:
        """Begins a new segment, with its key if it is sealed."""
        self._write([MAGIC])
        if self._seal is not None:
            wrapped = self._seal.wrapped
            self._frame(Tag.KEY, RAW, [wrapped], len(wrapped))

    def record(self, kind: Tag, value: Any) -> tuple[int, int]:
        """Writes plain data as a frame; returns where its header begins and how long its payload is, in bytes."""
        return self.packed(kind, pack(value))

    def packed(self, kind: Tag, data: bytes, number: int = 0) -> tuple[int, int]:
        """Writes msgpack bytes as a frame; see `record`. ``number`` is a step's."""
        self.settle()
        self._count(kind, data)
        return self._record(kind, data, number)

    def step(self, record: Mapping[str, Any], first: int, data: bytes | None = None) -> None:
        """Writes a step, and its form if that is not known.

        Args:
            record: as `records.write_step` makes it.
            first: number of its first own chunk: how many stood before the STEP frame of the step before.
            data: the record's msgpack bytes as another writer made them. If they are not what `pack` makes of its
                parts, the step is written as it is: what counts towards the digest must stay the same.
        """
        self.settle()
        form, step = part(record, first)
        if data is not None and data != pack(whole(form, step)):
            self.packed(Tag.STEP, data, record["number"])
            return
        self._count(Tag.STEP, pack(record) if data is None else data)
        step["form"] = self._form(pack(form))
        self._record(Tag.STEP, pack(step), record["number"])

    def _form(self, data: bytes) -> int:
        """Number of the FORM frame that holds this record."""
        key = xxhash.xxh3_128_digest(data)
        known = self._forms.get(key)
        if known is None:
            number = self.index.count(Tag.FORM)
            self._record(Tag.FORM, data)
            known = self._forms[key] = _Known(number, self.size, data)
            if len(self._forms) > FORMS:
                self._forms.popitem(last=False)
        self._forms.move_to_end(key)
        return known.number

    def _count(self, kind: int, data: bytes) -> None:
        if kind in COUNTED:
            self.content.update(bytes([kind]) + xxhash.xxh3_128_digest(data))

    def _record(self, kind: Tag, data: bytes, number: int = 0) -> tuple[int, int]:
        payload, codec = encode_record(data)
        return self._frame(kind, codec, [payload], len(data), number)

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

    def as_stored(self, frame: Frame, payload: bytes) -> None:
        """Writes a frame of another segment as it is stored there; it is not counted towards ``content``."""
        self.settle()
        self._frame(frame.kind, frame.codec, [payload], frame.size)

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
        self._frame(Tag.DATA, self._encoder.codec, pieces, size, digest=digest)

    def write_index(self) -> None:
        """Writes what the index lacks."""
        self.settle()
        data = pack(self.index.take())
        payload, codec = encode_record(data)
        self.index.wrote(*self._write_frame(Tag.INDEX, codec, [payload], len(data)))

    def room(self) -> int:
        """Bytes that closing the segment would take, at most, besides what the caller says in `end`."""
        return self.index.room() + sum(len(known.data) for known in self._copied())

    def end(self, summary: Mapping[str, Any]) -> None:
        """Writes the index, the END frame and the tail; `sync` waits until the disk has them.

        Args:
            summary: what END says; ``content`` if it is known already.
        """
        self.write_index()
        said = {
            "content": self.content.hexdigest(),
            **summary,
            "steps": self.index.count(Tag.STEP),
            "sites": self.index.sites,
            "indexes": self.index.extents,
            "forms": [(known.number, known.data) for known in self._copied()],
        }
        data = pack(said)
        payload, codec = encode_record(data)
        offset, _ = self._write_frame(Tag.END, codec, [payload], len(data))
        self._write([write_tail(offset)])

    def sync(self) -> None:
        """Waits until the disk has everything."""
        os.fsync(self._fd)

    def _copied(self) -> list[_Known]:
        """The forms that END repeats: the ones used lately whose frames are far away."""
        found: list[_Known] = []
        left = COPIED
        for known in reversed(self._forms.values()):
            left -= len(known.data)
            if left >= 0 and self.size - known.end > NEAR:
                found.append(known)
        return found

    def cut(self, size: int) -> None:
        """Takes back what was written after ``size`` bytes."""
        self._pending.clear()
        os.ftruncate(self._fd, size)
        self.size = size
        self.index.cut(size)
        self._forms = OrderedDict((key, known) for key, known in self._forms.items() if known.end <= size)

    def close(self) -> None:
        """Ends the threads; the file stays the caller's."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _frame(
        self, kind: int, codec: int, pieces: Sequence[Bytes], size: int, number: int = 0,
        digest: int | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        """Writes a frame that the index lists."""
        place = self._write_frame(kind, codec, pieces, size, digest)
        self.index.add(kind, place[1], size, number)
        return place

    def _write_frame(
        self, kind: int, codec: int, pieces: Sequence[Bytes], size: int, digest: int | None = None
    ) -> tuple[int, int]:
        if self._seal is not None and kind != Tag.KEY:
            payload = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces = self._seal.close(kind, codec, self.size, size, payload)
            codec, digest = SEALED, None
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
