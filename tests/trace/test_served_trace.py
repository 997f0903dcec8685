"""A recorded command: what its segments say when its parent was killed, and several engines as one."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracereplay.errors import DamagedTrace, UsageError
from tracereplay.event import Request, RowKey, Sampled, Site, make_rows
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes, TraceDirectory, open_trace, segment_path
from tracereplay.trace.directory import part_name
from tracereplay.trace.export import export_calls, export_tensors
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.place import Place
from tracereplay.trace.served import is_whole
from tracereplay.trace.verify import repair, verify

SITE = Site("model.norm", "RMSNorm", 77, ("x",))
ENGINE = {"versions": {"vllm": "1"}, "settings": {"dtype": "float32", "enforce_eager": True, "block_size": 16}}
META = {"world": 1, "model": "/models/m", "engine": ENGINE, "engines": 1}


def begun(path: Path, **run: Any) -> TraceDirectory:
    """A trace as it is when its command has just been started."""
    return TraceDirectory(path, {"kind": "recording", "notes": [], "command": ["vllm", "serve"], **run})


def engine(
    path: Path, number: int, prompts: Sequence[tuple[int, ...]], steps: int = 3, rank: int = 0, **meta: Any
) -> SegmentWriter:
    """One engine's segment: all prompts begin in the first step, and each step gives each a token."""
    writer = SegmentWriter(segment_path(path, part_name("record", number), rank), {**META, "rank": rank, **meta})
    writer.sites([SITE])
    for step in range(steps):
        keys = [RowKey(r, 0, len(p) + step) for r, p in enumerate(prompts)]
        rows = make_rows([(r, s, position - 1) for r, s, position in keys])
        data = np.full(len(rows), 100 * number + step, np.float32)
        value = TensorBytes("float32", data.shape, (1,), memoryview(data.tobytes()), 0, 0)
        tokens = [1000 * number + 100 * key.request + step for key in keys]
        sampled = [Sampled(key, token, token, None) for key, token in zip(keys, tokens, strict=True)]
        requests = [Request(r, 0, p, {"max_tokens": steps}) for r, p in enumerate(prompts)] if step == 0 else []
        call = PendingCall(SITE.slot, 0, rows, rows, {0: value}, {0: value})
        writer.step(step, rows, [call], sampled, [], requests)
    return writer


def tokens_of(path: Path) -> dict[tuple[int, int], int]:
    trace = open_trace(path)
    return {(s.key.request, s.key.position): s.token for step in trace.steps("record") for s in step.sampled}


def test_segments_supply_what_a_killed_parent_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    begun(path)
    engine(path, 0, [(1, 2), (3,)]).abandon()
    run = open_trace(path).raw_run
    assert [p["prompt_token_ids"] for p in run["workload"]["prompts"]] == [[1, 2], [3]]
    assert run["workload"]["prompts"][0]["sampling"] == {"max_tokens": 3}
    assert run["workload"]["settings"] == {"dtype": "float32", "enforce_eager": True}
    assert run["workload"]["model"] == "/models/m"
    assert run["engine"]["versions"] == {"vllm": "1"}
    assert run["engines"] == [{"segments": "record", "ranks": [0], "model": "/models/m", "world": 1}]
    assert run["command"] == ["vllm", "serve"]


def test_the_manifest_takes_precedence_over_the_segments(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    begun(
        path,
        workload={"model": "/elsewhere", "prompts": [], "settings": {}, "weights": "d1"},
        engine={"name": "x"},
    )
    engine(path, 0, [(1, 2)]).abandon()
    run = open_trace(path).raw_run
    assert (run["workload"]["model"], run["workload"]["weights"]) == ("/elsewhere", "d1")
    assert run["workload"]["prompts"][0]["prompt_token_ids"] == [1, 2]
    assert (run["engine"]["name"], run["engine"]["versions"]) == ("x", {"vllm": "1"})


def test_a_trace_without_recorded_steps_is_still_described(tmp_path: Path) -> None:
    begun(tmp_path / "a.trace")
    assert open_trace(tmp_path / "a.trace").raw_run["workload"]["prompts"] == []


def test_repair_writes_what_the_parent_would_have_written(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    begun(path)
    engine(path, 0, [(1, 2)]).close({})
    derived = open_trace(path).raw_run
    assert not open_trace(path).complete
    assert repair(open_trace(path)) == ["manifest.json"]
    assert open_trace(path).manifest["run"] == derived
    assert open_trace(path).complete
    assert repair(open_trace(path)) == []


def test_repair_of_a_segment_that_was_cut_off_makes_nothing_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    begun(path)
    engine(path, 0, [(1, 2)]).abandon()
    assert repair(open_trace(path)) == ["record-rank0.seg", "manifest.json"]
    mended = open_trace(path)
    assert mended.manifest["run"]["workload"]["prompts"]
    assert not mended.complete
    assert mended.manifest["state"] == "incomplete"


def test_engines_are_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    begun(path)
    engine(path, 0, [(1, 2), (3,)]).close({})
    engine(path, 1, [(4,), (5, 6)], steps=2).close({})
    trace = open_trace(path)
    assert trace.passes == ("record",)
    assert trace.ranks("record") == (0,)
    assert [step.number for step in trace.steps("record")] == [0, 1, 2, 3, 4]
    assert [p["prompt_token_ids"] for p in trace.raw_run["workload"]["prompts"]] == [[1, 2], [3], [4], [5, 6]]
    assert tokens_of(path) == {
        (0, 2): 0, (0, 3): 1, (0, 4): 2, (1, 1): 100, (1, 2): 101, (1, 3): 102,
        (2, 1): 1000, (2, 2): 1001, (3, 2): 1100, (3, 3): 1101,
    }  # fmt: skip
    last = trace.steps("record")[-1]
    assert last.rows.tolist() == last.calls[0].rows_in.tolist() == [[2, 0, 1], [3, 0, 2]]
    assert np.frombuffer(last.calls[0].inputs[0].load(), np.float32).tolist() == [101, 101]
    assert is_whole(trace)


def test_each_engine_is_packed_verified_and_digested_separately(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    begun(path)
    engine(path, 0, [(1, 2)]).close({})
    engine(path, 1, [(4,)]).close({})
    repair(open_trace(path))
    pack_trace(open_trace(path), tmp_path / "a.pack")
    pack_trace(open_trace(path), tmp_path / "strong.pack", level=5)
    digests = {open_trace(p).digest() for p in (path, tmp_path / "a.pack", tmp_path / "strong.pack")}
    assert len(digests) == 1
    names = {report.name for report in verify(open_trace(tmp_path / "a.pack"))}
    assert names == {"record-rank0.seg", "record-engine1-rank0.seg"}
    assert all(r.state == "complete" for r in verify(open_trace(path)))
    assert tokens_of(tmp_path / "strong.pack") == tokens_of(path)
    (path / "record-engine1-rank0.seg").unlink()
    assert open_trace(path).digest() not in digests


def test_a_recording_that_loses_tokens_is_not_complete(tmp_path: Path) -> None:
    def whole(name: str, *parts: tuple[SegmentWriter, dict[str, Any] | None]) -> bool:
        for writer, summary in parts:
            writer.abandon() if summary is None else writer.close(summary)
        return is_whole(open_trace(tmp_path / name))

    def at(name: str) -> Path:
        begun(tmp_path / name)
        return tmp_path / name

    one = [(1, 2)]
    assert whole("good", (engine(at("good"), 0, one), {}))
    assert not whole("dropped", (engine(at("dropped"), 0, one), {"dropped": 1}))
    assert not whole("cut", (engine(at("cut"), 0, one), None))
    assert not whole("rank", (engine(at("rank"), 0, one, world=2), {}))
    assert not whole("engine", (engine(at("engine"), 0, one, engines=2), {}))
    path = at("second")
    assert not whole("second", (engine(path, 0, one), {}), (engine(path, 1, one), None))
    path = at("ranks")
    parts = [(engine(path, 0, one, steps=3 - rank, rank=rank, world=2), {}) for rank in (0, 1)]
    assert not whole("ranks", *parts)
    SegmentWriter(
        segment_path(at("refused"), "record", 0), {**META, "refused": "It spoke in riddles."}
    ).close_alone()
    refused = open_trace(tmp_path / "refused")
    assert not is_whole(refused)
    assert "It spoke in riddles." in refused.raw_run["notes"][0]


def test_engines_with_a_different_model_are_kept_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    begun(path)
    engine(path, 0, [(1, 2)]).close({})
    engine(path, 1, [(4,)], model="/models/other").close({})
    trace = open_trace(path)
    assert len(trace.raw_run["workload"]["prompts"]) == 1
    assert "record-engine1 ran another model" in trace.raw_run["notes"][0]
    assert len(list(verify(trace))) == 2


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Path]:
    """A trace that is being recorded: somebody else has the lock of its segment."""
    path = tmp_path / "live.trace"
    begun(path)
    writer = engine(path, 0, [(1, 2)])
    fcntl.flock(writer.fileno(), fcntl.LOCK_EX)
    yield path
    writer.abandon()


def bytes_of(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_a_live_recording_is_neither_repaired_nor_packed_nor_replaced(live: Path, tmp_path: Path) -> None:
    before = bytes_of(live)
    with pytest.raises(UsageError, match=r"is being recorded: record-rank0.seg is still being written"):
        repair(open_trace(live))
    with pytest.raises(UsageError, match="is being recorded"):
        pack_trace(open_trace(live), tmp_path / "a.pack")
    with pytest.raises(UsageError, match="is being recorded"):
        Place(live, force=True)
    for export in (export_tensors, export_calls):
        with pytest.raises(UsageError, match="is being recorded"):
            export([], live / "record-rank0.seg")
    assert bytes_of(live) == before
    assert not (tmp_path / "a.pack").exists()


def test_a_command_that_has_not_begun_to_record_holds_its_trace(tmp_path: Path) -> None:
    directory = begun(tmp_path / "a.trace")
    place = "from tracereplay.trace.place import Place"
    look = f"import sys, pathlib; {place}; Place(pathlib.Path(sys.argv[1]), force=True)"
    elsewhere = [sys.executable, "-c", look, str(tmp_path / "a.trace")]
    refused = subprocess.run(elsewhere, capture_output=True, text=True)
    assert (refused.returncode, "is being recorded" in refused.stderr) == (1, True), refused.stderr
    directory.let_go()
    assert subprocess.run(elsewhere, capture_output=True, text=True).returncode == 0


def test_locks_end_with_the_process(live: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.trace"
    shutil.copytree(live, copy)
    assert repair(open_trace(copy))
    assert os.listdir(copy)


def test_numbers_that_no_recording_has_are_refused(tmp_path: Path) -> None:
    for number in (1 << 22, (1 << 31) - 1):
        path = tmp_path / f"{number}.trace"
        begun(path)
        engine(path, 0, [(1, 2)]).close({})
        writer = SegmentWriter(segment_path(path, "record-engine1", 0), META)
        requests = [Request(number, 0, (1,), {})]
        writer.step(0, make_rows([(0, 0, 0)]), [], [], [], requests)
        writer.close({})
        with pytest.raises(DamagedTrace, match="names request"):
            open_trace(path).run  # noqa: B018
