"""Frames: the checksummed pieces that a segment is made of. FORMAT.md has the table of bytes.

segment := MAGIC frame* [tail]
frame   := header payload
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import xxhash

from tracereplay.errors import DamagedTrace, NotATrace
from tracereplay.storage.files import File
from tracereplay.trace.sealed import SEALED, Seal, SealedFile

__all__ = [
    "HEADER_SIZE",
    "MAGIC",
    "TAIL_SIZE",
    "Frame",
    "Tag",
    "check_magic",
    "end_of",
    "fetch",
    "frame_of",
    "scan",
    "unlocked",
    "write_header",
    "write_tail",
]

MAGIC = b"\x93TRACE\r\n"
_HEADER = struct.Struct("<BBHQQQ")  # kind, codec, reserved, stored length, decoded size, xxh3-64 of the payload
_CHECK = struct.Struct("<I")  # xxh32 of the header before it
HEADER_SIZE = _HEADER.size + _CHECK.size
_TAIL = struct.Struct("<Q8s")  # where the END frame begins, and the magic bytes again
TAIL_SIZE = _TAIL.size
MAX_STORED = 80 << 20  # bytes of a payload that is read in one piece; chunks and records have limits below it


class Tag(IntEnum):
    """What a frame holds. Readers skip kinds they do not know."""

    META = 1
    SITES = 2
    DATA = 3
    STEP = 4
    INDEX = 5
    END = 6
    MANIFEST = 7
    SEGMENT = 8
    FORM = 9
    KEY = 10
    REQUEST = 11
    REQUESTS = 12


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header, and where it stands.

    Args:
        kind: a `Tag`, or a number from a later version.
        codec: how the payload is stored (`codec.py`).
        offset: of the header in the segment, bytes.
        length: of the payload as stored, bytes.
        size: of the payload decoded, bytes.
        digest: xxh3-64 of the payload as stored.
    """

    kind: int
    codec: int
    offset: int
    length: int
    size: int
    digest: int

    @property
    def payload(self) -> int:
        """Where the payload begins."""
        return self.offset + HEADER_SIZE

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.offset + HEADER_SIZE + self.length


def write_header(kind: int, codec: int, length: int, size: int, digest: int) -> bytes:
    """The 32 bytes before a payload; see `Frame`."""
    head = _HEADER.pack(kind, codec, 0, length, size, digest)
    return head + _CHECK.pack(xxhash.xxh32_intdigest(head))


def frame_of(data: bytes, offset: int, name: str) -> Frame:
    """The frame whose header ``data`` begins with.

    Raises:
        DamagedTrace: it is not what was written.
    """
    if len(data) < HEADER_SIZE:
        raise DamagedTrace(f"{name} is damaged: it ends inside the frame header at byte {offset}.")
    (check,) = _CHECK.unpack_from(data, _HEADER.size)
    if xxhash.xxh32_intdigest(data[: _HEADER.size]) != check:
        raise DamagedTrace(f"{name} is damaged: the frame header at byte {offset} fails its checksum.")
    kind, codec, _, length, size, digest = _HEADER.unpack_from(data)
    return Frame(kind, codec, offset, length, size, digest)


def write_tail(end: int) -> bytes:
    """The last bytes of a closed segment; ``end`` is where its END frame begins."""
    return _TAIL.pack(end, MAGIC)


def end_of(file: File) -> int | None:
    """Where the END frame of a closed segment begins; None if the segment was not closed."""
    if file.size < len(MAGIC) + TAIL_SIZE:
        return None
    offset, magic = _TAIL.unpack(file.read(file.size - TAIL_SIZE, TAIL_SIZE))
    within = len(MAGIC) <= offset <= file.size - TAIL_SIZE - HEADER_SIZE
    return offset if magic == MAGIC and within else None


def check_magic(file: File) -> None:
    """Raises NotATrace if the file does not begin with the magic bytes, as far as it goes."""
    magic = file.read(0, len(MAGIC))
    if magic != MAGIC[: len(magic)]:
        raise NotATrace(f"{file.name} is not a trace segment: it begins with {magic!r}, not {MAGIC!r}.")


def scan(file: File) -> Iterator[Frame]:
    """The frames of a segment, header by header, up to its end or to a torn last frame.

    Raises:
        NotATrace: the file does not begin with the magic bytes.
        DamagedTrace: a frame header is not what was written.
    """
    check_magic(file)
    offset = len(MAGIC)
    while offset + HEADER_SIZE <= file.size:
        frame = frame_of(file.read(offset, HEADER_SIZE), offset, file.name)
        if frame.end > file.size:
            return  # torn by the end of the recording; what came before it stands
        yield frame
        if frame.kind == Tag.END:
            return  # what follows is the tail
        offset = frame.end


def fetch(file: File, offset: int, length: int, kind: Tag) -> tuple[Frame, bytes]:
    """The frame of ``kind`` whose header begins at ``offset``, and its payload as stored, in one read.

    Of a sealed segment, the payload and its codec are those that were sealed.

    Args:
        file: the segment.
        offset: of the header, bytes.
        length: of the payload, as far as it is known; a guess costs at most a second read.
        kind: what is expected there.

    Raises:
        DamagedTrace: there is no such frame, or its bytes fail their checksum.
    """
    if not 0 <= offset <= file.size - HEADER_SIZE:
        raise DamagedTrace(f"{file.name} names a frame at byte {offset}; it has {file.size} bytes.")
    data = file.read(offset, HEADER_SIZE + min(length, MAX_STORED))
    frame = frame_of(data[:HEADER_SIZE], offset, file.name)
    if frame.kind != kind:
        raise DamagedTrace(f"{file.name} is damaged: the frame at byte {offset} is not a {kind.name} frame.")
    if frame.length > MAX_STORED:
        raise DamagedTrace(f"{file.name} holds a frame of {frame.length} bytes; the limit is {MAX_STORED}.")
    payload = data[HEADER_SIZE : HEADER_SIZE + frame.length]
    if len(payload) < frame.length:
        payload += file.read(offset + HEADER_SIZE + len(payload), frame.length - len(payload))
    if len(payload) != frame.length or xxhash.xxh3_64_intdigest(payload) != frame.digest:
        raise DamagedTrace(f"{file.name} is damaged: the frame at byte {frame.offset} fails its checksum.")
    if isinstance(file, SealedFile) and kind != Tag.KEY:
        if frame.codec != SEALED:
            raise DamagedTrace(f"{file.name} is encrypted, but its frame at byte {offset} is not.")
        codec, payload = file.seal.open(kind, offset, frame.size, payload, file.name)
        return replace(frame, codec=codec), payload
    return frame, payload


def unlocked(file: File) -> tuple[File, int]:
    """The segment as its frames can be read, and where its first one begins after the key, if it has one.

    Raises:
        UsageError: it is sealed, and this process has no key for it.
        DamagedTrace: its key is not what was written.
    """
    start = len(MAGIC)
    head = file.read(start, HEADER_SIZE)
    if len(head) < HEADER_SIZE or head[0] != Tag.KEY:
        return file, start
    frame = frame_of(head, start, file.name)
    if frame.end > file.size:
        return file, start  # torn: there is no frame
    _, wrapped = fetch(file, start, frame.length, Tag.KEY)
    return SealedFile(file, Seal.unwrapped(wrapped, file.name)), frame.end
