"""Recording engines that somebody else starts, without any: their segments come from the toy."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tracereplay.ray
from tracereplay.engines.toy import record, workload
from tracereplay.environments.registry import Engine, register
from tracereplay.errors import TraceError, UsageError
from tracereplay.ray import finish, recording, runtime_env
from tracereplay.trace import TraceDirectory, open_trace

SEGMENT = "record-rank0.seg"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRACEREPLAY_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    yield
    tracereplay.ray._held.clear()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segment as an engine writes it."""
    path = tmp_path_factory.mktemp("toy") / "golden.trace"
    record(workload(), path)
    return path / SEGMENT


def variables(environment: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = environment["env_vars"]
    return found


def test_a_runtime_environment_keeps_what_is_mine(tmp_path: Path) -> None:
    mine = {"pip": ["x"], "env_vars": {"MINE": "1", "TRACEREPLAY_RECORD": "elsewhere", "VLLM_PLUGINS": "theirs"}}
    found = runtime_env(tmp_path / "a.trace", mine, sites=["model.*"], sides=["out"], sample="1/10", tokens="0:4")
    assert found["pip"] == ["x"]
    assert variables(found)["MINE"] == "1"
    assert variables(found)["TRACEREPLAY_RECORD"] == str((tmp_path / "a.trace").resolve())
    assert variables(found)["VLLM_PLUGINS"] == "theirs,tracereplay"
    assert mine["env_vars"]["TRACEREPLAY_RECORD"] == "elsewhere"  # type: ignore[index]
    assert all(isinstance(value, str) for value in variables(found).values())
    options = json.loads(variables(found)["TRACEREPLAY_OPTIONS"])
    assert (options["sites"], options["sides"], options["when_behind"]) == (["model.*"], ["out"], "drop")
    assert options["choice"]["sample"] == [1, 10]
    assert open_trace(tmp_path / "a.trace").run.notes


def test_variables_of_an_engine_come_before_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracereplay.launch.elsewhere.overlay_for", lambda python, points: tmp_path / "overlay")
    register(Engine("e", Path("python"), env={"LD_PRELOAD": "their.so", "KV": "1"}))
    env = variables(
        runtime_env(tmp_path / "a.trace", {"env_vars": {"LD_PRELOAD": "mine.so", "KV": "2"}}, engine="e")
    )
    assert env["LD_PRELOAD"] == "their.so:mine.so"
    assert env["PYTHONPATH"] == f"{tmp_path / 'overlay'}:${{PYTHONPATH}}"
    assert env["KV"] == "2"


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"sample": "2"}, "2"),
        ({"tokens": "9:1"}, "9:1"),
        ({"every": 0}, "every|step"),
        ({"sides": ["up"]}, "sides"),
        ({"when_behind": "pray"}, "when_behind|when-behind"),
        ({"engine": "nobody"}, "nobody"),
    ],
)
def test_what_makes_no_sense_is_refused_before_there_is_a_trace(
    tmp_path: Path, chosen: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        runtime_env(tmp_path / "a.trace", **chosen)
    assert not (tmp_path / "a.trace").exists()


def test_a_trace_is_completed_in_whichever_process(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "a.trace"
    runtime_env(path)
    with pytest.raises(UsageError, match="already exists"):
        runtime_env(path)
    shutil.copy(written, path)
    tracereplay.ray._held.clear()
    assert finish(path)
    trace = open_trace(path)
    assert trace.complete
    assert trace.run.kind == "recording"
    assert [p.name for p in path.iterdir() if p.name.startswith(".engine")] == []
    assert finish(path)  # again, which changes nothing
    TraceDirectory(tmp_path / "b.trace", {"kind": "recording", "notes": []})
    with pytest.raises(UsageError, match="not being recorded by engines of others"):
        finish(tmp_path / "b.trace")
    with pytest.raises(TraceError):
        finish(tmp_path / "nowhere.trace")


def test_a_segment_that_is_written_is_waited_for(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "a.trace"
    runtime_env(path)
    data = written.read_bytes()
    fd = os.open(path / SEGMENT, os.O_CREAT | os.O_WRONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def end() -> None:
        while not (path / ".ended").exists():
            time.sleep(0.01)
        os.write(fd, data)
        os.close(fd)

    thread = threading.Thread(target=end)
    thread.start()
    assert finish(path)
    thread.join()


def test_an_engine_that_was_killed_leaves_a_trace_that_says_so(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "a.trace"
    data = written.read_bytes()
    lacking = rf"a\.trace is not complete\. {SEGMENT}: its engine was ended before"
    with pytest.warns(UserWarning, match=lacking), recording(path) as found:
        (path / SEGMENT).write_bytes(data[: len(data) * 7 // 10])
    assert not found.complete
    assert found.trace.run.prompts is not None
    assert not finish(path, timeout=0)


def test_where_nobody_recorded_a_program_goes_on_and_is_told(tmp_path: Path) -> None:
    nobody = "No engine of vLLM was recorded into .*a.trace: an engine is if"
    with pytest.warns(UserWarning, match=nobody), recording(tmp_path / "a.trace") as found:
        pass
    assert not found.complete
    assert not (tmp_path / "a.trace").exists()
    runtime_env(tmp_path / "b.trace")
    with pytest.raises(UsageError, match="No engine of vLLM"):
        finish(tmp_path / "b.trace")


def test_an_error_of_the_programs_is_its_own(tmp_path: Path, written: Path) -> None:
    def train() -> None:
        with recording(tmp_path / "a.trace"):
            shutil.copy(written, tmp_path / "a.trace")
            raise ZeroDivisionError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZeroDivisionError):
            train()
    assert open_trace(tmp_path / "a.trace").complete
