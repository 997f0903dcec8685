"""A recorded server's trace says who asked for what: ids as clients have them, times, ends; and nothing secret."""

from __future__ import annotations

import http.client
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engine_support import ROOT, TINY

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(ROOT / "fixtures"))

from make_lora import make_lora
from recorded_server import MODEL, Server

from tracereplay.trace import Trace, open_trace
from tracereplay.trace.frames import Tag, fetch, scan
from tracereplay.trace.known import KnownRequest, served_names
from tracereplay.trace.listing import detailed, named
from tracereplay.trace.plain import decode_record
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

SECRETS = {"Authorization": "Bearer sk-planted-key", "Cookie": "planted-cookie", "X-Forwarded-For": "203.0.113.77"}
USERS = ("planted-alice", "planted-bob")
ABSENT = ("Authorization", "Bearer", "planted-key", "planted-cookie", "203.0.113.77")


class Client:
    """Asks, and keeps the id, the text's tokens and the end of each answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.answers: dict[str, dict[str, Any]] = {}

    def ask(
        self, label: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str] = {}, hang_up: int = 0
    ) -> None:  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=120)
        asked = {"model": MODEL, "max_tokens": 8, "ignore_eos": True, "temperature": 0.0, **body}
        sent = {"Content-Type": "application/json", **SECRETS, **headers}
        connection.request("POST", f"/v1/{path}", json.dumps(asked), sent)
        response = connection.getresponse()
        if not body.get("stream"):
            said = json.loads(response.read())
            assert "choices" in said, said
            ends = [(choice["finish_reason"], choice.get("stop_reason")) for choice in said["choices"]]
            self.answers[label] = {"id": said["id"], "ends": ends, "usage": said["usage"]}
        else:
            pieces = []
            for line in response:
                if line.startswith(b"data: {"):
                    pieces.append(json.loads(line[6:]))
                    if len(pieces) == hang_up:
                        break
            self.answers[label] = {"id": pieces[0]["id"], "ends": [("abort" if hang_up else "length", None)]}
        connection.close()

    def ask_all(self) -> None:
        """Everything at once."""
        chat = {"messages": [{"role": "user", "content": "hello"}]}
        questions: list[tuple[Any, ...]] = [
            ("plain", "completions", {"prompt": "one"}),
            ("streamed", "completions", {"prompt": "two", "stream": True}),
            ("hung up", "completions", {"prompt": "three", "stream": True, "max_tokens": 200}, {}, 4),
            ("named", "completions", {"prompt": "four", "user": USERS[0]}, {"X-Request-Id": "order-4711"}),
            ("chat", "chat/completions", {**chat, "user": USERS[0]}, {"X-Request-Id": "order-4712"}),
            ("streamed chat", "chat/completions", {**chat, "stream": True, "user": USERS[1]}),
            ("two samples", "completions", {"prompt": "five", "n": 2, "temperature": 0.9, "seed": 3}),
            ("two prompts", "completions", {"prompt": ["six", "seven"], "max_tokens": 4}),
            ("stopped", "completions", {"prompt": "eight", "max_tokens": 100, "stop": ["e", " ", "t", "a"]}),
            ("adapted", "completions", {"prompt": "nine", "model": "mine"}),
        ]
        threads = [threading.Thread(target=self.ask, args=question) for question in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=180)
        assert len(self.answers) == len(questions)


@pytest.fixture
def serve(tmp_path: Path, start_server: Callable[..., Server]) -> Callable[..., Server]:
    def start(name: str, *, options: tuple[str, ...] = (), arguments: tuple[str, ...] = ()) -> Server:
        adapter = make_lora(TINY, tmp_path / "mine")
        lora = "--enable-lora", "--lora-modules", f"mine={adapter}"
        server = start_server(tmp_path / "served.trace", name, (*lora, *arguments), options)
        server.wait_until_ready()
        return server

    return start


def decoded(trace: Trace) -> Iterator[bytes]:
    """All that a trace holds, decompressed."""
    assert isinstance(trace.path, Path)
    yield (trace.path / "manifest.json").read_bytes()
    for key in trace.parts:
        for _, _, data in trace.part(key).frames():
            yield bytes(data)
    for name, file in trace.request_files.items():
        for frame in scan(file):
            _, payload = fetch(file, frame.offset, frame.length, Tag(frame.kind))
            yield decode_record(payload, frame.codec, frame.size, name)


def found(trace: Trace, client: Client, label: str) -> list[KnownRequest]:
    """What the trace has of an answer, by the id that its client has."""
    keys = named(trace, client.answers[label]["id"])
    return [known for known in trace.requests if (known.request, known.sequence) in keys]


def check(trace: Trace, client: Client, began: int, ended: int) -> None:
    assert served_names(trace) == (MODEL,)
    for label, answer in client.answers.items():
        known = found(trace, client, label)
        told = sorted((k.identity.reason, k.identity.stop) for k in known)
        assert told == sorted((reason, stop) for reason, stop in answer["ends"]), label
        for one in known:
            arrived, left = one.identity.arrived, one.identity.ended
            assert arrived is not None, label
            assert left is not None, label
            assert began < arrived.utc < left.utc < ended
            assert 0 < left.monotonic - arrived.monotonic < ended - began
            assert one.identity.adapter == ("mine" if label == "adapted" else "")
        if "usage" in answer:
            assert sum(k.identity.tokens or 0 for k in known) == answer["usage"]["completion_tokens"], label
        for one, listed in zip(
            known, detailed(trace, "record", [(k.request, k.sequence) for k in known]), strict=True
        ):
            assert len(listed.prompt or ()) == one.identity.prompt, label
            assert len(listed.tokens) >= (one.identity.tokens or 0), label
            assert listed.places[0].step == one.step
    for text, label in (("order-4711", "named"), ("cmpl-order-4711", "named"), ("chatcmpl-order-4712", "chat")):
        assert named(trace, text) == [(k.request, k.sequence) for k in found(trace, client, label)]
    assert [k.identity.sample for k in found(trace, client, "two samples")] == [0, 1]
    assert len(found(trace, client, "two prompts")) == 2
    held = list(decoded(trace))
    assert [word for word in ABSENT if any(word.encode() in data for data in held)] == []


@pytest.mark.parametrize(
    ("name", "options", "arguments"),
    [
        ("v1", (), ()),
        pytest.param("v1", ("--keep-fields", "user"), ("--api-server-count", "2"), marks=pytest.mark.long),
        pytest.param("v0", (), ("--device", "cpu"), marks=pytest.mark.long),
    ],
    ids=["V1", "V1, two front ends", "V0"],
)  # fmt: skip
def test_each_client_finds_its_request(
    serve: Callable[..., Server], name: str, options: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    began = time.time_ns()
    server = serve(name, options=options, arguments=arguments)
    client = Client(server)
    client.ask_all()
    server.kill(signal.SIGINT, "parent")
    server.wait()
    trace = open_trace(server.out)
    check(trace, client, began, time.time_ns())
    assert "damaged" not in {report.state for report in verify(trace)}
    assert set(trace.manifest["run"]["requests"]) == set(trace.request_files)
    fields = {label: found(trace, client, label)[0].identity.fields.get("user") for label in client.answers}
    told = {label: user for label, user in fields.items() if user}
    kept = {"named": USERS[0], "chat": USERS[0], "streamed chat": USERS[1]} if options else {}
    assert told == kept
    assert any(user.encode() in data for data in decoded(trace) for user in USERS) == bool(options)


def test_who_asked_is_known_of_a_server_that_was_killed(serve: Callable[..., Server]) -> None:
    server = serve("v1")
    client = Client(server)
    client.ask("plain", "completions", {"prompt": "one"})
    server.start_clients(2, random.Random(5), tokens=100, aborts=0.0)
    while server.running() < 2:
        time.sleep(0.01)
    time.sleep(0.3)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.ask, "streamed completion", "it does not end", 200, random.Random(6))
        while max(len(answer.tokens) for answer in list(server.answers)) <= 100:  # of the others none has more
            time.sleep(0.01)
        server.kill(signal.SIGKILL, "parent", "front", "core", "worker")
        assert long.exception() is not None
    server.wait()
    trace = open_trace(server.out)
    assert [k.identity.reason for k in found(trace, client, "plain")] == ["length"]
    assert all(known.identity.name and known.identity.arrived for known in trace.requests)
    assert "" in {known.identity.reason for known in trace.requests}  # some had not ended
