"""Plain data as msgpack, read strictly: a stranger's bytes must not cost more than they are long."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import zstandard

from tracereplay.errors import DamagedTrace
from tracereplay.trace.codec import RAW, ZSTD, decompress

__all__ = ["MAX_RECORD", "as_place", "as_text", "decode_record", "encode_record", "pack", "unpack"]

# No record that the writer makes comes near; more is refused before anything is allocated.
MAX_RECORD = 16 << 20
MAX_ITEMS = 4 << 20  # of a record
HARMLESS = 4 << 10  # bytes of a record that cannot claim more than some megabytes, however it is nested
_SMALL = 512  # bytes below which compressing a record gains nothing
_compressor = zstandard.ZstdCompressor(level=3)


def pack(value: Any) -> bytes:
    """Plain data as msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes | memoryview, name: str, *, own: bool = False) -> Any:
    """Plain data from msgpack; duplicate keys, extension types and deep nesting are refused.

    Args:
        data: all of it.
        name: of the segment, for error messages.
        own: whether this very program made the data; then what they claim is not counted first.

    Raises:
        DamagedTrace: the bytes are not what `pack` makes.
    """
    limit = min(len(data), MAX_ITEMS)
    try:
        if not own and len(data) > HARMLESS:
            _count(data, limit)
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, object_pairs_hook=_unique, ext_hook=_no_extension,
            max_array_len=limit, max_map_len=limit, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise DamagedTrace(
            f"{name} holds metadata that cannot be read: {error or type(error).__name__}."
        ) from error


def as_text(value: Any) -> str:
    """``value`` if it is a text.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} where a text belongs")
    return value


def as_place(value: Any) -> int:
    """``value`` if it is a place in a list or a count.

    Raises:
        ValueError: it is not.
    """
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("something else where a place or a count belongs")
    return value


# Widths in bytes of the objects that have a fixed one, by their first byte; the others say theirs.
_FIXED = [0] * 256
for _first in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
    _FIXED[_first] = 1
for _first in range(32):
    _FIXED[0xA0 + _first] = 1 + _first  # short strings
for _width, _firsts in {2: b"\xcc\xd0", 3: b"\xcd\xd1", 5: b"\xce\xd2\xca", 9: b"\xcf\xd3\xcb"}.items():
    for _first in _firsts:
        _FIXED[_first] = _width
_U8, _U16, _U32 = (struct.Struct(f">{letter}") for letter in "BHI")
_BYTES = {0xD9: _U8, 0xC4: _U8, 0xDA: _U16, 0xC5: _U16, 0xDB: _U32, 0xC6: _U32}
_PARTS = {0xDC: (_U16, 1), 0xDD: (_U32, 1), 0xDE: (_U16, 2), 0xDF: (_U32, 2)}


def _count(data: bytes | memoryview, limit: int) -> None:
    """Raises ValueError if lists and maps claim more parts than there can be.

    Why not leave it to msgpack: it reserves memory for what a list claims, and nested lists can claim more each.
    """
    at, found, claimed, end = 0, 0, 1, len(data)
    while at < end and found < claimed:
        found += 1
        first = data[at]
        width = _FIXED[first]
        if width:
            at += width
        elif first in _BYTES:
            length = _BYTES[first]
            at += 1 + length.size + _said(length, data, at)
        else:
            head, parts = _claim(first, data, at)
            at += head
            claimed += parts
            if claimed > limit:
                raise ValueError(f"lists and maps claim more than {limit} parts")


def _claim(first: int, data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Bytes of a list's or a map's head, and how many objects follow it."""
    if first < 0xA0:
        return 1, (first & 15) * (2 if first < 0x90 else 1)
    if first not in _PARTS:
        raise ValueError(f"byte {first:#x} starts nothing that is allowed")
    length, each = _PARTS[first]
    return 1 + length.size, each * _said(length, data, at)


def _said(length: struct.Struct, data: bytes | memoryview, at: int) -> int:
    if at + 1 + length.size > len(data):
        raise ValueError("it ends too early")
    found: int = length.unpack_from(data, at + 1)[0]
    return found


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


def decode_record(data: bytes, codec: int, size: int, name: str, most: int = MAX_RECORD) -> bytes:
    """The msgpack bytes of a record; ``most`` is how many there may be.

    Raises:
        DamagedTrace: the codec is unknown, or the payload has not the size that the header says.
    """
    if size > most:
        raise DamagedTrace(f"{name} declares a record of {size} bytes; the limit is {most}.")
    if codec == ZSTD:
        return decompress(data, size, name)
    if codec != RAW or len(data) != size:
        raise DamagedTrace(f"{name} holds a record of codec {codec} and {len(data)} bytes that declares {size}.")
    return data
