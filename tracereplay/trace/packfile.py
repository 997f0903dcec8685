"""A packed trace: one file of the same frames, to attach to a report or serve from a URL.

    pack    := MAGIC MANIFEST ( SEGMENT | REQUESTS )* END tail
    SEGMENT    its payload is a length (u16), a name, and a segment as it stands in a directory
    REQUESTS   the same of a file that says who asked (`requests`)

Segments are copied byte for byte, unless they shall be stored otherwise: compressed with more effort, or as the
difference from a base trace. What they hold, and with it the trace's digest, stays the same.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

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
from tracereplay.trace.requests import NAME as REQUESTS

__all__ = ["packed_parts", "write_pack"]

_NAME = struct.Struct("<H")
_BLOCK = 4 << 20
MANIFEST = (8 << 20, 64)  # bytes, decoded, in any case and for each byte stored
_HEAD = 256  # bytes: a SEGMENT frame's header and name


def write_pack(
    out: Path,
    manifest: Mapping[str, Any],
    segments: Mapping[str, File],
    requests: Mapping[str, File] | None = None,
) -> None:
    """Writes a trace as one file, which appears at ``out`` only when complete, and which only its owner may read.

    Args:
        out: path of the file; must not exist.
        manifest: what the file says of the run.
        segments: their bytes, by name.
        requests: the same of the files that say who asked.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f"{out.name}.partial", delete=False) as file:
            try:
                _write(file.file.fileno(), write_manifest(manifest), segments, requests or {})
                os.link(file.name, out)  # fails if something has come to be there
            finally:
                os.unlink(file.name)
    except OSError as error:
        raise UsageError(f"The packed trace {out} cannot be written: {error.strerror}.") from error


def _write(fd: int, manifest: bytes, segments: Mapping[str, File], requests: Mapping[str, File]) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(MAGIC)
        payload, codec = encode_record(manifest)
        digest = xxhash.xxh3_64_intdigest(payload)
        file.write(write_header(Tag.MANIFEST, codec, len(payload), len(manifest), digest) + payload)
        places: dict[str, list[tuple[str, int]]] = {"segments": _write_parts(file, Tag.SEGMENT, segments)}
        if requests:
            places["requests"] = _write_parts(file, Tag.REQUESTS, requests)
        end = file.tell()
        said = pack(places)
        file.write(write_header(Tag.END, 0, len(said), len(said), xxhash.xxh3_64_intdigest(said)) + said)
        file.write(write_tail(end))
        file.flush()
        os.fsync(fd)


def _write_parts(out: BinaryIO, kind: Tag, files: Mapping[str, File]) -> list[tuple[str, int]]:
    """Writes files as frames; returns their names and where their frames begin."""
    places = []
    for name, part in files.items():
        places.append((name, out.tell()))
        head = _NAME.pack(len(name.encode())) + name.encode()
        length = len(head) + part.size
        state = xxhash.xxh3_64(head)
        for block in _blocks(part):
            state.update(block)
        out.write(write_header(kind, 0, length, length, state.intdigest()) + head)
        for block in _blocks(part):
            out.write(block)
    return places


def _blocks(file: File) -> Iterator[bytes]:
    for start in range(0, file.size, _BLOCK):
        yield file.read(start, _BLOCK)


Parts = list[tuple[str, File]]


def packed_parts(file: File) -> tuple[dict[str, Any], Parts, Parts]:
    """The manifest of a packed trace, its segments, and the files that say who asked.

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
        said = unpack(record, file.name)
        places, asked = (
            [(str(name), int(offset)) for name, offset in part]
            for part in (said["segments"], said.get("requests", ()))
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedTrace(f"{file.name} holds an end mark that cannot be read: {error!r}.") from error
    if len({name for name, _ in asked}) < len(asked):
        raise DamagedTrace(f"{file.name} is damaged: its end mark names a part twice.")
    return (
        manifest,
        [(name, _part(file, name, offset, end, Tag.SEGMENT)) for name, offset in places],
        [(name, _part(file, name, offset, end, Tag.REQUESTS)) for name, offset in asked],
    )


_NAMED = {
    Tag.SEGMENT: (SEGMENT, "segment", "record-rank0.seg"),
    Tag.REQUESTS: (REQUESTS, "part", "requests-0.req"),
}


def _part(file: File, name: str, offset: int, end: int, kind: Tag) -> File:
    """A file in a pack. Its own frames have checksums; that of the whole is for `verify`."""
    pattern, word, like = _NAMED[kind]
    if pattern.fullmatch(name) is None:
        raise DamagedTrace(f"{file.name} holds a {word} named {name!r}; they are named like {like}.")
    head = _NAME.pack(len(name.encode())) + name.encode()
    data = file.read(offset, HEADER_SIZE + len(head)) if 0 < offset < end else b""
    frame = frame_of(data, offset, file.name)
    if frame.kind != kind or data[HEADER_SIZE:] != head or frame.end > end or frame.length < len(head):
        raise DamagedTrace(f"{file.name} is damaged: there is no {word} {name!r} at byte {offset}.")
    return Window(file, frame.payload + len(head), frame.length - len(head), name)
