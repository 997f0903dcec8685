"""A trace's life: incomplete from the first moment until it is closed; nothing of others is deleted."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from tracereplay.errors import DamagedTrace, NotATrace, RecordingIncomplete, TraceError, UsageError
from tracereplay.trace import SegmentWriter, TraceDirectory, open_trace, segment_path
from tracereplay.trace.into_pack import pack_trace


def test_a_trace_is_incomplete_until_it_is_closed(tmp_path: Path) -> None:
    directory = TraceDirectory(tmp_path / "a.trace", {"kind": "recording"})
    writer = SegmentWriter(segment_path(directory.path, "record", 0), {})
    assert not open_trace(directory.path).complete
    writer.close({})
    assert not open_trace(directory.path).complete
    directory.complete()
    assert open_trace(directory.path).complete


def test_a_segment_without_its_end_keeps_the_trace_incomplete(tmp_path: Path) -> None:
    directory = TraceDirectory(tmp_path / "a.trace", {})
    SegmentWriter(segment_path(directory.path, "record", 0), {}).abandon()
    directory.complete()
    assert not open_trace(directory.path).complete


def test_an_existing_path_is_refused(tmp_path: Path) -> None:
    TraceDirectory(tmp_path / "a.trace", {})
    with pytest.raises(UsageError, match="already exists; give another path, or --force"):
        TraceDirectory(tmp_path / "a.trace", {})


def test_a_manifest_that_cannot_be_written_first_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="cannot be created: No space left"):
        TraceDirectory(tmp_path / "t.trace", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("manifest", "error", "words"),
    [
        ("{", DamagedTrace, "cannot be read"),
        ("[]", DamagedTrace, "no format number"),
        ('{"format": 99, "state": "complete", "run": {}, "passes": {}}', TraceError, "update tracereplay"),
        ('{"format": 1, "run": {}}', DamagedTrace, "lacks one of"),
        ("[" * 100_000, DamagedTrace, "cannot be read"),
    ],
)
def test_a_strange_manifest_is_reported_in_a_sentence(
    tmp_path: Path, manifest: str, error: type[TraceError], words: str
) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(error, match=words):
        open_trace(tmp_path)


def test_refuses_a_path_that_is_not_a_trace(tmp_path: Path) -> None:
    with pytest.raises(NotATrace, match="There is no trace at"):
        open_trace(tmp_path / "nowhere")
    with pytest.raises(NotATrace, match="is not a trace"):
        open_trace(tmp_path)


def test_files_with_other_names_are_not_read(tmp_path: Path) -> None:
    directory = TraceDirectory(tmp_path / "a.trace", {})
    for name in ("other.seg", "record-rank00.seg", "record-rank\u0661.seg", "record-rank0.seg\n"):
        (directory.path / name).write_text("x")
    assert open_trace(directory.path).passes == ()


@pytest.mark.parametrize("name", ["record-rank0.seg", "manifest.json"])
def test_a_link_is_refused(tmp_path: Path, name: str) -> None:
    directory = TraceDirectory(tmp_path / "a.trace", {})
    secret = tmp_path / "secret"
    secret.write_text(json.dumps("not yours"))
    (directory.path / name).unlink(missing_ok=True)
    (directory.path / name).symlink_to(secret)
    with pytest.raises(TraceError, match="it is a symbolic link"):
        open_trace(directory.path)


def test_a_manifest_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = TraceDirectory(tmp_path / "t.trace", {"level": "operator"})

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordingIncomplete, match="manifest cannot be written: No space left on device"):
        directory.add_pass("record", {"results": []})
    assert [p.name for p in (tmp_path / "t.trace").iterdir()] == ["manifest.json"]
    assert not open_trace(tmp_path / "t.trace").results


def test_a_trace_has_settled_once_no_process_writes_to_it(tmp_path: Path) -> None:
    directory = TraceDirectory(tmp_path / "t.trace", {})
    with (directory.path / "record-rank0.seg").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not directory.settle(0.05)
    assert directory.settle(0.05)


def test_only_its_owner_may_read_a_trace(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        directory = TraceDirectory(tmp_path / "a.trace", {"kind": "recording"})
        SegmentWriter(segment_path(directory.path, "record", 0), {}).close({})
        directory.complete()
        with open_trace(directory.path) as trace:
            pack_trace(trace, tmp_path / "a.trz")
            pack_trace(trace, tmp_path / "b.trz", level=3)
    finally:
        os.umask(before)
    assert directory.path.stat().st_mode & 0o777 == 0o700
    files = [*directory.path.iterdir(), tmp_path / "a.trz", tmp_path / "b.trz"]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {path.name: 0o600 for path in files}
