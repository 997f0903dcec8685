"""Recording in one's own Python, with the toy's library; `tests/engine/test_own_python.py` has the real engine."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import tracereplay
from tracereplay.cli.record import GENERATES, record
from tracereplay.engines.toy.checkpoint import write_checkpoint
from tracereplay.engines.toy.library import LLM
from tracereplay.errors import UsageError
from tracereplay.launch import own


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_generated_in_the_block_is_in_the_trace(model: Path, tmp_path: Path) -> None:
    before = dict(os.environ)
    with tracereplay.recording(tmp_path / "mine.trace", sites=["*.mlp.*"], sides="out") as recording:
        llm = LLM(model)
        tokens = llm.generate(["Hello", [5, 6, 7]], max_tokens=4)
        assert recording.path == tmp_path / "mine.trace"
        assert recording.status()["path"] == str(recording.path)
    assert llm.generate(["not recorded"])
    assert dict(os.environ) == before
    assert not list(Path("/dev/shm").glob(f"tracereplay-room-*/{os.getpid()}"))
    assert recording.traces == (recording.path,)
    assert not (recording.path / "control.sock").exists()
    with recording.trace as trace:
        assert trace.complete
        assert [len(p.token_ids or ()) for p in trace.run.prompts] == [5, 3]
        assert {call.site.split(".")[3] for step in trace for call in step.calls} == {"mlp"}
        sampled = sorted((s.key, s.token) for step in trace for s in step.sampled)
    assert [token for _, token in sampled] == [token for sequence in tokens for token in sequence]
    with tracereplay.open_trace(recording.path) as trace:
        assert tracereplay.compare(trace, trace).matches


def test_many_recordings_leave_no_files_open_and_no_threads(model: Path, tmp_path: Path) -> None:
    def record(number: int) -> None:
        with tracereplay.recording(tmp_path / f"{number}.trace", sites=["*.mlp.*"], sides="out"):
            LLM(model).generate(["Hello"], max_tokens=1)

    record(0)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(1, 9):
        record(number)
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_nothing_is_recorded_while_it_is_paused(model: Path, tmp_path: Path) -> None:
    with tracereplay.recording(tmp_path / "mine.trace", paused=True) as recording:
        llm = LLM(model)
        llm.generate(["before"], max_tokens=2)
        recording.resume()
        llm.generate(["recorded"], max_tokens=2)
        recording.pause()
        llm.generate(["after"], max_tokens=2)
        recording.pause()
        recording.resume()
        llm.generate(["again"], max_tokens=2)
    found = [bytes(p.token_ids or ()) for p in recording.trace.run.prompts]
    assert found == [b"recorded", b"again"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"every": 0}, "--every 0 would never record a step"),
        ({"sample": 2}, "'2' is no share of requests"),
        ({"sample": "1/0"}, "no share"),
        ({"sides": "up"}, "--sides up is none"),
        ({"requests": ""}, "--requests is empty"),
        ({"tokens": "9:3"}, "no range of positions"),
        ({"level": "kernel", "marked": True}, "Kernels take whole batches"),
        ({"level": "block"}, "--level block is not known; give operator or kernel."),
        ({"when_behind": "wait"}, "--when-behind wait is not known"),
        ({"max_steps": 0}, "--max-steps 0 is too little"),
        ({"max_bytes": 10}, "--max-bytes 10 is too little"),
        ({"trigger": "error"}, "give its size with --ring; leave out --trigger."),
        ({"trigger_most": 3}, "leave out --trigger-most."),
        ({"ring": "lots"}, "no size of a ring"),
        ({"ring": "1MB", "trigger": "sometimes"}, "sometimes"),
        ({"ring": "1MB", "level": "kernel"}, "A ring keeps operators"),
        ({"ring": "1MB", "rotate": "1h"}, "give one"),
        ({"rotate": "1XB"}, "no amount of bytes"),
        ({"keep": 3}, "--rotate or --ring too"),
        ({"rotate": "1h", "keep": 0}, "--keep 0 would keep no trace"),
        ({"rotate": "1h", "force": True}, "--force replaces a trace"),
        ({"paused": True, "control": False}, "never record"),
        ({"withhold": "names"}, "--withhold names is not known"),
        ({"withhold_key": "file"}, "--withhold-key is for"),
        ({"encrypt_to": "nobody"}, "nobody"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        tracereplay.recording(tmp_path / "x", **given)
    assert said in str(refused.value)
    assert not (tmp_path / "x").exists()


def test_an_engine_that_was_built_before_is_refused(model: Path, tmp_path: Path) -> None:
    llm = LLM(model)
    with pytest.raises(UsageError, match=r"was built in this process before the recording began"):
        tracereplay.recording(tmp_path / "mine.trace").__enter__()
    assert not (tmp_path / "mine.trace").exists()
    del llm
    with tracereplay.recording(tmp_path / "mine.trace") as recording:
        LLM(model).generate(["Hello"], max_tokens=2)
    assert recording.trace.complete


def test_a_block_in_which_no_engine_was_built_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"no engine of .* was built within"),
        tracereplay.recording(tmp_path / "x"),
    ):
        pass
    assert not (tmp_path / "x").exists()
    with pytest.raises(ZeroDivisionError), tracereplay.recording(tmp_path / "x"):
        _ = 1 / 0
    assert not (tmp_path / "x").exists()


def test_recordings_do_not_nest(model: Path, tmp_path: Path) -> None:
    with tracereplay.recording(tmp_path / "outer.trace") as recording:
        with pytest.raises(UsageError, match="is being recorded into"):
            tracereplay.recording(tmp_path / "inner.trace").__enter__()
        with pytest.raises(UsageError, match="still under way"):
            _ = recording.trace
        LLM(model).generate(["Hello"], max_tokens=2)
    assert recording.trace.complete
    with pytest.raises(UsageError, match="not under way"):
        recording.pause()


def test_an_error_of_the_users_is_his_and_what_was_recorded_stays(model: Path, tmp_path: Path) -> None:
    def program() -> None:
        with tracereplay.recording(tmp_path / "mine.trace"):
            LLM(model).generate(["Hello"], max_tokens=2)
            raise KeyError("x")

    with pytest.raises(KeyError):
        program()
    assert tracereplay.open_trace(tmp_path / "mine.trace").complete


def test_a_trace_is_replaced_when_the_new_one_is_complete(model: Path, tmp_path: Path) -> None:
    for text in ("one", "two"):
        with tracereplay.recording(tmp_path / "mine.trace", force=True) as recording:
            LLM(model).generate([text], max_tokens=2)
        assert recording.path == tmp_path / "mine.trace"
        with recording.trace as trace:
            assert bytes(trace.run.prompts[0].token_ids or ()) == text.encode()
    assert [path.name for path in tmp_path.iterdir() if path.name != "model"] == ["mine.trace"]
    with pytest.raises(UsageError, match="already exists"):
        tracereplay.recording(tmp_path / "mine.trace").__enter__()


def test_a_url_is_no_place_for_a_recording() -> None:
    with pytest.raises(UsageError, match="Cannot write to"):
        tracereplay.recording("s3://bucket/x.trace")


def test_a_trigger_needs_more_than_a_single_trace(model: Path, tmp_path: Path) -> None:
    with tracereplay.recording(tmp_path / "mine.trace") as recording:
        with pytest.raises(UsageError, match="needs a flight recorder"):
            recording.trigger("looked odd")
        LLM(model).generate(["Hello"], max_tokens=2)


def test_processes_find_the_plugin_where_only_the_sources_are_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    points = "[vllm.general_plugins]\nours = tracereplay.errors:UsageError\n"
    path = own._declared(tmp_path, points)
    script = (
        "from importlib.metadata import entry_points\n"
        "found = entry_points(group='vllm.general_plugins')\n"
        "print([point.load().__name__ for point in found if point.name == 'ours'])"
    )
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd="/")
    assert (done.returncode, done.stdout.strip()) == (0, "['UsageError']"), done.stderr
    assert sys.path[-1] == str(tmp_path / "guest")


def test_it_takes_what_a_recorded_command_takes_by_the_same_names() -> None:
    verb = inspect.signature(record).parameters
    others = {"context", "command", "engine", *GENERATES}
    assert {*verb} - others == {*inspect.signature(tracereplay.recording).parameters}
    of_prompts = {*inspect.signature(tracereplay.record).parameters}
    assert of_prompts - {"workload", "report"} <= {*verb}
