"""Limits are far from what recordings ask for: large and many tensors stay readable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tracereplay.errors import DamagedTrace
from tracereplay.event import Site, make_rows
from tracereplay.trace import PendingCall, SegmentReader, SegmentWriter, TensorBytes
from tracereplay.trace.chunk import MAX_TENSORS
from tracereplay.trace.plain import pack, unpack


def one_step(path: Path, tensors: list[TensorBytes]) -> SegmentReader:
    writer = SegmentWriter(path, {})
    writer.sites([Site("model.norm", "RMSNorm", 77)])
    rows = make_rows([(0, 0, 0)])
    writer.step(0, rows, [PendingCall(77, 0, rows, rows, dict(enumerate(tensors)))], [], [])
    writer.close({})
    return SegmentReader(path)


def test_a_large_tensor_of_zeros_is_read_from_a_small_file(tmp_path: Path) -> None:
    data = bytes(64 << 20)
    reader = one_step(tmp_path / "a.seg", [TensorBytes("uint8", (len(data),), (1,), data)])
    assert reader.file.size < 10_000
    assert reader.step(0).calls[0].inputs[0].load() == data


def test_many_small_tensors_are_spread_over_chunks(tmp_path: Path) -> None:
    numbers = np.arange(2 * MAX_TENSORS + 5, dtype=np.int32)
    reader = one_step(tmp_path / "a.seg", [TensorBytes("int32", (1,), (1,), n.tobytes()) for n in numbers])
    assert len(reader.index.chunks) == 3
    found = [value.load() for value in reader.step(0).calls[0].inputs]
    assert found == [n.tobytes() for n in numbers]


@pytest.mark.parametrize("length", [0, 15, 16, 31, 32, 255, 256, 65_535, 65_536])
def test_sizes_claimed_by_msgpack_are_limited_at_every_width(length: int) -> None:
    parts = {
        "list": [7] * length,
        "map": dict.fromkeys(range(length)),
        "text": "a" * length,
        "bytes": b"a" * length,
    }
    more = [
        [-1, -40, -4000, 1 << 20, 1 << 40, 0.5, True, None],
        "x" * 9000,
    ]  # long enough to be counted
    assert unpack(pack([parts, more]), "a.seg") == [parts, more]
    with pytest.raises(DamagedTrace, match="seg holds metadata"):
        unpack(pack([parts, more])[:-1], "a.seg")
    with pytest.raises(DamagedTrace, match="seg holds metadata"):
        unpack(b"\xdd\x7f\xff\xff\xff" * 3 + pack([parts, more]), "a.seg")
