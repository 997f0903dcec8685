"""What `verify` says of whole, interrupted and damaged traces, and what `repair` makes of the second."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tracereplay.errors import DamagedTrace, UsageError
from tracereplay.trace import open_trace
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.verify import repair, values_of, verify


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden, tmp_path / "a.trace")
    return tmp_path / "a.trace"


def cut(path: Path, end: int) -> None:
    segment = path / "record-rank0.seg"
    segment.write_bytes(segment.read_bytes()[:end])


def values(path: Path) -> list[bytes]:
    return [v.load() for step in open_trace(path).steps("record") for v in values_of(step)]


def test_an_intact_closed_trace_is_complete(copy: Path) -> None:
    (report,) = verify(open_trace(copy))
    assert (report.state, report.problem, report.kept) == ("complete", None, report.size - 16)
    assert report.steps == len(open_trace(copy).steps("record"))


def test_any_truncation_is_recoverable_and_repaired_without_a_step_more_or_less(
    copy: Path, tmp_path: Path
) -> None:
    whole = (copy / "record-rank0.seg").stat().st_size
    all_values = values(copy)
    for end in [*range(9), *range(50, whole, 2503), whole - 17, whole - 1]:
        part = tmp_path / f"{end}.trace"
        shutil.copytree(copy, part)
        cut(part, end)
        (before,) = verify(open_trace(part))
        assert before.state == "recoverable"
        assert "interrupted" in (before.problem or "")
        kept = values(part)
        assert kept == all_values[: len(kept)]
        assert repair(open_trace(part)) == (["record-rank0.seg"] if before.frames else [])
        if not before.frames:
            continue
        (after,) = verify(open_trace(part))
        assert (after.state, after.steps) == ("recoverable", before.steps)
        assert "its index was rebuilt" in (after.problem or "")
        assert not open_trace(part).complete
        assert values(part) == kept
        assert open_trace(part).segment("record").index.at == 0  # read by its index, not by a scan
        assert repair(open_trace(part)) == []
        shutil.rmtree(part)


def test_repairing_a_complete_trace_changes_nothing(copy: Path) -> None:
    before = (copy / "record-rank0.seg").read_bytes()
    assert repair(open_trace(copy)) == []
    assert (copy / "record-rank0.seg").read_bytes() == before


def test_a_changed_byte_is_damage_with_its_place(copy: Path) -> None:
    segment = copy / "record-rank0.seg"
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    (report,) = verify(open_trace(copy))
    assert report.state == "damaged"
    assert "at byte" in (report.problem or "")
    assert 0 < report.steps <= len(open_trace(copy).steps("record"))
    with pytest.raises(DamagedTrace, match="at byte"):
        repair(open_trace(copy))


def test_every_changed_byte_is_found(copy: Path) -> None:
    segment = copy / "record-rank0.seg"
    data = bytearray(segment.read_bytes())
    for at in range(0, len(data), 1201):
        data[at] ^= 0x40
        segment.write_bytes(data)
        data[at] ^= 0x40
        (report,) = verify(open_trace(copy))
        assert report.state != "complete", at


def test_a_packed_trace_is_not_repaired_in_place(golden: Path, tmp_path: Path) -> None:
    pack_trace(open_trace(golden), tmp_path / "a.pack")
    with pytest.raises(UsageError, match="cannot be repaired in place"):
        repair(open_trace(tmp_path / "a.pack"))
