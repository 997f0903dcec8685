"""What a real engine leaves behind when it dies, or when the disk is full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from engine_support import TINY, Engines, greedy, token_ids

from tracereplay.errors import EngineFailed, RecordingIncomplete
from tracereplay.launch import Configured
from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify
from tracereplay.workload import Prompt

sys.path.insert(0, str(Path(__file__).parents[1] / "recorder"))

from faulty_disk import faulty_disk

from tracereplay.recorder.options import Options

pytestmark = pytest.mark.engine


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A file system with room for 1 MiB, and variables for the engine: none, if it is a real one.

    Who may not mount one preloads a library by which the C library's calls fail as on such a disk.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        yield folder, {"LD_PRELOAD": str(faulty_disk(tmp_path)), "FAULTY_DISK": f"enospc:{1 << 20}"}
        return
    yield folder, {}
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_the_trace_and_not_the_generation(
    engines: Engines, single_process: Mapping[str, str], small_disk: tuple[Path, Mapping[str, str]]
) -> None:
    folder, variables = small_disk
    running = engines.start("v1", env={**single_process, **variables})
    prompts = greedy(9, 6, max_tokens=60)
    plain = running.generate(*prompts)
    with pytest.raises(RecordingIncomplete, match="No space left on device"):
        running.record(*prompts, folder=folder)
    assert running.generate(*prompts) == plain
    path = next(folder.iterdir())
    trace = open_trace(path)
    assert not trace.complete
    assert 0 < len(trace.steps("record")) < 60
    recorded = {s.key: s.token for step in trace.steps("record") for s in step.sampled}
    for (request, _, position), token in recorded.items():
        assert plain[request]["token_ids"][position - len(prompts[request].token_ids or ())] == token


def test_a_disk_that_fails_costs_the_trace_and_not_the_generation(
    engines: Engines, single_process: Mapping[str, str], tmp_path: Path
) -> None:
    """As above, but what fails is the C library: nothing that can be mounted gives EIO."""
    library = faulty_disk(tmp_path)
    running = engines.start("v1", env={**single_process, "LD_PRELOAD": str(library), "FAULTY_DISK": "dead:400000"})
    prompts = greedy(9, 6, max_tokens=40)
    plain = running.generate(*prompts)
    with pytest.raises(RecordingIncomplete, match="Input/output error"):
        running.record(*prompts, folder=tmp_path)
    assert running.generate(*prompts) == plain
    engines.stop()
    trace = open_trace(next(tmp_path.glob("*.trace")))
    assert not trace.complete
    assert 0 < len(trace.steps("record")) < 40
    (report,) = verify(trace)
    assert report.state == "recoverable"
    recorded = {s.key: s.token for step in trace.steps("record") for s in step.sampled}
    for (request, _, position), token in recorded.items():
        assert plain[request]["token_ids"][position - len(prompts[request].token_ids or ())] == token


def test_an_engine_killed_while_generating_leaves_every_finished_step(
    engines: Engines, single_process: Mapping[str, str]
) -> None:
    running = engines.start("v1", env=single_process)
    running.generate(*greedy(20, max_tokens=4))  # what the first generation compiles is done
    long = Prompt(token_ids(20), None, {"max_tokens": 450, "temperature": 0.0, "logprobs": 0, "ignore_eos": True})
    failed: list[EngineFailed] = []

    def generate() -> None:
        try:
            running.record(long)
        except EngineFailed as error:
            failed.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    path = _growing(running.folder)
    os.kill(running.process.pid, signal.SIGKILL)
    thread.join(timeout=60)
    engines.stop()
    assert "was killed by SIGKILL while generating" in str(failed[0])
    trace = open_trace(path)
    assert not trace.complete
    steps = trace.steps("record")
    assert [s.number for s in steps] == list(range(len(steps)))
    assert len(steps) >= 5
    for step in steps:
        for call in step.calls:
            for value in (*call.inputs, *call.outputs):
                value.load()


def test_the_error_of_the_engines_own_process_is_told(engines: Engines, tmp_path: Path) -> None:
    """What it raises there is not what this side is told: that another process has failed."""
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights.replace(b"model.norm.weight", b"model.nope.weight"))
    told = r"(KeyError|ValueError): .*nope.* \(in its process \w+\):"
    with pytest.raises(EngineFailed, match=told) as failed:
        engines.start("v1", model)
    assert "load_weights" in failed.value.last_lines


def _growing(folder: Path) -> Path:
    """The newest trace, as soon as it holds some steps."""
    for _ in range(600):
        paths = sorted(folder.glob("*.trace"), key=lambda p: p.stat().st_mtime)
        if paths and (paths[-1] / "record-rank0.seg").exists() and "record" in open_trace(paths[-1]).passes:
            trace = open_trace(paths[-1])
            if not trace.complete and len(trace.steps("record")) >= 5:
                return paths[-1]
        time.sleep(0.05)
    raise AssertionError("the recording did not begin")


def test_a_server_is_recorded_as_it_is(
    tmp_path: Path, engines: Engines, single_process: Mapping[str, str]
) -> None:
    """``record -- COMMAND`` with a program of the user's own that starts vLLM as it likes: twice, at once."""
    from engine_support import find_engine

    from tracereplay.launch.command import record_command

    engines.stop()
    program = tmp_path / "mine.py"
    program.write_text(
        "import json, subprocess, sys\n"
        "if len(sys.argv) == 1:\n"
        "    two = [subprocess.Popen([sys.executable, __file__, n]) for n in ('is', 'was')]\n"
        "    sys.exit(max(p.wait() for p in two))\n"
        "from vllm import LLM, SamplingParams\n"
        f"llm = LLM(model={str(TINY)!r}, enforce_eager=True, max_model_len=256)\n"
        "p = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)\n"
        "word = sys.argv[1]\n"
        "done = llm.generate([f'Python {word} ', f'The statement {word} '], p, use_tqdm=False)\n"
        "said = [[d.prompt_token_ids, list(d.outputs[0].token_ids)] for d in done]\n"
        "open(__file__ + word, 'w').write(json.dumps(said))\n"
    )
    engine = find_engine("v1")
    launch = Configured("v1", engine.python, {**engine.env, **single_process}, {})
    out = tmp_path / "mine.trace"
    assert record_command(["python", str(program)], out, engine=launch, options=Options(level="kernel")) == 0
    trace = open_trace(out)
    assert trace.complete
    assert trace.run.level == "kernel"
    assert all(step.kernels for step in trace.steps("record"))
    prompts = trace.raw_run["workload"]["prompts"]
    assert sorted(len(p["prompt_token_ids"]) for p in prompts) == [11, 12, 18, 19]
    assert prompts[0]["sampling"]["max_tokens"] == 5
    assert [engine["segments"] for engine in trace.raw_run["engines"]] == ["record", "record-engine1"]
    recorded: dict[int, list[int]] = {}
    for sampled in (s for step in trace.steps("record") for s in step.sampled):
        recorded.setdefault(sampled.key.request, []).append(sampled.token)
    said = [found for word in ("is", "was") for found in json.loads(Path(f"{program}{word}").read_text())]
    assert len(said) == len(recorded) == 4
    for ids, tokens in said:
        number = [p["prompt_token_ids"] for p in prompts].index(ids)
        assert recorded[number] == tokens
    verdict = engines.start("v1", env=single_process).verdict(trace).as_dict()
    assert verdict["verdict"] == "match"
