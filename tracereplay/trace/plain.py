"""Plain data as msgpack, read strictly: a stranger's bytes must not cost more than they are long."""

from __future__ import annotations

from typing import Any

import msgpack
import zstandard

from tracereplay.errors import DamagedTrace
from tracereplay.trace.codec import RAW, ZSTD, decompress

__all__ = ["MAX_RECORD", "decode_record", "encode_record", "pack", "unpack"]

# No record that the writer makes comes near; more is refused before anything is allocated.
MAX_RECORD = 64 << 20
MAX_ITEMS = 4 << 20  # of one list or map
_SMALL = 512  # bytes below which compressing a record gains nothing
_compressor = zstandard.ZstdCompressor(level=3)


def pack(value: Any) -> bytes:
    """Plain data as msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes | memoryview, name: str) -> Any:
    """Plain data from msgpack; duplicate keys, extension types and deep nesting are refused.

    Args:
        data: all of it.
        name: of the segment, for messages.

    Raises:
        DamagedTrace: the bytes are not what `pack` makes.
    """
    limit = min(len(data), MAX_ITEMS)
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, object_pairs_hook=_unique, ext_hook=_no_extension,
            max_array_len=limit, max_map_len=limit, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise DamagedTrace(
            f"{name} holds metadata that cannot be read: {error or type(error).__name__}."
        ) from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a map has the same key twice")
    return found


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not allowed")


def encode_record(data: bytes) -> tuple[bytes, int]:
    """A record's msgpack bytes as they are stored, and the codec."""
    return (data, RAW) if len(data) < _SMALL else (_compressor.compress(data), ZSTD)


def decode_record(data: bytes, codec: int, size: int, name: str) -> bytes:
    """The msgpack bytes of a record.

    Raises:
        DamagedTrace: the codec is unknown, or the payload has not the size that the header says.
    """
    if size > MAX_RECORD:
        raise DamagedTrace(f"{name} declares a record of {size} bytes; the limit is {MAX_RECORD}.")
    if codec == ZSTD:
        return decompress(data, size, name)
    if codec != RAW or len(data) != size:
        raise DamagedTrace(f"{name} holds a record of codec {codec} and {len(data)} bytes that declares {size}.")
    return data
