"""What a long trace costs: memory that does not grow with steps, and few requests for a call out of many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tracereplay.event import RowKey, Sampled, Site, make_rows
from tracereplay.storage import remote
from tracereplay.trace import (
    CallOfStep,
    SegmentWriter,
    TensorBytes,
    Trace,
    TraceDirectory,
    index_record,
    open_trace,
    segment_path,
)
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.verify import repair, verify

SITES = [Site(f"layers.{n}", "Linear", 100 + n, ("x",)) for n in range(8)]
RUN = {"kind": "recording", "engine": {"name": "toy"}, "workload": {"model": "m", "settings": {}, "prompts": []}}


def long_trace(path: Path, steps: int, size: int = 4, off: float = 0.0) -> Path:
    """A trace of so many decode steps, each of eight calls with tensors of ``size`` float32, off by a little."""
    directory = TraceDirectory(path, RUN)
    writer = SegmentWriter(segment_path(path, "record", 0), {"rank": 0})
    writer.sites(SITES)
    noise = np.random.default_rng(0).normal(size=steps + 9 * size).astype(np.float32)
    for number in range(steps):
        rows = make_rows([(0, 0, number)])
        tensors = [noise[number + n : number + n + size] + np.float32(n + off) for n in range(9)]
        places = [writer.add(TensorBytes("float32", (1, size), (size, 1), t.tobytes(), n, 0))
                  for n, t in enumerate(tensors)]  # fmt: skip
        calls = [
            CallOfStep(site.slot, 0, rows, rows, {0: places[n]}, {0: places[n + 1]}, {})
            for n, site in enumerate(SITES)
        ]
        writer.commit(number, rows, calls, [Sampled(RowKey(0, 0, number + 1), 7, 7, -0.5)], [])
    writer.close({})
    directory.complete()
    return path


class Counted:
    """Counts the ranges that are asked of a remote file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        asking = remote.RemoteFile._range

        def counted(file: remote.RemoteFile, start: int, end: int) -> bytes:
            self.asked.append(end - start)
            return asking(file, start, end)

        monkeypatch.setattr(remote.RemoteFile, "_range", counted)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed trace with several INDEX frames, too long for its ends to come with the first requests."""
    folder = tmp_path_factory.mktemp("long")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_record, "EVERY", 2000)
        pack_trace(open_trace(long_trace(folder / "a.trace", 3000)), folder / "a.pack")
    return folder / "a.pack"


def at_a_url(path: Path) -> Trace:
    fsspec.filesystem("memory").put(str(path), f"/long/{path.name}")
    return open_trace(f"memory://long/{path.name}")


@pytest.mark.parametrize("place", [0, 1, 700, 1499, 2999])
def test_one_call_of_a_long_trace_takes_four_requests(
    packed: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = open_trace(packed).segment("record").step(place).calls[5].outputs[0].load()
    count = Counted(monkeypatch)
    trace = at_a_url(packed)
    assert trace.segment("record").place_of(place) == place
    assert trace.segment("record").step(place).calls[5].outputs[0].load() == here
    assert len(count.asked) <= 4
    assert packed.stat().st_size > 3 * (remote.BEGINNING + remote.END)


def test_the_outline_of_a_long_trace_takes_two_requests(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = Counted(monkeypatch)
    outline = at_a_url(packed).outline("record")
    assert (outline.steps, outline.rows, outline.sampled) == (3000, 3000, 3000)
    assert outline.calls == {site.name: 3000 for site in SITES}
    assert [line.number for line in outline.first] == list(range(6))
    assert len(count.asked) == 2


def test_all_of_a_trace_at_a_url_is_read_in_few_requests(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = Counted(monkeypatch)
    assert sum(len(step.sampled) for step in at_a_url(packed).records("record")) == 3000
    assert sum(count.asked) < packed.stat().st_size + (1 << 20)
    assert len(count.asked) < 30


def test_a_long_trace_is_complete_and_its_end_repeats_its_form(packed: Path) -> None:
    trace = open_trace(packed)
    assert [(r.state, r.steps) for r in verify(trace)] == [("complete", 3000)]
    segment = trace.part(("record", 0))
    assert segment.summary is not None
    assert len(segment.index.forms) == 1
    assert segment.copied_form(0) is not None
    assert len(segment.summary["indexes"]) == 4


def test_a_long_recording_that_was_cut_off_gets_an_index_in_several_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_record, "EVERY", 7)
    path = long_trace(tmp_path / "a.trace", 40)
    segment = path / "record-rank0.seg"
    segment.write_bytes(segment.read_bytes()[: segment.stat().st_size * 2 // 3])
    before = open_trace(path)
    kept = [step.number for step in before.records("record")]
    assert 5 < len(kept) < 40
    assert repair(before) == [segment.name]
    after = open_trace(path).part(("record", 0))
    assert after.summary is not None
    assert len(after.summary["indexes"]) > 5
    assert [step.number for step in after.records()] == kept
    assert [after.place_of(number) for number in (0, 4, kept[-1], 39)] == [0, 4, kept[-1], None]
    assert [(r.state, r.steps) for r in verify(open_trace(path))] == [("recoverable", len(kept))]


SCRIPT = """
import contextlib, io, sys, tracemalloc
from pathlib import Path
from tracereplay.cli.main import main
from tracereplay.columns import store
from tracereplay.comparator import compare_traces
from tracereplay.comparator.numbers import tally
from tracereplay.trace import open_trace, packfile, reader
from tracereplay.trace.digest import content_digest
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.verify import verify

def show(path):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["show", str(path)])

what = {
    "show": show,
    "records": lambda path: sum(len(step.sampled) for step in open_trace(path).records("record")),
    "verify": lambda path: list(verify(open_trace(path))),
    "digest": lambda path: [content_digest(open_trace(path).part(key)) for key in open_trace(path).parts],
    "pack": lambda path: pack_trace(open_trace(path), Path(f"{path}.{sys.argv[2]}.pack"), level=1, force=True),
    "compare": lambda path: compare_traces(path, path.with_suffix(".other")),
}[sys.argv[2]]
store.BLOCK = 1 << 16
tally.LEANS_KEPT = 100  # rows of each tensor; else memory grows up to what 4,096 take
# Else memory grows up to what decoded chunks, and a block that is copied, may take.
reader.CACHED = reader.CACHED_OF_LARGE = packfile._BLOCK = 1 << 18
what(Path(sys.argv[3]))  # imports on use, pools
tracemalloc.start()
what(Path(sys.argv[1]))
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.fixture(scope="module")
def lengths(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Path]]:
    """A shorter and a longer trace, as directory and packed; of both, a reader keeps as many INDEX frames."""
    folder = tmp_path_factory.mktemp("lengths")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_record, "EVERY", 200)
        for steps in (10, 500, 2500):
            path = long_trace(folder / f"{steps}.trace", steps)
            pack_trace(open_trace(path), folder / f"{steps}.pack")
            long_trace(folder / f"{steps}.other", steps, off=1e-5)
            found[steps] = path, folder / f"{steps}.pack"
    return found


def peak(what: str, path: Path, first: Path) -> int:
    """Most bytes that are held at once while ``what`` is done with a trace, after it was done with a first one."""
    command = [sys.executable, "-c", SCRIPT, str(path), what, str(first)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout)


@pytest.mark.parametrize("packed", [False, True], ids=["directory", "packed"])
@pytest.mark.parametrize("what", ["show", "records", "verify", "digest", "pack"])
def test_memory_does_not_grow_with_steps(lengths: dict[int, tuple[Path, Path]], what: str, packed: bool) -> None:
    first = lengths[10][packed]
    grown = peak(what, lengths[2500][packed], first) - peak(what, lengths[500][packed], first)
    assert grown / 2000 < 100  # bytes a step


def test_memory_of_a_comparison_hardly_grows_with_steps(lengths: dict[int, tuple[Path, Path]]) -> None:
    """Numbers of rows are held, and which calls were compared."""
    first = lengths[10][0]
    grown = peak("compare", lengths[2500][0], first) - peak("compare", lengths[500][0], first)
    assert grown / 2000 < 1024  # bytes a step
