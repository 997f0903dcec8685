"""A flight recorder in a real HTTP server: what it keeps, what sets it off, and what a replay makes of it."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from engine_support import FAULTS, Engines

sys.path.insert(0, str(Path(__file__).parent))

from recorded_server import BLOCK, Answer, Server

from tracereplay.trace import Trace, open_trace
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path, start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> Serve:
    def start(fault: str, *recording: str) -> Server:
        (tmp_path / "fault").write_text(fault)
        monkeypatch.setenv("PYTHONPATH", str(FAULTS))
        monkeypatch.setenv("TRACEREPLAY_TEST_FAULT", str(tmp_path / "fault"))
        server = start_server(tmp_path / "ring", options=(*BLOCK, *recording))
        server.wait_until_ready()
        return server

    return start


def whole(path: Path) -> Trace:
    trace = open_trace(path)
    assert trace.complete
    assert {report.state for report in verify(trace)} == {"complete"}
    return trace


def tokens(trace: Trace, request: int) -> list[int]:
    sampled = [s for step in trace.steps("record") for s in step.sampled if s.key.request == request]
    return [token for _, token in sorted({s.key.position: s.token for s in sampled}.items())]


def kinds(server: Server) -> list[str]:
    found = [open_trace(path) for path in sorted(server.out.glob("*.trace"))]
    return [str(trace.part(trace.parts[0]).meta["trigger"]["kind"]) for trace in found]


def test_a_fault_long_after_a_request_began_is_named_by_a_replay_of_the_ring(
    serve: Serve, engines: Engines, single_process: Mapping[str, str]
) -> None:
    server = serve("nan_at_forty", "--ring", "20steps", "--trigger-every", "0s")
    chance = random.Random(3)
    assert server.ask("completion", "one that comes and goes before", 8, chance, temperature=0.0).finished
    broken = server.ask("completion", "this one breaks in its fortieth step", 60, chance, temperature=0.0)
    server.kill(signal.SIGTERM, "parent")
    server.wait()
    assert server.left_over() == ([], set())
    (path,) = server.out.glob("*.trace")
    trace = whole(path)
    trigger = trace.run.trigger
    assert trigger is not None
    place = len(broken.prompt) + 39
    assert (trigger["kind"], trigger["request"], trigger["position"]) == ("nonfinite", 0, place)
    steps = trace.steps("record")
    where = [step.number for step in steps].index(trigger["step"])
    assert (where, len(steps) - where - 1) == (21, 16)  # a step of what was before, the ring, and what follows
    assert steps[where].rows.tolist() == [[0, 0, place]]
    assert [p.token_ids for p in trace.run.prompts] == [broken.prompt]
    assert tokens(trace, 0) == broken.tokens[: 40 + 17]
    (server.out.parent / "fault").write_text("")
    verdict = engines.start("v1", env=single_process).verdict(trace).as_dict()
    first = verdict["first_divergence"]
    assert first["site"] == "model.layers.4.self_attn.o_proj"
    assert (first["class"], first["request"], first["position"]) == ("nonfinite", 0, place)
    reasons = {row["reason"].partition(":")[0] for row in verdict["coverage"]["not_compared"]}
    assert reasons == {"unfed context"}


def test_a_ring_that_holds_requests_from_their_start_is_compared_whole(
    serve: Serve, engines: Engines, single_process: Mapping[str, str]
) -> None:
    server = serve("", "--ring", "64MB", "--trigger", "mark", "--trigger", "tokens>30", "--trigger-every", "0s")
    chance = random.Random(4)
    server.ask("completion", "before", 5, chance, temperature=0.0)
    marked = server.ask(
        "completion", "it says so", 12, chance, temperature=0.0, vllm_xargs={"tracereplay": "trigger"}
    )
    long = server.ask("completion", "a long one", 40, chance, temperature=0.0)
    server.kill(signal.SIGTERM, "parent")
    server.wait()
    first, second = (whole(path) for path in sorted(server.out.glob("*.trace")))
    assert [(t.run.trigger or {})["kind"] for t in (first, second)] == ["mark", "tokens"]
    assert ((first.run.trigger or {})["request"], tokens(first, 1)) == (1, marked.tokens)
    assert ((second.run.trigger or {})["request"], tokens(second, 2)) == (2, long.tokens)
    verdict = engines.start("v1", env=single_process).verdict(second).as_dict()
    assert verdict["verdict"] == "match"
    assert verdict["coverage"]["not_compared"] == []


def test_an_engine_that_breaks_leaves_a_trace_of_the_step_in_which_it_does(serve: Serve) -> None:
    server = serve("error_at_forty", "--ring", "30steps")
    chance = random.Random(5)
    with pytest.raises((OSError, ValueError)):
        server.ask("completion", "this will break it", 60, chance, temperature=0.0)
    server.wait()
    trace = whole(next(server.out.glob("*.trace")))
    trigger, last = trace.run.trigger, trace.steps("record")[-1]
    assert trigger is not None
    assert (trigger["kind"], trigger["detail"]) == ("error", "RuntimeError: no more of this")
    assert trigger["step"] == last.number
    assert "The engine raised RuntimeError: no more of this" in last.notes[0]
    assert last.calls[-1].site == "model.layers.3.mlp.down_proj"
    assert last.calls[-1].outputs == ()


def _under_way(server: Server) -> list[Answer]:
    """Streamed answers of which a part has come."""
    return [answer for answer in list(server.answers) if answer.tokens and not answer.finished]


@pytest.mark.parametrize("what", ["worker", "core"])
def test_an_engine_that_is_killed_leaves_a_trace_of_its_last_steps(serve: Serve, what: str) -> None:
    server = serve("", "--ring", "64MB,10steps")
    chance = random.Random(6)
    server.start_clients(4, chance, tokens=48, aborts=0.0)
    while sum(answer.finished for answer in server.answers) < 6 or not _under_way(server):
        time.sleep(0.01)
    server.kill(signal.SIGKILL, what)
    server.wait()
    assert kinds(server) == ["gone" if what == "worker" else "error"]
    trace = whole(next(server.out.glob("*.trace")))
    assert 10 <= len(trace) <= 12
    known = {p.token_ids: number for number, p in enumerate(trace.run.prompts)}
    under_way = _under_way(server)
    assert under_way
    for answer in under_way:  # from their start, though the ring's steps do not reach back to it
        assert tokens(trace, known[answer.prompt])[: len(answer.tokens)] == answer.tokens
