"""A segment gives back what was written, every committed step of what was cut off, and never another value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracereplay.errors import DamagedTrace, TraceError
from tracereplay.event import Layout, Request, RowKey, Sampled, Site, Step, make_rows
from tracereplay.trace import PendingCall, SegmentReader, SegmentWriter, TensorBytes

SITE = Site("model.norm", "RMSNorm", 77, ("x", "residual"), {"out0": Layout(-1, (2, 1), (1, 2))}, {"eps": 1e-5})


def tensor(values: bytes, dtype: str = "uint8") -> TensorBytes:
    return TensorBytes(dtype, (len(values),), (1,), values)


def write(path: Path, steps: list[list[bytes]], close: bool = True) -> Path:
    """A segment with one call a step, whose inputs are the given bytes."""
    writer = SegmentWriter(path, {"rank": 0})
    writer.sites([SITE])
    for number, values in enumerate(steps):
        rows = make_rows([(0, 0, number)])
        call = PendingCall(77, 0, rows, rows, {i: tensor(v) for i, v in enumerate(values)}, {0: tensor(b"out")})
        sampled = [Sampled(RowKey(0, 0, number + 1), 5, 6, -0.25)]
        requests = [Request(0, 0, (1, 2), {"n": 2})] if number == 0 else []
        writer.step(number, rows, [call], sampled, ["a note"], requests)
    writer.close({}) if close else writer.abandon()
    return path


def contents(steps: list[Step]) -> list[list[bytes]]:
    return [[v.load() for v in step.calls[0].inputs] for step in steps]


def read(path: Path) -> list[list[bytes]]:
    return contents(list(SegmentReader(path).steps()))


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.lists(st.binary(max_size=64), min_size=1, max_size=4), max_size=5))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, steps: list[list[bytes]]) -> None:
    path = write(tmp_path_factory.mktemp("segment") / "a.seg", steps)
    assert read(path) == steps


def test_everything_about_a_step_is_read(tmp_path: Path) -> None:
    reader = SegmentReader(write(tmp_path / "a.seg", [[b"one", b"two"]]))
    assert reader.complete
    assert reader.sites == {"model.norm": SITE}
    step = reader.step(0)
    assert step.rows.tolist() == [[0, 0, 0]]
    assert step.sampled == (Sampled(RowKey(0, 0, 1), 5, 6, -0.25),)
    assert step.notes == ("a note",)
    assert step.requests == (Request(0, 0, (1, 2), {"n": 2}),)
    assert step.calls[0].inputs[1].shape == (3,)


def test_a_repeat_is_stored_once(tmp_path: Path) -> None:
    block = np.random.default_rng(0).bytes(4096)
    once = write(tmp_path / "once.seg", [[block]]).stat().st_size
    often = write(tmp_path / "often.seg", [[block, block]] * 20)
    assert often.stat().st_size < once + 20 * 400
    assert read(often) == [[block, block]] * 20


def test_any_truncation_gives_exactly_the_committed_steps(tmp_path: Path) -> None:
    steps = [[bytes([i]) * 20, b"shared"] for i in range(4)]
    whole = write(tmp_path / "whole.seg", steps, close=False).read_bytes()
    cut = tmp_path / "cut.seg"
    seen = set()
    for size in range(len(whole) + 1):
        cut.write_bytes(whole[:size])
        try:
            found = read(cut)
        except TraceError:
            assert size < 8  # not even the magic bytes
            continue
        assert found == steps[: len(found)]
        seen.add(len(found))
    assert seen == {0, 1, 2, 3, 4}


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    steps = [[b"abcdefgh" * 4], [b"12345678" * 4]]
    whole = write(tmp_path / "whole.seg", steps).read_bytes()
    bad = tmp_path / "bad.seg"
    noticed = 0
    for at in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << (at % 8)
        bad.write_bytes(flipped)
        try:
            found = read(bad)
        except TraceError:
            noticed += 1
        else:
            assert found == steps[: len(found)]  # a prefix, or all of it: never another value
    assert noticed > len(whole) * 7


def test_a_declared_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import zstandard

    from tracereplay.trace import codec

    bomb = zstandard.ZstdCompressor().compress(bytes(codec.MAX_DECODED + 1))
    with pytest.raises(DamagedTrace, match="the limit is"):
        codec.decode(bomb, codec.ZSTD, "bomb.seg")


def test_a_key_given_twice_is_refused() -> None:
    from tracereplay.trace import codec

    with pytest.raises(DamagedTrace, match="same key twice"):
        codec.unpack(b"\x82\xa1a\x01\xa1a\x02", "twice.seg")
