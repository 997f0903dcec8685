"""A segment gives back what was written, every committed step of what was cut off, and never another value."""

from __future__ import annotations

import errno
import itertools
import operator
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracereplay.errors import TraceError
from tracereplay.event import Layout, Request, RowKey, Sampled, Site, Step, make_rows
from tracereplay.storage.files import LocalFile
from tracereplay.trace import (
    BudgetSpent,
    CallOfStep,
    PendingCall,
    SegmentReader,
    SegmentWriter,
    TensorBytes,
    append,
    frames,
    index_record,
)
from tracereplay.trace.arrays import restore
from tracereplay.trace.codec import RAW
from tracereplay.trace.dedup import PIECE, SMALL

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


def test_compression_threads_do_not_change_the_output(tmp_path: Path) -> None:
    written = []
    for workers in (0, 3):
        random = np.random.default_rng(0)
        path = tmp_path / f"{workers}.seg"
        writer = SegmentWriter(path, {"rank": 0}, workers=workers)
        writer.sites([SITE])
        for number in range(6):
            rows = make_rows([(0, 0, number)])
            values = [random.standard_normal(300_000).astype(np.float32).tobytes() for _ in range(7)]
            inputs = {i: TensorBytes("float32", (300_000,), (1,), v) for i, v in enumerate(values)}
            writer.step(number, rows, [PendingCall(77, 0, rows, rows, inputs)], [], [])
            if number == 3:
                writer.add(TensorBytes("float32", (300_000,), (1,), values[0][::-1]))
                writer.rollback()
        writer.close({})
        written.append(path.read_bytes())
    assert len(written[0]) > 6 << 20
    assert written[0] == written[1]


@pytest.mark.parametrize("workers", [0, 3])
def test_bytes_that_were_lent_may_change_once_they_have_moved(tmp_path: Path, workers: int) -> None:
    random = np.random.default_rng(0)
    path, rows = tmp_path / "a.seg", make_rows([(0, 0, 0)])
    writer = SegmentWriter(path, {"rank": 0}, workers=workers)
    writer.sites([SITE])
    lent = [bytearray(random.standard_normal(size).astype(np.float32).tobytes()) for size in (700_000, 5_000)]
    kept = [bytes(data) for data in lent]  # the first fills a chunk, the second begins one
    places = [writer.add(TensorBytes("float32", (len(v) // 4,), (1,), memoryview(v))) for v in lent]
    writer.moved()
    for data in lent:
        data[:] = bytes(len(data))
    writer.commit(0, rows, [CallOfStep(77, 0, rows, rows, dict(enumerate(places)), {}, {})], [], [])
    writer.close({})
    assert read(path) == [kept]


@pytest.mark.parametrize("size", [*range(1, 260, 7), 100_000])
def test_a_raw_chunk_of_any_size_has_its_checksum(tmp_path: Path, size: int) -> None:
    path, rows = tmp_path / "a.seg", make_rows([(0, 0, 0)])
    writer = SegmentWriter(path, {"rank": 0}, RAW)
    writer.sites([SITE])
    values = [np.random.default_rng(size + i).bytes(size) for i in range(40)]  # more than are written apart
    for number, inputs in enumerate(([values[0]], values)):
        writer.step(number, rows, [PendingCall(77, 0, rows, rows, dict(enumerate(map(tensor, inputs))))], [], [])
    writer.close({})
    assert read(path) == [[values[0]], values]


def contents(steps: list[Step]) -> list[list[bytes]]:
    return [[v.load() for v in step.calls[0].inputs] for step in steps]


def read(path: Path) -> list[list[bytes]]:
    return contents(list(SegmentReader(path).steps()))


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.lists(st.binary(max_size=64), min_size=1, max_size=4), max_size=5))
def test_a_segment_reads_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[bytes]]
) -> None:
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
    block = np.random.default_rng(0).bytes(SMALL + 1)
    once = write(tmp_path / "once.seg", [[block]]).stat().st_size
    often = write(tmp_path / "often.seg", [[block, block]] * 20)
    assert often.stat().st_size < once + 20 * 400
    assert read(often) == [[block, block]] * 20


def test_a_step_whose_token_was_sampled_before_has_the_form_of_the_others(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    embeddings = [random.bytes(8192) for _ in range(2)]
    steps = [[embeddings[number % 2], random.bytes(100)] for number in range(20)]
    path = write(tmp_path / "a.seg", steps)
    assert read(path) == steps
    assert len({id(step.form) for step in list(SegmentReader(path).records())}) == 1


def test_tensors_that_are_equal_by_chance_give_a_step_no_form_of_its_own(tmp_path: Path) -> None:
    """An output that is golden's in some steps only. One that always is the tensor before it is stored once."""
    random = np.random.default_rng(0)
    steps = []
    for number in range(40):
        golden, own = random.bytes(4096), random.bytes(4096)
        steps.append([golden, golden, golden if number % 3 < 2 else own, random.bytes(64)])
    path = write(tmp_path / "a.seg", steps)
    assert read(path) == steps
    records = list(SegmentReader(path).records())
    assert len({id(step.form) for step in records}) == 2  # the first such step made it known
    assert path.stat().st_size < 40 * (2 * 4096 + 64 + 400)


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
            reader = SegmentReader(bad)
            found, complete = contents(list(reader.steps())), reader.complete
        except TraceError:
            noticed += 1
        else:
            assert found == steps[: len(found)]  # a prefix, or all of it: never another value
            noticed += not complete
    assert noticed == len(whole) * 8


# -- views and memory -----------------------------------------------------------------------------------------


@st.composite
def moments(draw: st.DrawFn) -> list[list[TensorBytes]]:
    """Sets of tensors of one moment each, over two memories that are written between the moments."""
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    memories = [random.integers(0, 4, 64, np.uint8).astype(np.int16) for _ in range(2)]
    found = []
    for _ in range(draw(st.integers(1, 4))):
        moment = []
        for _ in range(draw(st.integers(1, 4))):
            number = draw(st.integers(0, 1))
            shape = tuple(draw(st.lists(st.integers(0, 4), min_size=0, max_size=3)))
            strides = tuple(draw(st.integers(0, 5)) for _ in shape)
            start = draw(st.integers(0, 8))
            view = np.lib.stride_tricks.as_strided(memories[number][start:], shape, tuple(2 * s for s in strides))
            moment.append(TensorBytes("int16", shape, strides, view.tobytes(), number, start))
        found.append(moment)
        if draw(st.booleans()):
            memories[draw(st.integers(0, 1))][draw(st.integers(0, 63))] += 1
    return found


@settings(max_examples=200, deadline=None)
@given(given_moments=moments())
def test_strides_and_shared_memory_are_restored(
    tmp_path_factory: pytest.TempPathFactory, given_moments: list[list[TensorBytes]]
) -> None:
    path = tmp_path_factory.mktemp("views") / "a.seg"
    writer = SegmentWriter(path, {})
    writer.sites([SITE])
    rows = make_rows([(0, 0, 0)])
    calls = [PendingCall(77, i, rows, rows, dict(enumerate(m))) for i, m in enumerate(given_moments)]
    writer.step(0, rows, calls, [], [])
    writer.close({})
    for call, moment in zip(SegmentReader(path).step(0).calls, given_moments, strict=True):
        assert [v.load() for v in call.inputs] == [bytes(t.data) for t in moment]
        seen = [(v.dtype, v.shape, v.strides, v.storage, v.start) for v in call.inputs]
        assert seen == [(t.dtype, t.shape, t.strides, t.storage, t.start) for t in moment]
        arrays = restore(call.inputs)
        for array, tensor_bytes in zip(arrays, moment, strict=True):
            assert array.tobytes() == bytes(tensor_bytes.data)
            if array.size:
                assert array.strides == tuple(2 * s for s in tensor_bytes.strides)
        for i, one in enumerate(moment):
            for j, other in enumerate(moment):
                places = [_places(t) for t in (one, other)]
                together = one.storage == other.storage and bool(places[0] & places[1])
                assert np.shares_memory(arrays[i], arrays[j]) == together


def _places(tensor_bytes: TensorBytes) -> set[int]:
    """Which elements of its memory a tensor has."""
    indices = itertools.product(*map(range, tensor_bytes.shape))
    return {sum(map(operator.mul, i, tensor_bytes.strides)) + tensor_bytes.start for i in indices}


def one_step(path: Path, *tensors: TensorBytes) -> Step:
    writer = SegmentWriter(path, {})
    writer.sites([SITE])
    rows = make_rows([(0, 0, 0)])
    writer.step(0, rows, [PendingCall(77, 0, rows, rows, dict(enumerate(tensors)))], [], [])
    writer.close({})
    return SegmentReader(path).step(0)


def test_a_view_of_stored_memory_takes_no_bytes(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 1 << 15, (64, 96), np.int16)
    qkv = TensorBytes("int16", whole.shape, (96, 1), whole.tobytes(), 3, 0)
    k = TensorBytes("int16", (64, 32), (96, 1), whole[:, 32:64].tobytes(), 3, 32)
    step = one_step(tmp_path / "with.seg", qkv, k)
    assert step.calls[0].inputs[1].load() == k.data
    alone = one_step(tmp_path / "alone.seg", qkv)
    assert len(alone.calls) == 1
    more = (tmp_path / "with.seg").stat().st_size - (tmp_path / "alone.seg").stat().st_size
    assert more < 100
    elsewhere = TensorBytes("int16", (64, 32), (96, 1), k.data, 4, 32)  # the same bytes in other memory
    one_step(tmp_path / "other.seg", qkv, elsewhere)
    assert (tmp_path / "other.seg").stat().st_size > (tmp_path / "with.seg").stat().st_size + 2000


def test_memory_that_was_written_has_a_new_version(tmp_path: Path) -> None:
    before, after = bytes(range(16)), bytes(range(1, 17))
    whole = (TensorBytes("uint8", (16,), (1,), data, 0, 0) for data in (before, after, after))
    values = one_step(tmp_path / "a.seg", *whole).calls[0].inputs
    assert [v.version for v in values] == [0, 1, 1]
    assert [v.load() for v in values] == [before, after, after]


def test_a_view_of_memory_written_unobserved_is_stored_again(tmp_path: Path) -> None:
    base = TensorBytes("uint8", (16,), (1,), bytes(16), 0, 0)
    view = TensorBytes("uint8", (4,), (2,), b"abcd", 0, 3)
    values = one_step(tmp_path / "a.seg", base, view).calls[0].inputs
    assert [v.load() for v in values] == [bytes(16), b"abcd"]
    assert [v.version for v in values] == [0, 1]


def test_a_tensor_larger_than_a_chunk_is_cut_and_joined(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(2 * PIECE + 6)
    small = TensorBytes("int16", (3,), (1,), b"abcdef")
    large = TensorBytes("int16", (PIECE + 3,), (1,), data)
    step = one_step(tmp_path / "a.seg", small, large, small)
    assert [v.load() for v in step.calls[0].inputs] == [b"abcdef", data, b"abcdef"]
    assert len(SegmentReader(tmp_path / "a.seg").index.chunks) == 4


# -- the index, budgets and errors ----------------------------------------------------------------------------


def test_a_chain_of_indexes_finds_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_record, "EVERY", 6)
    steps = [[bytes([i]) * 8] for i in range(20)]
    path = write(tmp_path / "a.seg", steps)
    reader = SegmentReader(path)
    assert contents(list(reader.steps())) == steps
    assert [number for number, _, _ in reader.index.steps] == list(range(20))
    kinds = [frame.kind for frame in frames.scan(LocalFile(path))]
    assert kinds.count(frames.Tag.INDEX) > 4
    unclosed = SegmentReader(write(tmp_path / "b.seg", steps, close=False))
    assert contents(list(unclosed.steps())) == steps


def test_a_form_of_a_step_that_was_taken_back_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.seg"
    writer = SegmentWriter(path, {"rank": 0}, max_bytes=1 << 20)
    writer.sites([SITE])
    rows = make_rows([(0, 0, 0)])

    def step(number: int, count: int) -> None:
        inputs = {i: tensor(bytes([number, i])) for i in range(count)}
        writer.step(number, rows, [PendingCall(77, 0, rows, rows, inputs)], [], [])

    step(0, 1)
    writer._max_bytes = 1000
    with pytest.raises(BudgetSpent):
        step(1, 2)
    writer._max_bytes = None
    for number, count in ((1, 2), (2, 1), (3, 2)):
        step(number, count)
    writer.close({})
    expected = [[bytes([n, i]) for i in range(c)] for n, c in ((0, 1), (1, 2), (2, 1), (3, 2))]
    assert read(path) == expected
    kinds = [frame.kind for frame in frames.scan(LocalFile(path))]
    assert kinds.count(frames.Tag.FORM) == 2
    path.write_bytes(path.read_bytes()[:-1])
    assert read(path) == expected


@pytest.mark.parametrize("remembered", [1, 2, 3])
def test_a_form_that_was_forgotten_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(append, "FORMS", remembered)
    steps = [[bytes([number, i]) for i in range(1 + number % 3)] for number in range(12)]
    path = write(tmp_path / "a.seg", steps)
    assert read(path) == steps
    kinds = [frame.kind for frame in frames.scan(LocalFile(path))]
    assert (kinds.count(frames.Tag.FORM) > 6) == (remembered < 3)
    assert len({id(record.form) for record in list(SegmentReader(path).records())}) < 7


class Counting(LocalFile):
    """Counts the bytes that are read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        self.bytes += length
        return super().read(offset, length)


def test_one_call_is_read_without_the_rest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    steps = [[random.bytes(1 << 18) for _ in range(4)] for _ in range(20)]
    file = Counting(write(tmp_path / "a.seg", steps))
    assert SegmentReader(file).step(11).calls[0].inputs[2].load() == steps[11][2]
    assert file.size > 20 << 20
    assert file.bytes < 2 << 20


@pytest.mark.parametrize("limit", [5000, 6000, 7000, 20_000])
def test_a_segment_stays_within_its_budget_and_is_complete(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "a.seg"
    writer = SegmentWriter(path, {}, max_bytes=limit)
    writer.sites([SITE])
    random = np.random.default_rng(0)
    written = []
    for number in range(100):
        rows, data = make_rows([(0, 0, number)]), random.bytes(300)
        try:
            writer.step(number, rows, [PendingCall(77, 0, rows, rows, {0: tensor(data)})], [], [])
        except BudgetSpent:
            break
        written.append([data])
    writer.close({"ended": "max_bytes"})
    assert path.stat().st_size <= limit
    assert read(path) == written
    assert len(written) < 100
    assert SegmentReader(path).complete


def test_rolled_back_contents_are_not_referred_to(tmp_path: Path) -> None:
    path = tmp_path / "a.seg"
    writer = SegmentWriter(path, {})
    writer.sites([SITE])
    writer.add(tensor(b"x" * 100))
    writer.rollback()
    rows = make_rows([(0, 0, 0)])
    writer.step(0, rows, [PendingCall(77, 0, rows, rows, {0: tensor(b"x" * 100)})], [], [])
    writer.close({})
    assert read(path) == [[b"x" * 100]]
    assert SegmentReader(path).summary is not None


def test_a_later_kind_of_frame_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.seg", [[b"one"]], close=False)
    payload = b"from the future"
    import xxhash

    with path.open("ab") as file:
        file.write(frames.write_header(200, 9, len(payload), 99, xxhash.xxh3_64_intdigest(payload)) + payload)
    assert read(path) == [[b"one"]]


def test_a_full_disk_loses_only_the_current_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.seg"
    writer = SegmentWriter(path, {})
    writer.sites([SITE])
    rows = make_rows([(0, 0, 0)])
    call = PendingCall(77, 0, rows, rows, {0: tensor(b"kept")})
    writer.step(0, rows, [call], [], [])
    real = os.writev

    def half(fd: int, pieces: Sequence[memoryview]) -> int:
        real(fd, [pieces[0][:5]])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", half)
    call.inputs[0] = tensor(b"lost" * 50)
    with pytest.raises(OSError, match="full"):
        writer.step(1, rows, [call], [], [])
    with pytest.raises(OSError, match="abandoned"):
        writer.step(2, rows, [call], [], [])
    writer.abandon()
    assert read(path) == [[b"kept"]]


def test_short_writes_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, pieces: real(fd, [pieces[0][:7]]))
    steps = [[b"some bytes" * 10, b"others"], [b"more"]]
    assert read(write(tmp_path / "a.seg", steps)) == steps
