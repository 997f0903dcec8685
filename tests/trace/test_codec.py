"""Every codec gives back every bit of every dtype, and refuses what it did not make."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from tracereplay.dtypes import DTYPES, itemsize
from tracereplay.errors import DamagedTrace
from tracereplay.trace import codec, plain
from tracereplay.trace.chunk import Bytes, ChunkBuilder, read_header
from tracereplay.trace.codec import (
    CHUNK_CODECS,
    DELTA,
    MAX_CHUNK,
    PLANES,
    RAW,
    ROWS,
    STRONG,
    Encoder,
    decode_chunk,
)
from tracereplay.trace.difference import MAX_SPANS, Span, difference, restored


def filled(tensors: list[tuple[str, bytes]]) -> tuple[bytes, list[tuple[int, Bytes]]]:
    builder = ChunkBuilder()
    for dtype, data in tensors:
        builder.add(dtype, (len(data) // itemsize(dtype),), data)
    return builder.take()


def stored(tensors: list[tuple[str, bytes]], codec_id: int) -> tuple[bytes, int]:
    start, buffers = filled(tensors)
    size = len(start) + sum(len(data) for _, data in buffers)
    bases = [None] * len(tensors) if codec_id in (DELTA, ROWS) else ()
    written = ROWS if codec_id == DELTA else codec_id  # the same without bases; nobody writes DELTA
    return b"".join(bytes(p) for p in Encoder(written, 3).encode(start, buffers, bases)), size


def read(data: bytes, codec_id: int, size: int) -> list[bytes]:
    chunk, entries = decode_chunk(data, codec_id, size, "a.seg")
    return [bytes(chunk[e.start : e.end]) for e in entries]


tensors_of_any_dtype = st.lists(
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda dtype: st.tuples(
            st.just(dtype),
            st.integers(0, 40).flatmap(
                lambda n: st.binary(min_size=n * itemsize(dtype), max_size=n * itemsize(dtype))
            ),
        )
    ),
    max_size=6,
)


@pytest.mark.parametrize("codec_id", CHUNK_CODECS)
@given(tensors=tensors_of_any_dtype)
def test_stored_tensors_read_back_unchanged(codec_id: int, tensors: list[tuple[str, bytes]]) -> None:
    if tensors:
        assert read(*_with(stored(tensors, codec_id), codec_id)) == [data for _, data in tensors]


def _with(found: tuple[bytes, int], codec_id: int) -> tuple[bytes, int, int]:
    return found[0], codec_id, found[1]


@pytest.mark.parametrize("codec_id", [PLANES, STRONG])
def test_large_tensors_round_trip_and_floats_are_compressed(codec_id: int) -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    given_tensors = [("bfloat16", bf16), ("float32", values.tobytes()), ("int64", np.arange(5000).tobytes())]
    data, size = stored(given_tensors, codec_id)
    assert read(data, codec_id, size) == [data for _, data in given_tensors]
    assert len(data) < size / 1.15
    alone = stored(given_tensors[:1], codec_id)
    assert len(alone[0]) < alone[1] / 1.35


def test_a_chunk_is_a_safetensors_file() -> None:
    names = [
        name for name, known in DTYPES.items() if known.safetensors in ("F32", "F16", "I64", "U8", "BOOL", "C64")
    ]
    given_tensors = [(dtype, bytes(3 * itemsize(dtype))) for dtype in [*names, "float8_e4m3fnuz"]]
    data, _ = stored(given_tensors, RAW)
    found = load(data)
    assert {int(k): v.nbytes for k, v in found.items()} == {i: len(d) for i, (_, d) in enumerate(given_tensors)}


@given(dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 1000), size=st.integers(0, 50))
def test_a_difference_is_undone_for_every_bit_pattern(dtype: str, seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    data, base = random.bytes(size * itemsize(dtype)), random.bytes(size * itemsize(dtype))
    assert restored(difference(data, base, dtype).tobytes(), base, dtype).tobytes() == data


@pytest.mark.parametrize(("value", "units"), [(1.0, 0), (1.0 + 2**-7, 2), (1.0 - 2**-8, 1), (1.0 + 2**-6, 4)])
def test_a_difference_counts_units_in_the_last_place(value: float, units: int) -> None:
    one, other = (
        (np.array([x], np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes() for x in (1.0, value)
    )
    assert difference(other, one, "bfloat16").view(np.uint16).tolist() == [units]


def test_a_difference_across_zero_is_small() -> None:
    tiny = np.array([2**-149], np.float32)
    folded = difference((-tiny).tobytes(), tiny.tobytes(), "float32").view(np.uint32)
    assert folded.tolist() == [5]  # three units down: -0 lies between


BASE = {("a.seg", 0, 0): bytes(range(12)), ("b.seg", 3, 1): bytes(range(100, 120))}


def from_base(spans: list[Span], data: bytes, dtype: str = "uint16") -> bytes:
    """A tensor that is stored as its difference from spans of `BASE`, read again."""
    start, _ = filled([(dtype, data)])
    whole = {(p.segment, p.chunk, p.tensor): BASE[p.segment, p.chunk, p.tensor] for p in spans if p.segment}
    parts = [whole[p[1:4]][p.first : p.first + p.size] if p.segment else bytes(p.size) for p in spans]
    folded = difference(data, b"".join(parts), dtype).tobytes()
    parts_stored = Encoder(ROWS, 3).encode(start, [(2, folded)], [spans])
    read_again, entries = decode_chunk(
        b"".join(parts_stored), ROWS, len(start) + len(data), "c.seg", lambda *key: BASE[key]
    )
    return bytes(read_again[entries[0].start : entries[0].end])


def test_a_tensor_is_stored_as_its_difference_from_spans_of_several() -> None:
    spans = [Span(4, "b.seg", 3, 1, 6), Span(2), Span(6, "a.seg", 0, 0, 6), Span(2, "b.seg", 3, 1, 18)]
    assert from_base(spans, b"fourteen bytes") == b"fourteen bytes"


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([["a.seg", 0, 0, 9, 4]], "from bytes 9 to 13 of a tensor in its base that has 12"),
        ([["a.seg", 0, 0, 0, 3]], "a tensor of 4 bytes as a difference from 3 of its base"),
        ([["a.seg", 0, 0, 0, 4], [2]], "a tensor of 4 bytes as a difference from 6 of its base"),
        ([["a.seg", 0, 0, -1, 4]], "where a whole number belongs"),
        ([["a.seg", 0, 0, 0, 5], [-1]], "where a whole number belongs"),
        ([[4.0]], "where a whole number belongs"),
        ([["", 0, 0, 0, 4]], "where the name of a segment belongs"),
        ([[7, 0, 0, 0, 4]], "where the name of a segment belongs"),
        ([["a.seg", 0, 0, 4]], "not enough values"),
        ([[]], "not enough values"),
        ([4], "cannot be read"),
        (["abcd"], "cannot be read"),
        ({"0": 4}, "cannot be read"),
        ([[1]] * (MAX_SPANS + 1), f"{MAX_SPANS + 1} spans, and the limit is {MAX_SPANS}"),
    ],
)
def test_spans_that_are_no_part_of_the_base_are_refused(spans: object, words: str) -> None:
    start, buffers = filled([("uint8", bytes(4)), ("uint8", bytes(1 << 17))])
    encoded = Encoder(ROWS, 3).encode(start, buffers, [[Span(4)], None])
    streams = _restreamed(b"".join(bytes(p) for p in encoded), 1, json.dumps([spans, None]).encode())
    with pytest.raises(DamagedTrace, match=words):
        decode_chunk(streams, ROWS, len(start) + 4 + (1 << 17), "c.seg", lambda *key: BASE[key])


def _restreamed(data: bytes, number: int, stream: bytes) -> bytes:
    """A stored chunk with another stream in the place of its stream ``number``."""
    count = struct.unpack_from("<I", data)[0]
    lengths = [list(struct.unpack_from("<II", data, 4 + 8 * i)) for i in range(count)]
    at = [4 + 8 * count + sum(stored for stored, _ in lengths[:i]) for i in range(count + 1)]
    parts = [data[at[i] : at[i + 1]] for i in range(count)]
    parts[number], lengths[number] = stream, [len(stream), len(stream)]
    return struct.pack("<I", count) + b"".join(struct.pack("<II", *n) for n in lengths) + b"".join(parts)


def test_each_chunk_of_the_base_is_asked_for_once_in_a_row() -> None:
    """However spans alternate between the base's chunks: a chunk is decoded when it is asked for."""
    start, _ = filled([("uint8", bytes(4000))])
    spans = [Span(1, "a.seg", chunk, 0) for _ in range(1000) for chunk in range(4)]
    asked: list[int] = []

    def base(_: str, chunk: int, __: int) -> bytes:
        asked.append(chunk)
        return b"\0"

    data = b"".join(bytes(p) for p in Encoder(ROWS, 3).encode(start, [(1, bytes(4000))], [spans]))
    with pytest.raises(DamagedTrace, match="not as long as it says"):  # the list may not be longer than the chunk
        decode_chunk(data, ROWS, len(start) + 4000, "c.seg", base)
    spans = [Span(100, "a.seg", chunk, 0) for _ in range(10) for chunk in range(4)]
    data = b"".join(bytes(p) for p in Encoder(ROWS, 3).encode(start, [(1, bytes(4000))], [spans]))
    decode_chunk(data, ROWS, len(start) + 4000, "c.seg", lambda *key: base(*key) * 100)
    assert asked == sorted(asked)
    assert len(asked) == 40


@given(data=st.binary(max_size=300), codec_id=st.sampled_from(CHUNK_CODECS), size=st.integers(0, 2000))
def test_any_bytes_are_read_or_refused(data: bytes, codec_id: int, size: int) -> None:
    try:
        read(data, codec_id, size)
    except DamagedTrace:
        return
    assert codec_id in CHUNK_CODECS  # by chance it was a chunk


@pytest.mark.parametrize("codec_id", [PLANES, DELTA, ROWS, RAW])
def test_any_changed_byte_of_a_chunk_is_read_or_refused(codec_id: int) -> None:
    """The frame's checksum is not looked at here: what passes it by accident must still not crash a reader."""
    data, size = stored([("bfloat16", bytes(range(40))), ("int64", bytes(16)), ("uint8", b"abc")], codec_id)
    refused = 0
    for at in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            bad = bytearray(data)
            bad[at] ^= change
            try:
                read(bytes(bad), codec_id, size)
            except DamagedTrace:
                refused += 1
    assert refused > 0


def test_a_declared_bomb_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(DamagedTrace, match="the limit is"):
        decode_chunk(b"", PLANES, MAX_CHUNK + 1, "bomb.seg")
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    with pytest.raises(DamagedTrace, match="declares 16777216 bytes, not 10"):
        codec.decompress(bomb, 10, "bomb.seg")
    with pytest.raises(DamagedTrace, match="the limit is"):
        plain.decode_record(b"", codec.ZSTD, plain.MAX_RECORD + 1, "bomb.seg")


def test_a_frame_without_its_size_is_refused() -> None:
    sink = io.BytesIO()
    with zstandard.ZstdCompressor(write_content_size=False).stream_writer(sink, closefd=False) as writer:
        writer.write(bytes(1 << 20))
    with pytest.raises(DamagedTrace, match="declares"):
        codec.decompress(sink.getvalue(), 1 << 20, "bomb.seg")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ([["U8", [4], [0, 4]], ["U8", [4], [2, 6]]], "overlap"),
        ([["U8", [4], [4, 8]]], "overlap or leave a gap"),
        ([["U8", [99], [0, 4]]], "does not take 4 bytes"),
        ([["U8", [-4], [0, 4]]], "not a whole number"),
        ([["U9", [4], [0, 4]]], "cannot be read"),
        ([["F64", [2**40, 2**40], [0, 2**83]]], "not a whole number"),
        ([["F64", [2**20, 2**20], [0, 2**43]]], "end at"),
        ([["U8", [1] * 40, [0, 1]]], "a tensor of 40 dimensions"),
        ([], "tensors end at"),
    ],
)
def test_a_chunk_whose_tensors_do_not_fit_is_refused(header: list[list[object]], words: str) -> None:
    entries = {str(i): dict(zip(("dtype", "shape", "data_offsets"), e, strict=True)) for i, e in enumerate(header)}
    text = json.dumps(entries).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(8)
    with pytest.raises(DamagedTrace, match=words):
        read_header(data, len(data), "a.seg")


def test_metadata_is_read_strictly() -> None:
    with pytest.raises(DamagedTrace, match="same key twice"):
        plain.unpack(b"\x82\xa1a\x01\xa1a\x02", "twice.seg")
    with pytest.raises(DamagedTrace, match="cannot be read"):
        plain.unpack(msgpack.packb(msgpack.ExtType(5, b"x")), "ext.seg")
    for deep in (b"\x91" * 100_000, b"\x81" * 5000, b"\x91" * 2000 + b"\xc0"):
        with pytest.raises(DamagedTrace, match="cannot be read"):
            plain.unpack(deep, "deep.seg")
    with pytest.raises(DamagedTrace, match="cannot be read"):
        plain.unpack(b"\xdd\xff\xff\xff\xff", "long.seg")
    with pytest.raises(DamagedTrace, match="cannot be read"):
        plain.unpack(b"\x01\x02", "two.seg")


@given(data=st.binary(max_size=200))
def test_any_metadata_is_read_or_refused(data: bytes) -> None:
    try:
        plain.unpack(data, "a.seg")
    except DamagedTrace as error:
        assert str(error).startswith("a.seg holds metadata")  # noqa: PT017


def test_no_trace_module_can_unpickle() -> None:
    folder = Path(codec.__file__).parent
    sources = "".join(p.read_text() for p in [*folder.glob("*.py"), *(folder.parent / "storage").glob("*.py")])
    for word in ("pickle", "eval(", "exec(", "np.load(", "allow_pickle", "yaml", "marshal", "torch.load"):
        assert word not in sources
