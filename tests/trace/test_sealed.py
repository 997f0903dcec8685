"""A sealed trace says nothing without its key; with it, it is any other trace: whole, cut off or damaged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyrage
import pytest
import xxhash
import zstandard
from test_segments import contents, write

from tracereplay.errors import DamagedTrace, TraceError, UsageError
from tracereplay.event import Request, RowKey, Sampled, Site, make_rows
from tracereplay.storage.files import LocalFile
from tracereplay.trace import (
    PendingCall,
    SegmentReader,
    SegmentWriter,
    TensorBytes,
    TraceDirectory,
    open_trace,
    sealed,
    segment_path,
)
from tracereplay.trace.frames import HEADER_SIZE, Tag, frame_of, scan, write_header
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.verify import repair, verify

PLANTED = b"a prompt that nobody else may read"
RUN = {"kind": "recording", "command": ["serve", PLANTED.decode()], "notes": [], "engine": {}}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without keys, in each test."""
    monkeypatch.setattr(sealed, "_keys", sealed._Keys())
    monkeypatch.delenv(sealed.IDENTITY, raising=False)


class Pair:
    """A pair of keys, and the file with the secret one."""

    def __init__(self, folder: Path, name: str = "identity") -> None:
        identity = pyrage.x25519.Identity.generate()
        self.public = str(identity.to_public())
        self.file = folder / name
        self.file.write_text(f"# created: today\n# public key: {self.public}\n{identity}\n")


def record(path: Path, recipients: Sequence[str], steps: int = 4, close: bool = True) -> Path:
    directory = TraceDirectory(path, RUN, recipients)
    writer = SegmentWriter(segment_path(path, "record", 0), {"rank": 0, "world": 1}, recipients=recipients)
    writer.sites([Site("model.norm", "RMSNorm", 77)])
    for number in range(steps):
        rows = make_rows([(0, 0, number)])
        given = {0: TensorBytes("uint8", (len(PLANTED),), (1,), PLANTED)}
        given[1] = TensorBytes("uint8", (64,), (1,), bytes([number]) * 64)
        sampled = [Sampled(RowKey(0, 0, number + 1), 5, 6, -0.25)]
        requests = [Request(0, 0, (1, 2), {"stop": [PLANTED.decode()]})] if number == 0 else []
        writer.step(number, rows, [PendingCall(77, 0, rows, rows, given)], sampled, [PLANTED.decode()], requests)
    writer.close({}) if close else writer.abandon()
    if close:
        directory.complete()
    directory.let_go()
    return path


def values(trace: Path) -> list[list[bytes]]:
    with open_trace(trace) as opened:
        return contents(list(opened.segment("record").steps()))


def said(path: Path) -> bytes:
    """All that can be read of a trace without a key: its files, and what in them is compressed."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    found = b""
    for file in files:
        data = file.read_bytes()
        found += data
        at = data.find(zstandard.FRAME_HEADER)
        while at >= 0:
            with suppress(zstandard.ZstdError):
                found += zstandard.ZstdDecompressor().decompress(data[at:], max_output_size=1 << 20)
            at = data.find(zstandard.FRAME_HEADER, at + 1)
    return found


def test_nothing_of_it_can_be_read_without_the_key_and_all_of_it_with_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    plain, closed = record(tmp_path / "plain.trace", ()), record(tmp_path / "a.trace", [pair.public])
    for word in (PLANTED, b"RMSNorm", b"serve"):
        assert word in said(plain)
        assert word not in said(closed)
    with pytest.raises(UsageError, match=r"is encrypted; give the file with the key .*: --identity FILE"):
        open_trace(closed)
    sealed.use_identity(pair.file)
    assert values(closed) == values(plain)
    with open_trace(closed) as one, open_trace(plain) as other:
        assert one.digest() == other.digest()
        when = {"began": other.run.began, "ended": other.run.ended}  # in seconds, of which one may just begin
        assert replace(one.run, **when) == other.run
        assert one.complete
        assert [report.state for report in verify(one)] == ["complete"]


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    closed = record(tmp_path / "a.trace", [Pair(tmp_path).public])
    sealed.use_identity(Pair(tmp_path, "other").file)
    with pytest.raises(UsageError, match="encrypted for somebody else: no key of the identity file opens it"):
        open_trace(closed)


def test_each_of_several_recipients_can_read_it(tmp_path: Path) -> None:
    one, other = Pair(tmp_path), Pair(tmp_path, "other")
    closed = record(tmp_path / "a.trace", [one.public, other.public])
    sealed.use_identity(other.file)
    assert len(values(closed)) == 4


def test_who_makes_it_can_read_it_until_its_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [Pair(tmp_path).public]
    closed = record(tmp_path / "a.trace", [*given, sealed.own_recipient()])
    assert len(values(closed)) == 4
    monkeypatch.setattr(sealed, "_keys", sealed._Keys())
    with pytest.raises(UsageError, match="--identity"):
        open_trace(closed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("age1nonsense", "'age1nonsense' of --encrypt-to is no recipient; give the public key"),
        ("", "is no recipient"),
        ("ssh-ed25519 AAAA", "is no recipient"),
        ("AGE-SECRET-KEY-1QQQ", "The value of --encrypt-to is the secret half of a key"),
    ],
)
def test_what_is_no_recipient_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        sealed.check_recipients([text])
    assert "AGE-SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"), [("", "has no AGE-SECRET"), ("age1x", "has a line that"), (None, "cannot")]
)
def test_what_is_no_identity_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "identity").write_text(text)
    with pytest.raises(UsageError, match=says):
        sealed.use_identity(tmp_path / "identity")


# -- what is cut off or damaged ---------------------------------------------------------------------------------


def sealed_segment(tmp_path: Path, close: bool = True) -> tuple[Path, list[list[bytes]]]:
    pair = Pair(tmp_path)
    sealed.use_identity(pair.file)
    sealed._keys.used.append(pair.public)  # so that whatever is written is sealed
    steps = [[b"abcdefgh" * 4], [b"12345678" * 4], [b"abcdefgh" * 4, b"tuvw"]]
    return write(tmp_path / "whole.seg", steps, close), steps


@pytest.mark.parametrize("close", [False, True])
def test_every_committed_step_of_what_was_cut_off_is_read(tmp_path: Path, close: bool) -> None:
    path, steps = sealed_segment(tmp_path, close)
    whole, cut = path.read_bytes(), tmp_path / "cut.seg"
    ends = [frame.end for frame in scan(LocalFile(path)) if frame.kind == Tag.STEP]
    for size in range(8, len(whole), 1 if not close else 7):
        cut.write_bytes(whole[:size])
        reader = SegmentReader(cut)
        assert contents(list(reader.steps())) == steps[: sum(end <= size for end in ends)]
        assert not reader.complete


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path, _ = sealed_segment(tmp_path)
    whole, bad = path.read_bytes(), tmp_path / "bad.seg"
    for at in range(0, len(whole) * 8, 3):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << (at % 8)
        bad.write_bytes(flipped)
        try:
            reader = SegmentReader(bad)
            found, complete = contents(list(reader.steps())), reader.complete
        except TraceError:
            continue
        assert not complete, at
        assert found == contents(list(SegmentReader(path).steps()))[: len(found)]


def test_who_has_no_key_cannot_change_or_move_a_frame_even_with_a_new_checksum(tmp_path: Path) -> None:
    path, _ = sealed_segment(tmp_path, close=False)
    whole = path.read_bytes()
    frames = [frame for frame in scan(LocalFile(path)) if frame.kind != Tag.KEY]
    for frame in frames:
        changed = bytearray(whole)
        changed[frame.payload + 20] ^= 1
        digest = xxhash.xxh3_64_intdigest(bytes(changed[frame.payload : frame.end]))
        changed[frame.offset : frame.payload] = write_header(
            frame.kind, frame.codec, frame.length, frame.size, digest
        )
        bad = tmp_path / "bad.seg"
        bad.write_bytes(changed)
        with pytest.raises(DamagedTrace, match="is not what was sealed there"):
            contents(list(SegmentReader(bad).steps()))
    one, other = [f for f in frames if f.kind == Tag.STEP][:2]
    swapped = whole[: one.offset] + whole[other.offset : other.end] + whole[one.end :]
    bad.write_bytes(swapped)
    with pytest.raises(TraceError):
        list(SegmentReader(bad).steps())


def test_a_frame_in_clear_does_not_pass_for_a_sealed_one(tmp_path: Path) -> None:
    path, _ = sealed_segment(tmp_path, close=False)
    plain = write(tmp_path / "plain.seg", [[b"x"]])
    sealed._keys.used.clear()
    forged = write(tmp_path / "forged.seg", [[b"forged"]], close=False).read_bytes()
    whole = path.read_bytes()
    key = frame_of(whole[8 : 8 + HEADER_SIZE], 8, "whole")
    (tmp_path / "bad.seg").write_bytes(whole[: key.end] + forged[8:])
    with pytest.raises(DamagedTrace, match="is encrypted, but its frame at byte"):
        SegmentReader(tmp_path / "bad.seg")
    assert SegmentReader(plain).complete


def test_nonces_do_not_repeat_though_a_step_is_taken_back(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    sealed.use_identity(pair.file)
    writer = SegmentWriter(tmp_path / "a.seg", {}, recipients=[pair.public])
    rows = make_rows([(0, 0, 0)])
    seen = set()
    for _ in range(3):
        for number in range(40):
            writer.add(TensorBytes("uint8", (100_000,), (1,), bytes([number]) * 100_000))
        writer.moved()
        frames = [frame for frame in scan(LocalFile(tmp_path / "a.seg")) if frame.kind == Tag.DATA]
        data = (tmp_path / "a.seg").read_bytes()
        assert frames
        found = {data[frame.payload + 1 : frame.payload + 13] for frame in frames}
        assert len(found) == len(frames)
        assert not found & seen
        seen |= found
        writer.rollback()
    writer.step(0, rows, [], [], [])
    writer.close({})
    assert SegmentReader(tmp_path / "a.seg").complete


# -- what is made of one ----------------------------------------------------------------------------------------


def test_a_sealed_trace_that_was_cut_off_is_repaired_and_stays_sealed(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    closed = record(tmp_path / "a.trace", [pair.public], close=False)
    segment = segment_path(closed, "record", 0)
    segment.write_bytes(segment.read_bytes()[:-5])
    with pytest.raises(UsageError, match="--identity"):
        open_trace(closed)
    sealed.use_identity(pair.file)
    with open_trace(closed) as trace:
        assert repair(trace) == ["record-rank0.seg", "manifest.json"]
    assert len(values(closed)) == 3
    with open_trace(closed) as trace:
        assert [report.state for report in verify(trace)] == ["recoverable"]
    assert PLANTED not in said(closed)
    assert {frame.codec for frame in scan(LocalFile(segment)) if frame.kind != Tag.KEY} == {sealed.SEALED}


@pytest.mark.parametrize("level", [None, 3])
def test_a_pack_of_it_is_sealed_for_the_same_ones(
    tmp_path: Path, level: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Pair(tmp_path), Pair(tmp_path, "other")
    closed = record(tmp_path / "a.trace", [one.public, other.public])
    sealed.use_identity(one.file)
    expected = values(closed)
    with open_trace(closed) as trace:
        digest = trace.digest()
        pack_trace(trace, tmp_path / "a.trz", level=level)
    assert PLANTED not in said(tmp_path / "a.trz")
    monkeypatch.setattr(sealed, "_keys", sealed._Keys())
    sealed.use_identity(other.file)
    with open_trace(tmp_path / "a.trz") as trace:
        assert contents(list(trace.segment("record").steps())) == expected
        assert trace.digest() == digest


def test_what_is_made_after_one_was_opened_is_sealed_for_who_opened_it(tmp_path: Path) -> None:
    one, other = Pair(tmp_path), Pair(tmp_path, "other")
    closed = record(tmp_path / "a.trace", [one.public, other.public])
    sealed.use_identity(one.file)
    values(closed)
    made = record(tmp_path / "b.trace", ())
    assert PLANTED not in said(made)
    with open_trace(made) as trace:
        assert trace.manifest["recipients"] == [one.public]


def test_it_is_read_from_a_url(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    closed = record(tmp_path / "a.trace", [pair.public])
    sealed.use_identity(pair.file)
    expected = values(closed)
    with open_trace(closed) as trace:
        pack_trace(trace, tmp_path / "a.trz")
    with open_trace(f"file://{tmp_path}/a.trz") as remote:
        assert contents(list(remote.segment("record").steps())) == expected
