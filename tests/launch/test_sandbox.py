"""Whatever becomes of the child is an outcome, and the next request finds a new one."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracereplay.alone.child.wire import Channel, Closed, TooLarge
from tracereplay.alone.sandbox import Limits, Sandbox
from tracereplay.environments import Engine
from tracereplay.errors import EngineFailed
from tracereplay.launch import process
from tracereplay.trace import TensorBytes

HERE = Path(__file__).parent
HANDLERS = {"test": "sandbox_handler"}
LIMITS = Limits(memory=64 << 20, seconds=20, start_seconds=30, largest=8 << 20, restarts=2)


@pytest.fixture(autouse=True)
def _no_overlay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        process, "overlay_for", lambda python, entry_points: HERE
    )  # this interpreter has all that is needed


@pytest.fixture
def engine() -> Engine:
    return Engine("here", Path(sys.executable))


@pytest.fixture
def sandbox(engine: Engine) -> Iterator[Sandbox]:
    with Sandbox(engine, handlers=HANDLERS, setup={"test": 5}, limits=LIMITS) as found:
        yield found


def tensor(values: Any) -> TensorBytes:
    array = np.asarray(values, np.float32)
    return TensorBytes("float32", array.shape, (1,) * array.ndim, array.tobytes())


def test_what_is_sent_comes_back(sandbox: Sandbox) -> None:
    sent = {"x": tensor([1, 2, 3]), "rest": [1, "two", None, {"y": tensor(range(2 << 20 >> 2))}, tensor([])]}
    outcome = sandbox.run("test", {"do": "echo", "value": sent})
    assert (outcome.status, outcome.reason) == ("done", "")
    assert sandbox.info == {"test": {"setup": 5}}
    back = outcome.outputs
    assert np.frombuffer(back["x"].data, np.float32).tolist() == [1, 2, 3]
    assert back["rest"][:3] == [1, "two", None]
    assert np.frombuffer(back["rest"][3]["y"].data, np.float32).sum() == sum(range(2 << 20 >> 2))
    assert back["rest"][4].shape == (0,)
    assert "libraries print" in sandbox.last_lines()


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"do": "crash"}, "crashed", "crashed: signal 11 (SIGSEGV)"),
        ({"do": "exit"}, "crashed", "crashed: exit code 7"),
        ({"do": "eat", "pieces": 20}, "out of memory", "out of memory"),
        ({"do": "refuse"}, "not replayable", "not replayable: it reads a pointer"),
        ({"do": "fail"}, "failed", "failed: ValueError: no such thing"),
        ({"do": "echo", "value": tensor(np.zeros(3 << 20))}, "failed", "8388608 are allowed."),
        ({"do": "unknown"}, "failed", "failed: KeyError: '_unknown'"),
    ],
)
def test_what_goes_wrong_is_an_outcome_and_the_next_request_is_served(
    sandbox: Sandbox, request_: Any, status: str, reason: str
) -> None:
    outcome = sandbox.run("test", request_)
    assert outcome.status == status
    assert reason in outcome.reason
    assert outcome.outputs is None
    assert sandbox.run("test", {"do": "echo", "value": 3}).outputs == 3


def test_a_request_has_so_much_time(sandbox: Sandbox) -> None:
    child = sandbox.run("test", {"do": "pid"}).outputs
    begin = time.monotonic()
    outcome = sandbox.run("test", {"do": "sleep", "seconds": 60}, seconds=0.3)
    assert (outcome.status, outcome.reason) == ("timed out", "timed out after 0.3 s")
    assert time.monotonic() - begin < 10
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_memory_that_is_given_back_does_not_count(sandbox: Sandbox) -> None:
    assert [sandbox.run("test", {"do": "eat", "pieces": 2}).outputs for _ in range(4)] == [2] * 4


def test_children_are_started_anew_so_often(sandbox: Sandbox) -> None:
    ended = [sandbox.run("test", {"do": "exit"}).status for _ in range(4)]
    assert ended == ["crashed"] * 3 + ["failed"]
    assert sandbox.restarts == 2
    assert "2 child processes have already ended" in sandbox.run("test", {"do": "echo", "value": 1}).reason


def test_the_child_has_no_secrets_and_does_not_outlive_the_sandbox(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "x")
    with Sandbox(engine, handlers=HANDLERS, limits=LIMITS) as sandbox:
        assert sandbox.run("test", {"do": "secrets"}).outputs == []
        child = sandbox.run("test", {"do": "pid"}).outputs
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.skipif(os.getuid() != 0, reason="others may not be allowed to leave the network")
def test_the_child_has_no_network_but_its_own(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = sandbox.run("test", {"do": "connect", "port": server.getsockname()[1]})
    assert outcome.reason.startswith("failed: ConnectionRefusedError")


@pytest.mark.parametrize(
    ("handlers", "setup", "words"),
    [
        ({"test": "no_such_module"}, None, "ModuleNotFoundError"),
        (HANDLERS, {"test": "hang"}, "timed out after 2 s"),
    ],
)
def test_a_child_that_does_not_become_ready_is_an_error(
    engine: Engine, handlers: dict[str, str], setup: Any, words: str
) -> None:
    with pytest.raises(EngineFailed, match=words):
        Sandbox(engine, handlers=handlers, setup=setup, limits=replace(LIMITS, start_seconds=2))


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff\x00\x00\x00\x00",  # a head of 4 GiB
        b"\x01\x00\x00\x00\xff\xff\xff\xff",  # 4 G tensors
        b"\x01\x00\x00\x00\x01\x00\x00\x00" + b"\xff" * 8,  # one tensor of 16 EiB
        b"\x05\x00\x00\x00\x00\x00\x00\x00\x92\x01\xdd\xff\xff",  # a list of 4 G parts
    ],
)
def test_what_is_too_large_is_refused_before_it_is_read(said: bytes) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.sendall(said)
        with pytest.raises(TooLarge):
            Channel(mine).receive(time.monotonic() + 5)


def test_a_tensor_has_the_bytes_that_its_shape_takes() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        Channel(theirs).send(TensorBytes("float32", (3,), (1,), b"12345678"))
        with pytest.raises(TooLarge, match="8 bytes is said to be float32"):
            Channel(mine).receive(time.monotonic() + 5)


def test_half_a_message_is_no_message() -> None:
    mine, theirs = socket.socketpair()
    with mine:
        theirs.sendall(b"\x05\x00\x00")
        theirs.close()
        with pytest.raises(Closed):
            Channel(mine).receive(time.monotonic() + 5)
