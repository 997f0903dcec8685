"""Recording in one's own Python, in the real engine's environment, to which nothing is added but a path."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import TINY, Engines, find_engine

from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

SCRIPT = Path(__file__).with_name("own_python.py")


def run(mode: str, folder: Path, engine: str = "v1", **variables: str) -> dict[str, Any]:
    """What the script found, run as a user does: by the variables that ``engine env`` prints."""
    find_engine(engine)
    folder.mkdir(exist_ok=True)
    printed = subprocess.run(
        [sys.executable, "-m", "tracereplay", "engine", "env", engine], capture_output=True, text=True, check=True
    ).stdout
    words = " ".join(map(shlex.quote, ("python", str(SCRIPT), mode, str(TINY), str(folder))))
    done = subprocess.run(
        ["bash", "-c", f"{printed}exec {words}"], capture_output=True, text=True, timeout=300, cwd=folder,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def tokens_of(path: Path) -> dict[bytes, list[int]]:
    """What was generated, by prompt."""
    with open_trace(path) as trace:
        assert {report.state for report in verify(trace)} == {"complete"}
        tokens: dict[int, list[tuple[int, int]]] = {}
        for sampled in (sampled for step in trace for sampled in step.sampled):
            tokens.setdefault(sampled.key.request, []).append((sampled.key.position, sampled.token))
        prompts = [bytes(i for i in p.token_ids or () if i < 256) for p in trace.run.prompts]  # one has a BOS
        return {prompts[request]: [t for _, t in sorted(pairs)] for request, pairs in tokens.items()}


def test_in_one_process(engines: Engines, single_process: Mapping[str, str], tmp_path: Path) -> None:
    """Entered before vLLM is imported; the engine lives on after the block; the trace replays."""
    engines.stop()
    found = run("simple", tmp_path / "made", **single_process)
    assert found["before"] == []
    assert "--every 0" in found["bad"]
    assert "still under way" in found["early"]
    assert (found["state"], found["control"], found["complete"], found["prompts"]) == ("recording", True, True, 3)
    assert "vLLM was built in this process before" in found["late"]
    assert len(found["after"][0]) == 6
    assert (found["left"], found["warned"]) == ([], [])
    golden = tmp_path / "made" / "golden.trace"
    first, second = found["first"]
    assert tokens_of(golden) == {
        b"to be recorded": first, b"so is this": second, b"recorded again": found["second"][0],
    }  # fmt: skip
    with open_trace(golden) as trace:
        assert trace.run.engine["versions"]["vllm"].startswith("0.32")
        reasons = [request.identity.reason for request in trace.requests]
        assert reasons == ["length"] * 3
        verdict = engines.start("v1", env=single_process).verdict(trace)
    assert verdict.matches, verdict.reasons


def test_an_engine_that_is_dropped_within_its_recording_leaves_nothing(
    engines: Engines, single_process: Mapping[str, str], tmp_path: Path
) -> None:
    engines.stop()
    found = run("dropped", tmp_path / "made", **single_process)
    assert found["held"] == [False, False]
    assert found["descriptors"][0] == found["descriptors"][1]
    assert (found["complete"], found["warned"]) == (True, [])
    for number, answers in enumerate(found["answers"]):
        path = tmp_path / "made" / f"{number}.trace"
        assert tokens_of(path) == {f"number {number}".encode(): answers[0]}


@pytest.mark.long  # two ranks start slowly where they share two cores
def test_ranks_that_generate_while_their_recording_ends_have_the_same_steps(
    engines: Engines, tmp_path: Path
) -> None:
    engines.stop()
    found = run("ranks", tmp_path / "made", VLLM_CPU_OMP_THREADS_BIND="0|1")
    assert (set(found["complete"]), found["warned"]) == ({True}, [])
    for path in (tmp_path / "made").glob("*.trace"):
        with open_trace(path) as trace:
            assert {report.state for report in verify(trace)} == {"complete"}
            assert trace.ranks("record") == (0, 1)
            steps = [len(trace.part(("record", rank))) for rank in (0, 1)]
            assert steps[0] == steps[1] > 20


def test_in_the_engines_usual_processes(engines: Engines, tmp_path: Path) -> None:
    """Entered after vLLM was imported; a collection, cut by a trigger while the engine runs."""
    engines.stop()
    found = run("several", tmp_path / "made")
    one, two = map(Path, found["traces"])
    assert found["begun"] == str(two)
    assert found["complete"] == [True, True]
    assert found["warned"] == []
    assert tokens_of(one) == {b"the first trace": found["first"][0]}
    assert tokens_of(two) == {b"the second trace": found["second"][0]}
    for path in (one, two):
        with open_trace(path) as trace:
            calls = [call for step in trace for call in step.calls]
            assert not any(call.inputs for call in calls)
            assert {call.site.split(".")[3] for call in calls if call.outputs} == {"mlp"}
