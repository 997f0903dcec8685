"""A real server, recorded without tokens and for a recipient: nothing of a request can be read in its trace."""

from __future__ import annotations

import json
import random
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from engine_support import Engines, find_engine

sys.path.insert(0, str(Path(__file__).parent))

from recorded_server import KINDS, Server

from tracereplay.errors import EngineFailed, UsageError
from tracereplay.gate import workload_of
from tracereplay.trace import SegmentReader, open_trace, sealed
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine
STOP = "a stop text that nobody else has"
SECRET = "qzxjvkwq pzfgxjqv"


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The public half of a key; its file is in ``tmp_path``."""
    pyrage = pytest.importorskip("pyrage")
    monkeypatch.setattr(sealed, "_keys", sealed._Keys())
    secret = pyrage.x25519.Identity.generate()
    (tmp_path / "identity").write_text(f"{secret}\n")
    return str(secret.to_public())


def forms(tokens: list[int]) -> Iterator[bytes]:
    count = len(tokens)
    yield struct.pack(f"<{count}q", *tokens)
    yield struct.pack(f"<{count}i", *tokens)
    yield b"".join(map(msgpack.packb, tokens))
    yield json.dumps(tokens)[1:-1].encode()


def test_nothing_of_a_request_is_in_its_trace(tmp_path: Path, engines: Engines, identity: str) -> None:
    find_engine("v1")
    engines.stop()
    server = Server(tmp_path / "served.trace", options=["--withhold", "tokens", "--encrypt-to", identity])
    try:
        server.wait_until_ready()
        chance = random.Random(3)
        for kind in KINDS:
            more = {"stop": [STOP], "logit_bias": {"7": 1.5}}
            assert server.ask(kind, f"{SECRET} {kind}", 12, chance, **more).finished
        server.kill(signal.SIGINT, "parent")
        code = server.wait()  # vLLM's front end may kill an engine that ends slowly; see test_served.py
        assert code in (0, EngineFailed.exit_code), server.log.read_text()[-2000:]
    finally:
        server.close()
    with pytest.raises(UsageError, match="--identity FILE"):
        open_trace(server.out)
    sealed.use_identity(tmp_path / "identity")
    with open_trace(server.out) as trace:
        assert trace.complete == (code == 0)
        assert {report.state for report in verify(trace)} == {"complete" if code == 0 else "recoverable"}
        said = [json.dumps(trace.manifest).encode()]
        kept = set()
        for key in trace.parts:
            said += [bytes(data) for _, _, data in SegmentReader(trace.file(key)).frames() if data is not None]
        for step in trace.segment("record").steps():
            kept |= {call.site for call in step.calls if call.inputs or call.outputs}
        assert any(site.startswith("model.layers.1.") for site in kept)
        assert not any(site.startswith("model.layers.0.") or ".layers." not in site for site in kept)
        assert len(trace.run.prompts) == len(KINDS)
        assert all(prompt.sampling["withheld"].keys() == {"stop", "logit_bias"} for prompt in trace.run.prompts)
        with pytest.raises(UsageError, match="cannot be generated again"):
            workload_of(trace, {}, None)
    for word in (STOP.encode(), *(SECRET[i : i + 5].encode() for i in range(len(SECRET) - 4))):
        assert not any(word in part for part in said)
    for answer in server.answers:
        tokens = [*answer.prompt, *answer.tokens]
        assert len(tokens) > 12
        for start in range(len(tokens) - 4):
            for form in forms(tokens[start : start + 5]):
                # Tokens of this model are bytes, and "chat" or "prompt" stand in any trace, which is no leak.
                assert (form.isascii() and len(form) == 5) or not any(form in part for part in said)
