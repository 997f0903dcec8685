"""A packed trace: one file of the same frames, to attach to a report or serve from a URL.

    pack    := MAGIC MANIFEST SEGMENT* END tail
    SEGMENT    its payload is a length (u16), a name, and a segment as it stands in a directory

Segments are copied byte for byte, unless they shall be stored otherwise: compressed with more effort, or as the
difference from a base trace. What they hold, and with it the trace's digest, stays the same.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.errors import DamagedTrace, NotATrace, UsageError
from tracereplay.storage.files import File, Window
from tracereplay.trace.directory import SEGMENT
from tracereplay.trace.frames import (
    HEADER_SIZE,
    MAGIC,
    Tag,
    check_magic,
    end_of,
    fetch,
    frame_of,
    write_header,
    write_tail,
)
from tracereplay.trace.manifest import MAX_MANIFEST, read_manifest, write_manifest
from tracereplay.trace.plain import decode_record, encode_record, pack, unpack

__all__ = ["packed_parts", "write_pack"]

_NAME = struct.Struct("<H")
_BLOCK = 4 << 20
MANIFEST = (8 << 20, 64)  # bytes, decoded, in any case and for each byte stored
_HEAD = 256  # bytes: a SEGMENT frame's header and name


def write_pack(out: Path, manifest: Mapping[str, Any], segments: Mapping[str, File]) -> None:
    """Writes a trace as one file, which appears at ``out`` only when complete, and which only its owner may read.

    Args:
        out: path of the file; must not exist.
        manifest: what the file says of the run.
        segments: their bytes, by name.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f"{out.name}.partial", delete=False) as file:
            try:
                _write(file.file.fileno(), write_manifest(manifest), segments)
                os.link(file.name, out)  # fails if something has come to be there
            finally:
                os.unlink(file.name)
    except OSError as error:
        raise UsageError(f"The packed trace {out} cannot be written: {error.strerror}.") from error


def _write(fd: int, manifest: bytes, segments: Mapping[str, File]) -> None:
    places = []
    with open(fd, "wb", closefd=False) as file:
        file.write(MAGIC)
        payload, codec = encode_record(manifest)
        digest = xxhash.xxh3_64_intdigest(payload)
        file.write(write_header(Tag.MANIFEST, codec, len(payload), len(manifest), digest) + payload)
        for name, segment in segments.items():
            places.append((name, file.tell()))
            head = _NAME.pack(len(name.encode())) + name.encode()
            length = len(head) + segment.size
            state = xxhash.xxh3_64(head)
            for block in _blocks(segment):
                state.update(block)
            file.write(write_header(Tag.SEGMENT, 0, length, length, state.intdigest()) + head)
            for block in _blocks(segment):
                file.write(block)
        end = file.tell()
        said = pack({"segments": places})
        file.write(write_header(Tag.END, 0, len(said), len(said), xxhash.xxh3_64_intdigest(said)) + said)
        file.write(write_tail(end))
        file.flush()
        os.fsync(fd)


def _blocks(file: File) -> Iterator[bytes]:
    for start in range(0, file.size, _BLOCK):
        yield file.read(start, _BLOCK)


def packed_parts(file: File) -> tuple[dict[str, Any], list[tuple[str, File]]]:
    """The manifest and the segments of a packed trace.

    Raises:
        NotATrace: it is another kind of file.
        DamagedTrace: it is damaged or truncated.
    """
    check_magic(file)
    try:
        frame, payload = fetch(file, len(MAGIC), 16 << 10, Tag.MANIFEST)
    except DamagedTrace as error:
        raise NotATrace(f"{file.name} is not a packed trace: {error}") from error
    limit = min(MAX_MANIFEST, MANIFEST[0] + MANIFEST[1] * frame.length)
    if frame.size > limit:
        raise DamagedTrace(f"{file.name} declares a manifest of {frame.size} bytes; the limit is {limit}.")
    data = decode_record(payload, frame.codec, frame.size, file.name, most=limit)
    manifest = read_manifest(data, f"{file.name}'s manifest")
    end = end_of(file)
    if end is None:
        raise DamagedTrace(f"{file.name} is damaged: it is truncated; a packed trace ends with an end mark.")
    frame, payload = fetch(file, end, 4 << 10, Tag.END)
    try:
        record = decode_record(payload, frame.codec, frame.size, file.name, most=1 << 20)
        places = [(str(name), int(offset)) for name, offset in unpack(record, file.name)["segments"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedTrace(f"{file.name} holds an end mark that cannot be read: {error!r}.") from error
    return manifest, [(name, _part(file, name, offset, end)) for name, offset in places]


def _part(file: File, name: str, offset: int, end: int) -> File:
    """A segment in a pack. Its own frames have checksums; that of the whole is for `verify`."""
    if SEGMENT.fullmatch(name) is None:
        raise DamagedTrace(f"{file.name} holds a segment named {name!r}; they are named like record-rank0.seg.")
    head = _NAME.pack(len(name.encode())) + name.encode()
    data = file.read(offset, HEADER_SIZE + len(head)) if 0 < offset < end else b""
    frame = frame_of(data, offset, file.name)
    if frame.kind != Tag.SEGMENT or data[HEADER_SIZE:] != head or frame.end > end or frame.length < len(head):
        raise DamagedTrace(f"{file.name} is damaged: there is no segment {name!r} at byte {offset}.")
    return Window(file, frame.payload + len(head), frame.length - len(head), name)
