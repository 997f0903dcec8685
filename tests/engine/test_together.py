"""What production recordings combine, in a real server: a sealed ring; chosen requests without their tokens."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from recorded_server import KINDS, Answer, Server, tokens_of

from tracereplay.errors import UsageError
from tracereplay.recorder.choosing import Choice
from tracereplay.trace import open_trace, sealed
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

SECRET = "qzxjvkwq pzfgxjqv"
CHOICE = Choice(sample=(1, 2))
REQUESTS = 24


@pytest.fixture
def serve(tmp_path: Path, start_server: Callable[..., Server]) -> Callable[..., Server]:
    def start(*options: str) -> Server:
        server = start_server(tmp_path / "c", options=options)
        server.wait_until_ready()
        return server

    return start


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_ring_is_sealed_and_what_set_it_off_is_there_for_its_recipient(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyrage = pytest.importorskip("pyrage")
    monkeypatch.setattr(sealed, "_keys", sealed._Keys())
    secret = pyrage.x25519.Identity.generate()
    (tmp_path / "identity").write_text(f"{secret}\n")
    recipient = str(secret.to_public())
    server = serve("--ring", "64MB", "--trigger", "tokens>30", "--encrypt-to", recipient)
    chance = random.Random(4)
    server.ask("completion", f"before {SECRET}", 5, chance)
    long = server.ask("streamed completion", f"a long one {SECRET}", 40, chance)
    after = server.ask("chat", f"after {SECRET}", 5, chance)
    assert long.finished
    assert after.finished
    server.kill(signal.SIGTERM, "parent")
    server.wait()
    (path,) = server.out.glob("*.trace")
    assert len(everything(path)) > 100_000
    assert SECRET.encode() not in everything(server.out)
    with pytest.raises(UsageError, match="--identity FILE"):
        open_trace(path)
    sealed.use_identity(tmp_path / "identity")
    with open_trace(path) as trace:
        assert trace.complete
        assert {report.state for report in verify(trace)} == {"complete"}
        trigger = trace.run.trigger
        assert trigger is not None
        assert trigger["kind"] == "tokens"
        found = {prompt: tokens for prompt, tokens, _ in tokens_of(trace)}
        assert found[long.prompt] == long.tokens
        assert SECRET in bytes(i for i in long.prompt if i < 256).decode()
        (known,) = [k.identity for k in trace.requests if k.identity.tokens == 40]
        assert known.name.startswith("cmpl-")


def test_traces_that_follow_each_other_have_chosen_requests_without_their_tokens(
    serve: Callable[..., Server],
) -> None:
    server = serve("--rotate", "2MB", "--withhold", "tokens", "--sample", "1/2")
    ids = [f"mine-{number}" for number in range(REQUESTS)]

    def ask(own: str) -> Answer:
        kind = KINDS[int(own.rpartition("-")[2]) % 2]
        return server.ask(kind, f"{own} {SECRET}", 24, random.Random(own), request_id=own)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, ids))
    assert all(answer.finished for answer in answers)
    deadline = time.monotonic() + 30
    while len(list(server.out.glob("*.trace"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.kill(signal.SIGTERM, "parent")
    server.wait()
    chosen = {f"cmpl-{own}" for own in ids if CHOICE.takes([f"cmpl-{own}"])}
    assert 5 < len(chosen) < REQUESTS - 5
    assert SECRET.encode() not in everything(server.out)
    names, shared, operators = set(), 0, set()
    *paths, last = sorted(server.out.glob("*.trace"))
    for path in (*paths, last):
        with open_trace(path) as trace:
            assert trace.complete or path == last
            assert {report.state for report in verify(trace)} <= {"complete", *(("recoverable",) * (path == last))}
            assert trace.run.withheld is not None
            assert trace.run.withheld["what"] == ["tokens"]
            names |= {known.identity.name for known in trace.requests}
            for step in trace.steps("record"):
                assert step.rows[:, 0].min(initial=0) >= 0
                operators |= {call.site for call in step.calls if call.inputs or call.outputs}
                shared += step.company is not None and step.company[0] > 0
                assert all(sampled.token > 1 << 32 for sampled in step.sampled)  # a digest, and no token
    assert {name.removesuffix("-0") for name in names} == chosen
    assert shared > 10
    assert any(site.startswith("model.layers.1.") for site in operators)
    assert not any(site.startswith("model.layers.0.") or ".layers." not in site for site in operators)
