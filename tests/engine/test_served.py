"""A real HTTP server, recorded under load and ended in every way; killed_servers.py does it many times."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import ROOT, TINY, Engines, find_engine

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(ROOT / "fixtures"))

from killed_servers import killed
from make_lora import make_lora
from recorded_server import KINDS, Server, compared

from tracereplay.errors import EngineFailed
from tracereplay.gate import workload_of
from tracereplay.storage.adapter import read_adapter
from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine


@pytest.fixture
def serve(tmp_path: Path, start_server: Callable[..., Server]) -> Callable[..., Server]:
    return lambda *arguments: start_server(tmp_path / "served.trace", arguments=arguments)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGINT])
def test_a_server_that_is_asked_to_end_loses_nothing_that_a_client_has(
    serve: Callable[[], Server], engines: Engines, single_process: Mapping[str, str], number: int
) -> None:
    server = serve()
    server.wait_until_ready()
    chance = random.Random(int(number))
    for kind in KINDS:
        assert server.ask(kind, f"once: {kind}", 8, chance).finished
    assert server.ask(KINDS[1], "cut off", 64, chance, abort=2).aborted
    server.start_clients(4, chance, tokens=48)
    time.sleep(2)
    assert server.running() > 0
    server.kill(number, "parent")
    # vLLM's front end may kill an engine that has requests still: the segment is whole then, and not complete.
    code = server.wait()
    assert code in (0, EngineFailed.exit_code)
    assert server.left_over() == ([], set())
    trace = open_trace(server.out)
    assert trace.complete == (code == 0)
    states = {report.state for report in verify(trace)}  # the front end's file of requests is complete in any case
    assert states == {"complete"} if code == 0 else "recoverable" in states
    assert compared(trace, server.answers) >= len(KINDS)
    assert trace.raw_run["workload"]["settings"]["max_model_len"] == 256
    if number == signal.SIGTERM:
        verdict = engines.start("v1", env=single_process).verdict(trace).as_dict()
        assert verdict["first_divergence"] is None
        assert verdict["tokens"]["first_divergence"] is None


def test_requests_are_replayed_as_they_were(
    serve: Callable[..., Server], engines: Engines, single_process: Mapping[str, str], tmp_path: Path
) -> None:
    """Each of what a request may ask for changes what is generated: without it, a replay diverges.

    One sequence at a time: in mixed batches vLLM's CPU kernels give the base model's rows an adapter, too.
    """
    adapter = make_lora(TINY, tmp_path / "mine")
    given: dict[str, Any] = {"max_num_batched_tokens": 320, "block_size": 32, "max_num_seqs": 1}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--no-enable-prefix-caching", "--compilation-config", '{"custom_ops": ["none"]}']
    server = serve("--enable-lora", "--lora-modules", f"mine={adapter}", *options)
    server.wait_until_ready()
    chance = random.Random(7)
    greedy = {"temperature": 0.0, "ignore_eos": False}
    plain = server.ask("completion", "what comes of itself", 12, chance, **greedy)
    asked: dict[str, dict[str, Any]] = {
        "grammar": {"structured_outputs": {"regex": "[ab]{4,8}"}},
        "format": {"response_format": {"type": "json_object"}},
        "penalty": {"repetition_penalty": 1.9, "presence_penalty": 1.5, "frequency_penalty": 1.5},
        "bias": {"logit_bias": {"65": 100}},
        "allowed": {"allowed_token_ids": [70, 71, 72]},
        "words": {"bad_words": [chr(plain.tokens[0])]},
        "stop": {"stop": [chr(plain.tokens[3])]},
    }
    for what, more in asked.items():
        text = "what comes of itself" if what in ("words", "stop") else f"asked for {what}"
        assert server.ask("completion", text, 12, chance, **greedy, **more).finished
    assert server.ask("completion", "what comes of itself", 6, chance, **greedy, model="mine").finished
    unusual = server.ask("completion", "more than a replay can ask", 6, chance, **greedy, vllm_xargs={"x": 1})
    assert unusual.finished
    server.kill(signal.SIGTERM, "parent")
    # A front end that loses patience kills its engine: all steps are there then, and the trace is not complete.
    code = server.wait()
    trace = open_trace(server.out)
    assert trace.complete == (code == 0)
    sampling = [dict(prompt.sampling) for prompt in trace.run.prompts]
    assert [
        set(more) - {"response_format"} <= set(s) for more, s in zip(asked.values(), sampling[1:], strict=False)
    ]
    assert sampling[1]["structured_outputs"] == {"regex": "[ab]{4,8}"}
    assert sampling[2]["structured_outputs"] == {"json_object": True}
    assert sampling[4]["logit_bias"] == {"65": 100.0}
    assert sampling[7]["stop"] == [chr(plain.tokens[3])]
    assert any("Request 9 asked for extra_args" in note for note in trace.run.notes)
    assert sampling[8]["lora"] == read_adapter("mine", adapter).as_dict()
    settings = workload_of(trace, {}, None).settings
    running = engines.start("v1", env=single_process, **settings)
    verdict = running.verdict(trace)
    # A replay starts its engine with what the server was given, as far as that is for what it computes.
    given |= {"enable_prefix_caching": False, "compilation_config": {"custom_ops": ["none"]}}
    assert given.items() <= settings.items(), settings
    assert not {"served_model_name", "enable_log_requests"} & set(settings), settings
    assert {difference.effect for difference in verdict.settings_diff} <= {"none"}, verdict.settings_diff
    assert verdict.verdict == ("match" if trace.complete else "inconclusive"), verdict.reasons
    assert len(verdict.reasons) == (not trace.complete), verdict.reasons
    assert (verdict.first_divergence, verdict.tokens.differing) == (None, 0)
    assert verdict.coverage.share == 1.0


@pytest.mark.parametrize(
    "kind", ["parent", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("worker", "writer"))]
)
def test_what_a_client_has_is_in_the_trace_of_a_server_that_was_killed(
    tmp_path: Path, engines: Engines, kind: str
) -> None:
    find_engine("v1")
    engines.stop()
    found = killed(tmp_path, kind, random.Random(kind))
    assert found["running"] > 0
    assert found["steps"] > 0
