"""What the second reader finds in the fixtures is what their JSON twins say."""

from __future__ import annotations

import json
import shutil
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import xxhash
from second_reader import Call, DamagedError, Frame, Segment, Trace, Value, frames

ABOVE = Path(__file__).parents[2] / "fixtures"
ALL = ABOVE if ABOVE.exists() else Path(__file__).parent
FIXTURES = ALL / "format-2"
GOLDEN = FIXTURES / "golden.trace"
SEGMENT = "record-rank0.seg"
VERSIONS = [ALL / "format-1", ALL / "format-2"]


def text_of(segment: Segment, value: Value) -> str:
    """A value in the words of the twins."""
    lies = [value.shape, value.strides, value.memory, value.start, value.version]
    return f"{value.dtype} {lies} {xxhash.xxh3_128_hexdigest(segment.content(value))}"


def call_of(segment: Segment, call: Call) -> list[Any]:
    """A call in the words of the twins."""
    inputs, outputs = ([text_of(segment, value) for value in values] for values in (call.inputs, call.outputs))
    written = [[index, text_of(segment, value)] for index, value in call.written]
    return [call.site, call.number, inputs, outputs, written, len(call.rows_in), len(call.rows_out)]


def steps_of(segment: Segment) -> list[dict[str, Any]]:
    """The steps of a segment in the words of the twins."""
    return [
        {key: step[key] for key in ("number", "notes", "sampled", "weights", "requests")}
        | {"rows": step["rows"].tolist(), "calls": [call_of(segment, call) for call in step["calls"]]}
        for step in segment.steps()
    ]


def found(trace: Trace) -> dict[str, Any]:
    """A trace in the words of the twins."""
    segments = {f"{segment.key[0]} {segment.key[1]}": steps_of(segment) for segment in trace.segments}
    return {"complete": trace.complete, "digest": trace.digest(), "segments": segments}


def twin(name: str, folder: Path = FIXTURES) -> dict[str, Any]:
    """What a fixture's twin says."""
    return json.loads((folder / f"{name}.json").read_text())


def altered(tmp_path: Path, data: bytes) -> Trace:
    """The golden trace with another segment."""
    copy = tmp_path / "copy.trace"
    copy.mkdir(exist_ok=True)
    shutil.copyfile(GOLDEN / "manifest.json", copy / "manifest.json")
    (copy / SEGMENT).write_bytes(data)
    return Trace(copy)


def flipped(data: bytes, place: int) -> bytes:
    """The bytes, one of them changed."""
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", ["golden", "cut", "corners", "ranks", "forms"])
def test_reads_a_directory(folder: Path, name: str) -> None:
    if (folder.name, name) != ("format-1", "forms"):
        assert found(Trace(folder / f"{name}.trace")) == twin(name, folder)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
@pytest.mark.parametrize(("name", "base"), [("candidate", "golden"), ("rows", "golden"), ("odd", "corners")])
def test_a_pack_of_differences_is_read_with_its_base(folder: Path, name: str, base: str) -> None:
    assert found(Trace(folder / f"{name}.pack", Trace(folder / f"{base}.trace"))) == twin(name, folder)


def test_differences_cannot_be_read_without_their_base() -> None:
    with pytest.raises(DamagedError, match="base"):
        found(Trace(FIXTURES / "candidate.pack"))
    with pytest.raises(DamagedError, match="another trace"):
        Trace(FIXTURES / "candidate.pack", Trace(FIXTURES / "corners.trace"))


def test_scanning_finds_the_same_frames_as_the_index(tmp_path: Path) -> None:
    """Without its tail, the segment is gone through, and all of it is found."""
    expected = twin("golden") | {"complete": False}
    assert found(altered(tmp_path, (GOLDEN / SEGMENT).read_bytes()[:-16])) == expected


def test_flipped_bits_in_frame_headers_are_noticed(tmp_path: Path) -> None:
    data = (GOLDEN / SEGMENT).read_bytes()
    for frame in frames(memoryview(data)):
        for place in range(frame.offset, frame.offset + 32):
            with pytest.raises(DamagedError, match="damaged"):
                Frame.at(memoryview(flipped(data, place)), frame.offset)
        with pytest.raises(DamagedError, match="damaged"):
            altered(tmp_path, flipped(data, frame.offset + 7)).digest()


def test_flipped_bits_in_a_payload_are_noticed(tmp_path: Path) -> None:
    data = (GOLDEN / SEGMENT).read_bytes()
    for frame in frames(memoryview(data)):
        for place in (frame.offset + 32, frame.end - frame.length // 2, frame.end - 1):
            with pytest.raises(DamagedError, match=r"payload at .* is damaged"):
                altered(tmp_path, flipped(data, place)).digest()


@pytest.mark.parametrize("place", [0, 7, -16, -9, -8, -1])
def test_flipped_bits_in_end_marks_are_noticed_or_harmless(tmp_path: Path, place: int) -> None:
    """A damaged magic or tail is noticed, if only by the trace not being complete."""
    data = (GOLDEN / SEGMENT).read_bytes()
    try:
        assert not altered(tmp_path, flipped(data, place % len(data))).complete
    except DamagedError:
        assert place < -8 or place >= 0


def test_flipped_bits_in_a_pack_are_noticed(tmp_path: Path) -> None:
    data = (FIXTURES / "candidate.pack").read_bytes()
    for place in range(0, len(data) - 8, 499):
        (tmp_path / "copy.pack").write_bytes(flipped(data, place))
        with pytest.raises(DamagedError):
            Trace(tmp_path / "copy.pack")


def test_flipped_bits_in_a_manifest_are_noticed(tmp_path: Path) -> None:
    trace = altered(tmp_path, (GOLDEN / SEGMENT).read_bytes())
    assert trace.complete
    path = tmp_path / "copy.trace" / "manifest.json"
    path.write_text(path.read_text().replace('"max_tokens": 3', '"max_tokens": 4', 1))
    with pytest.raises(DamagedError, match="manifest"):
        Trace(path.parent)


def test_a_truncated_segment_keeps_the_steps_before_the_cut(tmp_path: Path) -> None:
    """Wherever a segment is cut, the steps before the cut are found."""
    data = (GOLDEN / SEGMENT).read_bytes()
    all_steps = twin("golden")["segments"]["record 0"]
    ends = [frame.end for frame in frames(memoryview(data)) if frame.kind == 4]
    edges = [edge + by for edge in (0, 8, 40, *ends, len(data)) for by in (-1, 0, 1) if 0 <= edge + by < len(data)]
    for length in {*edges, *range(0, len(data), 2999)}:
        trace = altered(tmp_path, data[:length])
        whole = sum(end <= length for end in ends)
        assert not trace.complete
        assert steps_of(trace.segments[0]) == all_steps[:whole]
        trace.digest()


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    altered(tmp_path, b"")
    (tmp_path / "copy.trace" / "record-rank1.seg").symlink_to(GOLDEN / SEGMENT)
    with pytest.raises(DamagedError, match="symbolic"):
        Trace(tmp_path / "copy.trace")


def test_unknown_kinds_are_skipped_and_unknown_codecs_named(tmp_path: Path) -> None:
    data = (GOLDEN / SEGMENT).read_bytes()
    whole = list(frames(memoryview(data)))[:5]  # to the first step

    def foreign(kind: int, codec: int) -> bytes:
        head = struct.pack("<BBHQQQ", kind, codec, 0, 3, 3, xxhash.xxh3_64_intdigest(b"new"))
        return head + struct.pack("<I", xxhash.xxh32_intdigest(head)) + b"new"

    pieces = [bytes(data[:8]), *(bytes(data[one.offset : one.end]) for one in whole)]
    assert all(one.end == two.offset for one, two in pairwise(whole))
    trace = altered(tmp_path, b"".join((*pieces[:2], foreign(99, 77), *pieces[2:])))
    assert steps_of(trace.segments[0]) == twin("golden")["segments"]["record 0"][:1]
    with pytest.raises(DamagedError, match="codec 77"):
        altered(tmp_path, b"".join((*pieces, foreign(3, 77)))).digest()
