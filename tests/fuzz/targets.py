"""What the fuzzers call: each function takes any bytes, and raises only if the trace package is at fault.

container   a segment or a packed file: as it is, with its checksums mended, or a known one with some bytes changed
codec       a chunk as it is stored, and tensors that are stored and read again
msgpack     a record, read as each kind of record; and as a manifest
"""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack as reference
import xxhash

from tracereplay.dtypes import DTYPES, itemsize
from tracereplay.errors import DamagedTrace, TraceError
from tracereplay.event import Site, Step
from tracereplay.storage.files import File
from tracereplay.trace import SegmentReader, codec, plain
from tracereplay.trace.arrays import restore
from tracereplay.trace.chunk import ChunkBuilder
from tracereplay.trace.difference import difference, restored
from tracereplay.trace.digest import content_digest
from tracereplay.trace.forms import Forms
from tracereplay.trace.frames import HEADER_SIZE, MAGIC, write_header
from tracereplay.trace.manifest import read_manifest
from tracereplay.trace.packfile import packed_parts
from tracereplay.trace.plain import pack, unpack
from tracereplay.trace.records import read_step
from tracereplay.trace.requests import read_identities, record_of

sys.path.insert(0, str(Path(__file__).parents[2] / "fixtures"))

from make_hostile import Segment, step, value

__all__ = ["TARGETS", "bounded"]

SECONDS, BYTES = 1.0, 500 << 20


class Memory:
    """Bytes as a file."""

    def __init__(self, data: bytes) -> None:
        self.name = "fuzzed.seg"
        self.size = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        return self._data[offset : offset + max(0, length)]

    def close(self) -> None:
        """Nothing is held open."""


# -- the container ------------------------------------------------------------------------------------------------


def container(data: bytes) -> None:
    """The first byte chooses how the rest is understood."""
    kind, rest = data[:1], data[1:]
    if kind == b"m":
        read_all(Memory(mended(rest)))
    elif kind == b"e":
        edited(rest)
    elif kind == b"p":
        read_pack(Memory(mended(rest)))
    else:
        read_all(Memory(rest))


def read_all(file: File) -> None:
    """Everything that a reader does with a segment, or with a file that says who asked."""
    try:
        for identity in read_identities(file).values():
            assert record_of(identity)["id"] == identity.id
    except TraceError:
        pass
    try:
        segment = SegmentReader(file)
        for moment in segment.steps():
            for call in moment.calls:
                values = [*call.inputs, *call.outputs, *call.written.values()]
                for found in values:
                    assert len(found.load()) == found.numpy().nbytes
                restore(values)
        for record in segment.records():
            assert len(record.form.calls) == len(record.form.sites)
        assert segment.outline().steps == len(segment)
        content_digest(segment)
    except TraceError:
        return


def read_pack(file: File) -> None:
    try:
        _, parts, asked = packed_parts(file)
    except TraceError:
        return
    for name, part in (*parts, *asked):
        assert "/" not in name
        read_all(part)


def mended(data: bytes) -> bytes:
    """A segment whose frames have the checksums that their bytes ask for: else nearly every input ends there."""
    out, at = bytearray(MAGIC), len(MAGIC)
    while at + HEADER_SIZE <= len(data):
        kind, codec_id = data[at], data[at + 1]
        length = int.from_bytes(data[at + 4 : at + 12], "little")
        size = int.from_bytes(data[at + 12 : at + 20], "little")
        payload = data[at + HEADER_SIZE : at + HEADER_SIZE + length]
        out += write_header(kind, codec_id, length, size, xxhash.xxh3_64_intdigest(payload)) + payload
        at += HEADER_SIZE + length
    return bytes(out) + data[at:]


@functools.cache
def known() -> tuple[bytes, list[Any]]:
    """A segment, and what it holds."""
    segment = Segment()
    for number in range(3):
        segment.chunk()
        segment.step(
            step([value(chunk=number), value([2], chunk=number, strides=[2], strided=True)], number=number)
        )
    data = segment.close()
    return data, [_told(found) for found in SegmentReader(Memory(data)).steps()]


def _told(found: Step) -> Any:
    calls = [
        (c.site, c.number, [v.load() for v in (*c.inputs, *c.outputs)], c.rows_in.tobytes()) for c in found.calls
    ]
    return found.number, found.rows.tobytes(), calls, found.sampled, found.notes


def edited(edits: bytes) -> None:
    """The known segment with some bytes changed gives its first steps or is refused: never another value."""
    data, steps = known()
    changed = bytearray(data)
    for at in range(0, len(edits) - 2, 3):
        changed[int.from_bytes(edits[at : at + 2], "little") % len(changed)] ^= edits[at + 2]
    try:
        found = [_told(s) for s in SegmentReader(Memory(bytes(changed))).steps()]
    except TraceError:
        return
    assert found == steps[: len(found)]


# -- codecs -------------------------------------------------------------------------------------------------------


def chunks(data: bytes) -> None:
    """A chunk as it is stored; or, with a high first byte, tensors that must come back."""
    if data[:1] >= b"\x80":
        _roundtrip(data)
        return
    size = int.from_bytes(data[1:5], "little") % (1 << 25)
    try:
        chunk, entries = codec.decode_chunk(data[5:], data[0] if data else 0, size, "fuzzed.seg", _base)
    except DamagedTrace:
        return
    assert chunk.nbytes == size
    assert all(0 <= e.start <= e.end <= size for e in entries)


def _base(segment: str, chunk: int, number: int) -> bytes:
    if segment != "record-rank0.seg" or chunk or number:
        raise DamagedTrace("The base has no such tensor.")
    return b"0123456789abcdef"


def _roundtrip(data: bytes) -> None:
    builder, given, at = ChunkBuilder(), [], 2
    names = sorted(DTYPES)
    while at + 2 < len(data):
        dtype = names[data[at] % len(names)]
        length = data[at + 1] // itemsize(dtype) * itemsize(dtype)
        content = data[at + 2 : at + 2 + length]
        content = content[: len(content) // itemsize(dtype) * itemsize(dtype)]
        builder.add(dtype, (len(content) // itemsize(dtype),), content)
        given.append((dtype, content))
        at += 2 + length
    codec_id = codec.CHUNK_CODECS[data[1] % 3] if len(data) > 1 else codec.RAW
    start, buffers = builder.take()
    size = len(start) + sum(len(part) for _, part in buffers)
    stored = b"".join(bytes(piece) for piece in codec.Encoder(codec_id, 3).encode(start, buffers))
    chunk, entries = codec.decode_chunk(stored, codec_id, size, "fuzzed.seg")
    assert [bytes(chunk[e.start : e.end]) for e in entries] == [content for _, content in given]
    for dtype, content in given:
        other = content[::-1]
        folded = difference(content, other, dtype).tobytes()
        assert restored(folded, other, dtype).tobytes() == content


# -- msgpack ------------------------------------------------------------------------------------------------------


def records(data: bytes) -> None:
    """A record: what is read is what msgpack reads, and every kind of record is read or refused."""
    try:
        found = unpack(data, "fuzzed.seg")
    except DamagedTrace:
        found = None
    else:
        assert repr(found) == repr(reference.unpackb(data, strict_map_key=False))
        assert repr(unpack(pack(found), "again.seg")) == repr(found)
        plain._count(data, len(data))  # which unpack leaves out for short records
    for read in (_as_step, _as_parts, _as_sites, functools.partial(read_manifest, data, "manifest.json")):
        try:
            read() if isinstance(read, functools.partial) else read(found)
        except TraceError:
            continue


def _as_step(found: Any) -> None:
    if isinstance(found, dict):
        step = read_step(found, {77: "model.norm"}, lambda located: b"", lambda values: None)
        for call in step.calls:
            hash((call.site, call.number))
        for kernel in step.kernels:
            hash((kernel.site, kernel.name))


def _as_parts(found: Any) -> None:
    """A step by its form; as a form too, if it names one."""
    if isinstance(found, dict):
        forms = Forms({77: "model.norm"}, lambda number: (found, 1))
        record = forms.read(0, found, 0)
        assert record.size >= 0
        assert len(pack(forms.whole(found)[0])) > 0


def _as_sites(found: Any) -> None:
    segment = SegmentReader.__new__(SegmentReader)
    segment.name, segment.sites, segment._names = "fuzzed.seg", {}, {}
    if isinstance(found, list):
        segment._add_sites(found)
        assert all(isinstance(site, Site) for site in segment.sites.values())


# -- the harness --------------------------------------------------------------------------------------------------


TARGETS: Mapping[str, Callable[[bytes], None]] = {"container": container, "codec": chunks, "msgpack": records}


def bounded(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The target, which fails too if it takes more than a second of processor time or 500 MB."""

    def run(data: bytes) -> None:
        begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        target(data)
        seconds = time.process_time() - begun
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if seconds > SECONDS or grown > BYTES:
            raise AssertionError(f"{len(data)} bytes took {seconds:.2f} s and {grown >> 20} MiB")

    return run
