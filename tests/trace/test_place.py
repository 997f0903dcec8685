"""What a new trace may replace: only what is certainly a trace, and only when the new one is complete."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tracereplay.errors import UsageError
from tracereplay.trace import SegmentWriter, TraceDirectory, open_trace, segment_path
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.manifest import write_manifest
from tracereplay.trace.place import Place, in_use, passing_trace, remove_trace


def tree(path: Path) -> dict[str, bytes | str]:
    """All that lies under a path, by name."""
    files = [p for p in path.rglob("*") if p.is_symlink() or p.is_file()]
    return {str(p.relative_to(path)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in files}


@pytest.fixture
def old(golden: Path, tmp_path: Path) -> Path:
    """A trace that is there already."""
    return Path(shutil.copytree(golden, tmp_path / "there" / "old.trace"))


def foreign_manifest(path: Path) -> None:
    shutil.rmtree(path)
    (path / "src").mkdir(parents=True)
    (path / "manifest.json").write_text('{"name": "web", "short_name": "app", "icons": []}')
    (path / "src" / "index.js").write_text("years of work")


def extra_file(path: Path) -> None:
    (path / "notes.txt").write_text("what I found in this trace")


def extra_folder(path: Path) -> None:
    (path / "src").mkdir()


def changed_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "state": "incomplete"}))


def named_segment_absent(path: Path) -> None:
    (path / "record-rank0.seg").unlink()


def foreign_segment(path: Path) -> None:
    (path / "record-rank1.seg").write_text("not a segment")


def linked_segment(path: Path) -> None:
    (path / "record-rank0.seg").rename(path.parent / "elsewhere.seg")
    (path / "record-rank0.seg").symlink_to(path.parent / "elsewhere.seg")


def link(path: Path) -> None:
    path.rename(path.with_name("real.trace"))
    path.symlink_to(path.with_name("real.trace"))


def dangling_link(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path.with_name("nowhere"))


def plain_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("years of work")


def cut_pack(path: Path) -> None:
    pack_trace(open_trace(path), path.with_name("whole.pack"))
    shutil.rmtree(path)
    path.write_bytes(path.with_name("whole.pack").read_bytes()[:-1])


def fifo(path: Path) -> None:
    shutil.rmtree(path)
    os.mkfifo(path)


STRANGERS = {
    foreign_manifest: "not certain to be a trace", extra_file: "contains 'notes.txt' in addition",
    extra_folder: "'src'",
    changed_manifest: "fails its checksum", named_segment_absent: "lacks the segments of the pass 'record'",
    foreign_segment: "record-rank1.seg that is not one", linked_segment: "symbolic link", link: "a symbolic link",
    dangling_link: "a symbolic link", plain_file: "a file that is not a trace", cut_pack: "not certain",
    fifo: "not certain",
}  # fmt: skip


@pytest.mark.parametrize("make", STRANGERS, ids=lambda make: make.__name__)
def test_a_path_that_is_not_certainly_a_trace_is_not_replaced(old: Path, make: Callable[[Path], None]) -> None:
    make(old)
    before = tree(old.parent) if not old.is_fifo() else None
    for force in (False, True):
        with pytest.raises(UsageError, match=STRANGERS[make] if force else "already exists") as refused:
            Place(old, force=force)
    assert "it is not replaced" in str(refused.value)
    with pytest.raises(UsageError):
        remove_trace(old)
    assert old.is_fifo() or tree(old.parent) == before


def test_a_trace_is_replaced_when_the_new_one_is_put(old: Path) -> None:
    before = tree(old)
    place = Place(old, force=True)
    assert place.replaces
    assert place.path.parent == old.parent
    assert place.path.name.startswith(".old.trace.partial-")
    directory = TraceDirectory(place.path, {"kind": "recording"})
    assert tree(old) == before
    directory.complete()
    place.put()
    assert place.path == old
    run = open_trace(old).manifest["run"]
    assert run == {"kind": "recording", "began": run["began"], "ended": run["ended"]}
    assert os.listdir(old.parent) == ["old.trace"]


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: (path / "manifest.json.partial").write_text("{"),
        lambda path: (path / ".engine-0").write_text("of a command whose parent was killed"),
    ],
)
def test_an_interrupted_trace_is_a_trace(old: Path, make: Callable[[Path], object]) -> None:
    segment = old / "record-rank0.seg"
    segment.write_bytes(segment.read_bytes()[:1000])
    make(old)
    remove_trace(old)
    assert os.listdir(old.parent) == []


def test_an_empty_directory_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="already exists"):
        Place(tmp_path / "out")
    place = Place(tmp_path / "out", force=True)
    TraceDirectory(place.path, {}).complete()
    place.put()
    assert (tmp_path / "out" / "manifest.json").exists()


def test_an_input_of_the_command_is_not_replaced(old: Path) -> None:
    (old.parent / "link").symlink_to(old)
    for given in (old, old / "..", old.parent / "link", Path(os.path.relpath(old))):
        inputs = [given / old.name if given.name == ".." else given]
        with pytest.raises(UsageError, match="is read by this command, so it is not replaced"):
            Place(old, force=True, inputs=inputs)
    Place(old, force=True, inputs=[old.with_name("absent")])


def test_a_difference_and_its_base_are_both_read(golden: Path, candidate: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(golden, tmp_path / "golden.trace"))
    pack_trace(open_trace(candidate), tmp_path / "delta.pack", base=open_trace(base))
    for out in (tmp_path / "delta.pack", base):
        with pytest.raises(UsageError, match="is read by this command"):
            pack_trace(open_trace(tmp_path / "delta.pack"), out, force=True)
    assert tree(base) == tree(golden)


def test_the_current_directory_is_not_replaced(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old)
    with pytest.raises(UsageError, match="is the current directory"):
        Place(Path("."), force=True)


def test_a_trace_that_is_being_recorded_is_not_replaced(old: Path) -> None:
    with (old / "record-rank0.seg").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a writer process does
        assert in_use(old)
        with pytest.raises(UsageError, match="is being recorded"):
            Place(old, force=True)
    assert not in_use(old)


RECORDING = """
import sys, pathlib
from tracereplay.trace import TraceDirectory
directory = TraceDirectory(pathlib.Path(sys.argv[1]), {"kind": "recording"})
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_recording_is_in_use_while_its_engine_loads(tmp_path: Path) -> None:
    out = tmp_path / "live.trace"
    command = [sys.executable, "-c", RECORDING, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as recording:
        assert recording.stdout is not None
        assert recording.stdout.readline() == "begun\n"
        with pytest.raises(UsageError, match="is being recorded"):
            Place(out, force=True)
        recording.kill()
    Place(out, force=True)  # what a killed process left may go


def test_files_that_appear_meanwhile_are_kept(old: Path) -> None:
    place = Place(old, force=True)
    TraceDirectory(place.path, {}).complete()
    extra_file(old)
    before = tree(old)
    with pytest.raises(UsageError, match=r"contains 'notes.txt' .* The new trace is .*\.old\.trace\.partial-"):
        place.put()
    assert tree(old) == before
    assert open_trace(place.path).said_complete


def test_a_trace_without_a_step_is_cleared_and_one_with_steps_is_not(old: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "new.trace")
    assert place.clear()  # nothing was begun
    directory = TraceDirectory(place.path, {"kind": "recording"})
    SegmentWriter(segment_path(directory.path, "record", 0), {}).abandon()
    assert place.clear()
    assert not place.path.exists()
    directory = TraceDirectory(place.path, {"kind": "recording"})
    shutil.copyfile(old / "record-rank0.seg", place.path / "record-rank0.seg")
    assert not place.clear()
    assert open_trace(place.path).steps("record")


def test_a_trace_started_by_another_process_is_not_cleared(tmp_path: Path) -> None:
    place = Place(tmp_path / "new.trace")
    (tmp_path / "new.trace").mkdir()
    (tmp_path / "new.trace" / "manifest.json").write_bytes(
        write_manifest({"format": 1, "state": "incomplete", "run": {}, "passes": {}})
    )
    assert not place.clear()
    assert (tmp_path / "new.trace" / "manifest.json").exists()


def test_a_temporary_trace_never_deletes_files_of_others(tmp_path: Path) -> None:
    with passing_trace(tmp_path / "trial.trace") as path:
        TraceDirectory(path, {}).complete()
    assert not path.exists()
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="that is not a trace, so it is not replaced"), passing_trace(path):
        pass
    assert (path / "thesis.txt").read_text() == "years of work"
