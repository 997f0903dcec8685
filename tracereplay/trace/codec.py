"""How bytes are stored: codecs by id, and the strict reading of msgpack."""

from __future__ import annotations

from typing import Any

import msgpack
import zstandard

from tracereplay.errors import DamagedTrace

__all__ = ["RAW", "ZSTD", "decode", "encode", "pack", "unpack"]

RAW = 0
ZSTD = 1

# Larger than any chunk that the writer makes; a frame that declares more is refused before allocation.
MAX_DECODED = 1 << 30


def encode(data: bytes | memoryview, codec: int) -> bytes | memoryview:
    """``data`` under ``codec``."""
    return zstandard.ZstdCompressor(level=1).compress(data) if codec == ZSTD else data


def decode(data: bytes, codec: int, name: str) -> bytes:
    """The inverse of `encode`.

    Raises:
        DamagedTrace: the codec is unknown, or the data do not decode to the size they declare.
    """
    if codec == RAW:
        return data
    if codec != ZSTD:
        raise DamagedTrace(f"{name} uses codec {codec}, which this version does not know; update tracereplay.")
    try:
        # Why read the declared size first: max_output_size is ignored when a frame declares its size.
        declared = zstandard.get_frame_parameters(data).content_size
        if not 0 <= declared <= MAX_DECODED:
            raise DamagedTrace(f"{name} declares a chunk of {declared} bytes; the limit is {MAX_DECODED}.")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(declared, 1))
    except zstandard.ZstdError as error:
        raise DamagedTrace(f"{name} holds a chunk that does not decompress: {error}.") from error


def pack(value: Any) -> bytes:
    """Plain data as msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes, name: str) -> Any:
    """Plain data from msgpack; duplicate keys and extension types are refused.

    Raises:
        DamagedTrace: the bytes are not what `pack` makes.
    """
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, object_pairs_hook=_unique, ext_hook=_no_extension
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise DamagedTrace(f"{name} holds metadata that cannot be read: {error}.") from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a map has the same key twice")
    return found


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not allowed")
