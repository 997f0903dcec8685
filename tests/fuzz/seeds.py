"""Inputs that the fuzzers begin with: the toy engine's traces, the hostile ones, and what is in them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tracereplay.engines.toy.runs import record, workload
from tracereplay.trace import SegmentReader, codec, open_trace
from tracereplay.trace.frames import MAGIC, TAIL_SIZE, Tag
from tracereplay.trace.plain import pack, unpack

FIXTURES = Path(__file__).parents[2] / "fixtures"
sys.path.insert(0, str(FIXTURES))

import make_hostile  # noqa: E402
import make_hostile_forms  # noqa: E402

__all__ = ["write_seeds"]

HOSTILE = FIXTURES / "hostile"
LONGEST = 1 << 15


def write_seeds(target: str, folder: Path) -> None:
    """Writes a target's seeds into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    toy = record(workload(((5, 6, 7), (20, 21)), max_tokens=2), folder.parent / f"toy-{target}.trace")
    for number, data in enumerate(_SEEDS[target](toy)):
        if len(data) <= LONGEST:
            (folder / f"seed-{number:04}").write_bytes(data)


def segments() -> Iterator[bytes]:
    """Those of the hostile traces, and their files that say who asked."""
    for pattern in ("*/*/record-rank0.seg", "*/*/requests-*.req"):
        for path in sorted(HOSTILE.glob(pattern)):
            yield path.read_bytes()


def _containers(toy: Path) -> Iterator[bytes]:
    for plain in (plainly(toy / "record-rank0.seg"), with_forms(toy / "record-rank0.seg")):
        yield b"m" + plain
        yield b"m" + plain[:-TAIL_SIZE]
    for data in segments():
        yield b"r" + data
        yield b"m" + data
        yield b"m" + data[:-TAIL_SIZE]  # read from frame to frame, so that lengths may change
    for path in sorted(HOSTILE.glob("*/pack-*")):
        yield b"p" + path.read_bytes()
    yield b"e" + bytes([100, 0, 1, 200, 1, 128])


def plainly(path: Path) -> bytes:
    """A segment with nothing compressed, so that a changed byte reaches what reads it; its first step only."""
    reader = SegmentReader(path)
    copy = make_hostile.Segment(site=None)
    copy.data[:] = MAGIC
    for frame, _, decoded in reader.frames():
        if frame.kind == Tag.DATA:
            copy.chunk(bytes(decoded))
        elif frame.kind in (Tag.META, Tag.SITES, Tag.STEP):
            place = copy.record(frame.kind, bytes(decoded))
            copy.sites += [place] if frame.kind == Tag.SITES else []
            copy.steps += [[0, *place]] if frame.kind == Tag.STEP else []
        if copy.steps:
            break
    return copy.close()


def with_forms(path: Path) -> bytes:
    """The same with two steps, as this version of the format has them."""
    reader = SegmentReader(path)
    copy = make_hostile_forms.Formed()
    copy.data[:], copy.listed, copy.sites = MAGIC, [], []
    for frame, _, decoded in reader.frames():
        if frame.kind == Tag.STEP:
            step = reader._step_record(len(copy.steps))
            copy.step(step)
        elif frame.kind in (Tag.META, Tag.SITES, Tag.FORM, Tag.DATA):
            place = copy.frame(frame.kind, bytes(decoded))
            copy.sites += [place] if frame.kind == Tag.SITES else []
        if len(copy.steps) == 2:
            break
    return copy.end(outline=reader.written_outline())


def _chunks(toy: Path) -> Iterator[bytes]:
    readers = [SegmentReader(toy / "record-rank0.seg")]
    readers += [
        SegmentReader(path)
        for path in (
            HOSTILE / "shown" / make_hostile.GOLDEN / "record-rank0.seg",
            *HOSTILE.glob("*/base-*/record-*"),
        )
    ]
    for reader in readers:
        for number in range(min(4, len(reader.index.chunks))):
            frame, stored = reader.chunk_frame(number)
            yield bytes([frame.codec]) + frame.size.to_bytes(4, "little") + stored
    yield bytes([codec.CHUNK_CODECS[1] + 0x80, 1]) + bytes(range(200)) * 3


def _records(toy: Path) -> Iterator[bytes]:
    reader = open_trace(toy).segment("record")
    for frame, _, decoded in reader.frames():
        if frame.kind != Tag.DATA:
            yield bytes(decoded)
    yield (toy / "manifest.json").read_bytes()
    for path in sorted(HOSTILE.glob("*/manifest-*/manifest.json")):
        yield path.read_bytes()
    for make in (make_hostile.step(), [make_hostile.SITE]):
        yield pack(make)
        assert unpack(pack(make), "seed") == make


_SEEDS = {"container": _containers, "codec": _chunks, "msgpack": _records}
