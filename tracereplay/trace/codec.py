"""How a chunk's bytes are stored: codecs by id, the id standing in the frame's header.

    RAW     unchanged
    ZSTD    one zstandard frame (records, not chunks)
    PLANES  header, then for each region its byte planes, each a zstandard frame or raw; fast
    STRONG  the same layout, compressed more strongly: what `pack --level` writes
    DELTA   the same layout, after tensors were replaced by their difference from a base trace's; is read only
    ROWS    the same, but from spans of the base's tensors (`difference`): what `pack --base` writes

**Byte planes.** The high bytes of floats repeat (sign and exponent), the low ones hardly do. Apart, the high ones
are compressed and the low ones left alone; together neither compresses well.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import zstandard

from tracereplay.errors import DamagedTrace
from tracereplay.trace.chunk import Bytes, Entry, read_header, regions
from tracereplay.trace.difference import Array, Base, Spans, read_spans, restore, write_spans

__all__ = [
    "CHUNK_CODECS", "DELTA", "MAX_CHUNK", "PLANES", "RAW", "ROWS", "STRONG", "ZSTD", "Encoder", "decode_chunk",
    "decompress", "split",
]  # fmt: skip

RAW, ZSTD, PLANES, STRONG, DELTA, ROWS = range(6)
CHUNK_CODECS = (RAW, PLANES, STRONG, DELTA, ROWS)

# No writer makes larger ones; a header that declares more is refused before anything is allocated.
MAX_CHUNK = 16 << 20

_LENGTHS = struct.Struct("<II")  # of a stream: bytes as stored, bytes decoded
_COUNT = struct.Struct("<I")
_PROBE = 32 << 10  # bytes of a plane by which it is seen whether compressing is worth the time
_WORTH = 0.97

# Measured on activations (benchmarks/RESULTS.md): entropy coding is all that helps, matches hardly occur.
_FAST = zstandard.ZstdCompressionParameters(
    compression_level=1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, window_log=17,
    write_content_size=True, write_checksum=False,
)  # fmt: skip


class Encoder:
    """Encodes chunks; keeps its compressor, since making one costs as much as compressing a small chunk.

    Args:
        codec: RAW, PLANES, STRONG or ROWS.
        level: of zstandard, for STRONG and ROWS.
    """

    def __init__(self, codec: int, level: int = 19) -> None:
        self.codec, self._level = codec, level
        self._compressor = (
            zstandard.ZstdCompressor(compression_params=_FAST)
            if codec == PLANES
            else zstandard.ZstdCompressor(level=level)
        )

    def fellow(self) -> Encoder:
        """One of the same kind, for another thread: a compressor serves one at a time."""
        return Encoder(self.codec, self._level)

    def encode(
        self, start: bytes, buffers: Sequence[tuple[int, Bytes]], bases: Sequence[Spans | None] = (),
    ) -> list[Bytes]:  # fmt: skip
        """The stored pieces of a chunk, to be written one after the other.

        Args:
            start: the chunk's length and header.
            buffers: its regions with their widths (for ROWS already differences), each whole or in pieces that
                follow each other.
            bases: for ROWS, what each tensor is a difference from.
        """
        if self.codec == RAW:
            return [start, *(data for _, data in buffers)]
        streams: list[Bytes] = [start]
        if self.codec == ROWS:
            streams.append(write_spans(bases))
        for width, pieces in groupby(buffers, key=itemgetter(0)):
            streams += [plane.data for plane in split([data for _, data in pieces], width)]
        stored = [self._stream(s) for s in streams]
        sizes = [len(s) for s in streams]
        head = [_COUNT.pack(len(stored))]
        head += [_LENGTHS.pack(len(s), size) for s, size in zip(stored, sizes, strict=True)]
        return [b"".join(head), *stored]

    def _stream(self, data: Bytes) -> Bytes:
        """As a zstandard frame, or as it is where that is not smaller."""
        if len(data) > 2 * _PROBE and self.codec == PLANES:
            middle = len(data) // 2
            probe = self._compressor.compress(data[middle : middle + _PROBE])
            if len(probe) > _WORTH * _PROBE:
                return data
        packed = self._compressor.compress(data)
        return packed if len(packed) < len(data) else data


def decode_chunk(
    data: bytes, codec: int, size: int, name: str, base: Base | None = None, only: int | None = None
) -> tuple[memoryview, list[Entry]]:
    """The chunk of ``size`` bytes that an `Encoder` stored, and its tensors in order of their numbers.

    Args:
        data: its stored pieces, joined.
        codec: from the frame's header.
        size: of the decoded chunk, from the frame's header.
        name: of the segment, for error messages.
        base: where tensors are found that this chunk holds only a difference from.
        only: the one tensor that is wanted; the bytes of others need not be right then.

    Raises:
        DamagedTrace: the codec is unknown, or the data are not what an encoder makes.
    """
    if codec not in CHUNK_CODECS:
        raise DamagedTrace(f"{name} uses codec {codec}, which is unknown to this version; update tracereplay.")
    if size > MAX_CHUNK:
        raise DamagedTrace(f"{name} declares a chunk of {size} bytes; the limit is {MAX_CHUNK}.")
    if codec == RAW:
        if len(data) != size:
            raise DamagedTrace(f"{name} holds a chunk of {len(data)} bytes that declares {size}.")
        whole = memoryview(data)
        return whole, read_header(whole, size, name)
    streams = _Streams(data, size, name)
    start = streams.next()
    described = streams.next() if codec in (DELTA, ROWS) else None
    entries = read_header(start, size, name)
    if len(start) != min((entry.start for entry in entries), default=size):
        raise DamagedTrace(f"{name} holds a chunk whose first stream is not its header.")
    chunk = np.empty(size, np.uint8)
    chunk[: len(start)] = np.frombuffer(start, np.uint8)
    wanted = entries[only] if only is not None and only < len(entries) and codec not in (DELTA, ROWS) else None
    for width, begin, end in regions(entries, len(start), size):
        if wanted is not None and not begin <= wanted.start < end:
            streams.skip(width)
            continue
        join([streams.next((end - begin) // width) for _ in range(width)], chunk[begin:end], width)
    streams.done()
    if described is not None:
        sizes = [entry.end - entry.start for entry in entries]
        bases = read_spans(described, sizes, name, whole=codec == DELTA)
        restore(chunk, entries, bases, base, name)
    return chunk.data, entries


class _Streams:
    """The streams of an encoded chunk, one after the other, none larger than it may be."""

    def __init__(self, data: bytes, size: int, name: str) -> None:
        self._data, self._name = memoryview(data), name
        count = _COUNT.unpack_from(data)[0] if len(data) >= _COUNT.size else 0
        begin = _COUNT.size + count * _LENGTHS.size
        if not 0 < count <= 32 or begin > len(data):
            raise DamagedTrace(f"{name} holds a chunk of {count} streams, which no encoder makes.")
        self._lengths = list(_LENGTHS.iter_unpack(self._data[_COUNT.size : begin]))
        self._at = begin
        stored, decoded = (sum(lengths) for lengths in zip(*self._lengths, strict=True))
        if (
            begin + stored != len(data) or decoded > 2 * size
        ):  # DELTA and ROWS say beside the chunk what it is from
            raise DamagedTrace(f"{name} holds a chunk whose streams are not as long as it says.")
        self._lengths.reverse()

    def next(self, expected: int | None = None) -> bytes | memoryview:
        if not self._lengths:
            raise DamagedTrace(f"{self._name} holds a chunk that lacks a stream.")
        stored, size = self._lengths.pop()
        data = self._data[self._at : self._at + stored]
        self._at += stored
        if expected is not None and size != expected:
            raise DamagedTrace(f"{self._name} holds a plane of {size} bytes where {expected} belong.")
        return data if stored == size else decompress(data, size, self._name)

    def skip(self, count: int) -> None:
        for _ in range(count):
            if not self._lengths:
                raise DamagedTrace(f"{self._name} holds a chunk that lacks a stream.")
            self._at += self._lengths.pop()[0]

    def done(self) -> None:
        if self._lengths:
            raise DamagedTrace(f"{self._name} holds a chunk with {len(self._lengths)} streams too many.")


def decompress(data: Bytes, size: int, name: str) -> bytes:
    """One zstandard frame of ``size`` bytes.

    Raises:
        DamagedTrace: it is not one, or declares another size.
    """
    try:
        # Why read the declared size first: max_output_size is ignored when a frame declares its size.
        declared = zstandard.get_frame_parameters(data).content_size
        if declared != size:
            raise DamagedTrace(f"{name} holds a zstandard frame that declares {declared} bytes, not {size}.")
        found = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(size, 1))
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedTrace(f"{name} holds bytes that do not decompress: {error}.") from error
    if len(found) != size:
        raise DamagedTrace(f"{name} holds a zstandard frame of {len(found)} bytes that declares {size}.")
    return found


# Byte planes. Why shifts: a transpose of the bytes runs at a fifth of their speed.


def split(pieces: Sequence[Bytes], width: int) -> list[Array]:
    """The planes of ``pieces``, which are whole words, the highest bytes first; each ``uint8 [all words]``."""
    words = [np.frombuffer(piece, f"<u{width}") for piece in pieces]
    if width == 1 and len(words) == 1:
        return words
    planes = [np.empty(sum(map(len, words)), np.uint8) for _ in range(width)]
    begin = 0
    for part in words:
        end = begin + len(part)
        for i, plane in enumerate(reversed(planes)):
            np.right_shift(part, part.dtype.type(8 * i), out=plane[begin:end], casting="unsafe")
        begin = end
    return planes


def join(planes: Sequence[bytes | memoryview], out: Array, width: int) -> None:
    """The inverse of `split`, into ``out`` (``uint8``)."""
    if width == 1:
        out[:] = np.frombuffer(planes[0], np.uint8)
        return
    words = np.zeros(len(out) // width, f"<u{width}")
    for plane in planes:
        words <<= np.array(8, words.dtype)
        words |= np.frombuffer(plane, np.uint8)
    out[:] = words.view(np.uint8)
