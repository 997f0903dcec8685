"""A real HTTP server that serves eight clients at once, and records those of them that are chosen."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash
from engine_support import FAULTS, ROOT, TINY, Engines, greedy

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(ROOT / "fixtures"))

from recorded_server import ENVIRONMENT, KINDS, Answer, Server, compared

from tracereplay.recorder.choosing import Choice
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

CLIENTS = 8
RATE = 4  # one request in so many
SAMPLE = f"1/{RATE}"


@pytest.fixture
def serve(tmp_path: Path, start_server: Callable[..., Server]) -> Callable[..., Server]:
    return lambda *options: start_server(tmp_path / "served.trace", options=options)


def _sampled(name: str) -> bool:
    return xxhash.xxh3_64_intdigest(name.encode()) * RATE < 1 << 64


def _id(kind: str, own: str) -> str:
    return f"chatcmpl-{own}" if kind.endswith("chat") else f"cmpl-{own}"


def _ask_all(server: Server, count: int) -> tuple[list[Answer], list[Answer]]:
    """Asks from all clients at once; the answers of requests that are to be in the trace, and the others."""
    chance = random.Random(5)
    marks: tuple[Mapping[str, Any], ...] = (
        {}, {}, {"vllm_xargs": {"tracereplay": "record"}}, {"vllm_xargs": {"tracereplay": "skip"}}
    )  # fmt: skip
    jobs = []
    for number in range(count):
        kind, more = KINDS[number % len(KINDS)], marks[number // len(KINDS) % len(marks)]
        own = f"gold-{number}" if number % 5 == 0 else f"other-{number}"
        chosen = "record" in str(more) or (
            "skip" not in str(more) and (own.startswith("gold") or _sampled(_id(kind, own)))
        )
        jobs.append((kind, own, chance.randrange(6, 20), more, chosen))

    def ask(job: tuple[str, str, int, Mapping[str, Any], bool]) -> Answer:
        kind, own, tokens, more, _ = job
        mine = random.Random(own)
        return server.ask(kind, f"{own} " + "x" * mine.randrange(40), tokens, mine, request_id=own, **more)

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, jobs))
    return [a for a, job in zip(answers, jobs, strict=True) if job[4]], [
        a for a, job in zip(answers, jobs, strict=True) if not job[4]
    ]


def test_only_chosen_requests_are_in_the_trace_and_their_replay_matches(
    serve: Callable[..., Server], engines: Engines, single_process: Mapping[str, str], fault_file: Path,
    plant: Callable[[str], None],
) -> None:  # fmt: skip
    server = serve("--sample", SAMPLE, "--requests", "*cmpl-gold-*")
    server.wait_until_ready()
    chosen, others = _ask_all(server, 48)
    assert len(chosen) > 10
    assert len(others) > 10
    server.kill(signal.SIGTERM, "parent")
    code = server.wait()
    trace = open_trace(server.out)
    assert trace.complete == (code == 0)
    states = {report.state for report in verify(trace)}  # of the segment, and of the file that says who asked
    assert states == ({"complete"} if code == 0 else {"complete", "recoverable"})
    _check(trace, chosen, others)
    assert compared(trace, chosen) == len(chosen)
    env = {**single_process, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}
    running = engines.start("v1", env=env)
    verdict = running.verdict(trace)
    assert verdict.first_divergence is None, verdict.reasons
    assert verdict.tokens.differing == 0, verdict.reasons
    assert verdict.verdict == ("match" if trace.complete else "inconclusive"), verdict.reasons
    assert any("In golden: Batches had other company" in note for note in verdict.notes), verdict.notes
    plant("scale")
    found = running.verdict(trace).first_divergence
    assert found is not None
    assert found.site == "model.layers.1.input_layernorm"


def _check(trace: Trace, chosen: list[Answer], others: list[Answer]) -> None:
    prompts = {tuple(p["prompt_token_ids"]) for p in trace.raw_run["workload"]["prompts"]}
    assert prompts == {answer.prompt for answer in chosen}
    assert not prompts & {answer.prompt for answer in others}
    shared = 0
    for step in trace.steps("record"):
        assert len(step.rows)
        assert step.rows[:, 0].min() >= 0
        for call in step.calls:
            for side, _, value in call.values():
                rows = call.rows_of("out" if side == "out" else "in")
                assert rows.min(initial=0) >= 0
                assert len(rows) in value.shape[:2], (call.site, side, value.shape, len(rows))
        if step.company is not None:
            shared += step.company[0] > 0 and step.company[1] > 0
    assert shared > 10


LEFT_OUT = {
    "tokens from the start": Options(choice=Choice(tokens=(0, 24))),
    "tokens from the middle": Options(choice=Choice(tokens=(8, None))),
    "every third step": Options(choice=Choice(every=3)),
    "some operators": Options(sites=("*.mlp.*", "*layernorm")),
    "outputs": Options(sides=("out",)),
    "no operator": Options(sites=()),
}
UNFED = "unfed context: golden lacks earlier rows of the sequence"


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_replay_of_a_part_compares_that_and_all_tokens(
    engines: Engines, single_process: Mapping[str, str], fault_file: Path, plant: Callable[[str], None], what: str
) -> None:
    env = {**single_process, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}
    running = engines.start("v1", env=env)
    golden = running.record(*greedy(9, 20), options=LEFT_OUT[what])
    verdict = running.verdict(golden)
    assert (verdict.verdict, verdict.tokens.compared) == ("match", 16), verdict.reasons
    lacks = {left.site.rsplit(".", 1)[-1] for left in verdict.coverage.not_compared if left.reason == UNFED}
    assert lacks == ({"attn"} if what in ("tokens from the middle", "every third step") else set())
    assert any(note.startswith(("Of operators, only", "Only tokens")) for note in verdict.notes), verdict.notes
    plant("scale")
    found = running.verdict(golden)
    if what == "no operator":  # tokens and logprobs tell, if it reaches them
        assert found.first_divergence is None
        return
    assert found.first_divergence is not None
    assert found.first_divergence.site == "model.layers.1.input_layernorm"
    assert ("on golden inputs" in found.reasons[0]) == (what != "outputs")


STAND_IN = Path(__file__).parent / "stand_in"
ASYNCHRONOUS = {"PYTHONPATH": str(STAND_IN), "TRITON_INTERPRET": "1", "STAND_IN_ASYNC": "1"}
ENGINES = {
    "V0": ("v0", {}),
    "V1 asynchronous": ("v1", {**ASYNCHRONOUS, "VLLM_USE_V2_MODEL_RUNNER": "0"}),
    "V2 asynchronous": ("v1", {**ASYNCHRONOUS, "VLLM_USE_V2_MODEL_RUNNER": "1"}),
}


@pytest.mark.parametrize("what", ENGINES)
def test_requests_that_ask_for_it_are_recorded_by_every_runner(
    engines: Engines, tmp_path: Path, single_process: Mapping[str, str], what: str
) -> None:
    name, env = ENGINES[what]
    engines.stop()
    out, answers = tmp_path / "marked.trace", tmp_path / "answers.json"
    script = Path(__file__).with_name("chosen_requests.py")
    command = [
        sys.executable, "-m", "tracereplay.cli.main", "record", "--engine", name, "--marked", "--when-behind",
        "block", "-o", str(out), "--", "python", str(script), str(TINY), name,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300,
        env={**os.environ, **ENVIRONMENT, **single_process, **env, "ANSWERS": str(answers)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(answers.read_text())
    trace = open_trace(out)
    prompts = trace.raw_run["workload"]["prompts"]
    assert [len(prompt["prompt_token_ids"]) for prompt in prompts] == [4, 34]  # requests 0 and 6
    assert not any("extra_args" in note for note in trace.run.notes)
    tokens: dict[tuple[int, int], list[int]] = {}
    for step in trace.steps("record"):
        for sampled in step.sampled:
            tokens.setdefault(sampled.key[:2], []).append(sampled.token)
        for call in step.calls:
            for side, _, value in call.values():
                assert len(call.rows_of("out" if side == "out" else "in")) in value.shape[:2], call.site
    assert [tokens[0, 0], tokens[1, 0], tokens[1, 1]] == [*said[0], *said[6]]
    assert any(step.company and step.company[1] for step in trace.steps("record"))
