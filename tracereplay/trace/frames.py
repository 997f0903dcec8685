"""Frames: the checksummed pieces that a segment file is made of.

    segment := MAGIC frame*
    frame   := header payload

The header is 24 bytes, little-endian: kind u8, codec u8, reserved u16, payload length u64, xxh3-64 of the
payload u64, xxh32 of the 20 bytes before it u32.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

import xxhash

from tracereplay.errors import DamagedTrace, NotATrace

__all__ = ["MAGIC", "Frame", "Kind", "read_payload", "scan", "write_frame"]

MAGIC = b"\x93TRACE\r\n"
_HEADER = struct.Struct("<BBHQQ")
_CHECK = struct.Struct("<I")
HEADER_SIZE = _HEADER.size + _CHECK.size


class Kind(IntEnum):
    """What a frame holds. Readers skip kinds they do not know."""

    META = 1
    SITES = 2
    DATA = 3
    STEP = 4
    END = 5


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header and where its payload lies.

    Args:
        kind: a `Kind`, or a number from a later version.
        codec: how the payload is encoded (`codec.py`).
        offset: of the payload in the file, bytes.
        length: of the payload, bytes.
        digest: xxh3-64 of the payload.
    """

    kind: int
    codec: int
    offset: int
    length: int
    digest: int


def write_frame(kind: Kind, payload: bytes | memoryview, codec: int = 0) -> tuple[bytes, bytes | memoryview]:
    """The header and payload to append to a segment."""
    head = _HEADER.pack(kind, codec, 0, len(payload), xxhash.xxh3_64_intdigest(payload))
    return head + _CHECK.pack(xxhash.xxh32_intdigest(head)), payload


def scan(file: BinaryIO, name: str) -> Iterator[Frame]:
    """The frames of a segment up to its end or to a torn last frame.

    Raises:
        NotATrace: the file does not begin with the magic bytes.
        DamagedTrace: a frame header is not what was written.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(len(MAGIC))
    if magic != MAGIC[: len(magic)] or not magic:
        raise NotATrace(f"{name} is not a trace segment: it begins with {magic!r}, not {MAGIC!r}.")
    offset = len(MAGIC)
    while offset + HEADER_SIZE <= size:
        file.seek(offset)
        frame = _read_header(file.read(HEADER_SIZE), offset, name)
        if frame.offset + frame.length > size:
            return  # torn by the end of the recording; what came before it stands
        yield frame
        offset = frame.offset + frame.length


def _read_header(data: bytes, offset: int, name: str) -> Frame:
    (check,) = _CHECK.unpack_from(data, _HEADER.size)
    if xxhash.xxh32_intdigest(data[: _HEADER.size]) != check:
        raise DamagedTrace(f"{name} is damaged: the frame header at byte {offset} fails its checksum.")
    kind, codec, _, length, digest = _HEADER.unpack_from(data)
    return Frame(kind, codec, offset + HEADER_SIZE, length, digest)


def read_payload(file: BinaryIO, frame: Frame, name: str) -> bytes:
    """A frame's payload as stored.

    Raises:
        DamagedTrace: the bytes fail their checksum.
    """
    file.seek(frame.offset)
    payload = file.read(frame.length)
    if len(payload) != frame.length or xxhash.xxh3_64_intdigest(payload) != frame.digest:
        raise DamagedTrace(f"{name} is damaged: the frame at byte {frame.offset} fails its checksum.")
    return payload
