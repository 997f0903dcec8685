"""A recorded HTTP server for tests: real processes, real requests, and what the clients have of their answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracereplay.launch.descendants import SHARED
from tracereplay.trace import Trace

HERE = Path(__file__).parent
TINY = HERE.parents[1] / "fixtures" / "tiny-llama"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
MODEL = "tiny"
IMPATIENCE = 20.0  # seconds; a front end that ends waits for clients to hang up, who wait for its engine
PATIENCE = 300.0  # seconds for a server to start or to end
KINDS = ("completion", "streamed completion", "chat", "streamed chat")
# Its processes are forked, not spawned: the same server, and two imports of vLLM less at each start.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}


BLOCK = ("--when-behind", "block")  # else steps may be left out, and what a client has need not be in the trace


@dataclass
class Answer:
    """What a client has of one request."""

    kind: str
    prompt: tuple[int, ...] = ()
    tokens: list[int] = field(default_factory=list)
    finished: bool = False  # the client has its last byte
    aborted: bool = False  # the client hung up, or the server says that it gave the request up
    ended: float | None = None  # when it was over, in whichever way; on the monotonic clock


class Server:
    """``tracereplay record -- vllm serve``, until it ends.

    Args:
        out: the trace to make.
        engine: a registered engine.
        arguments: more of the server's.
        options: more of ``record``'s.
    """

    def __init__(
        self, out: Path, engine: str = "v1", arguments: Sequence[str] = (), options: Sequence[str] = ()
    ) -> None:
        self.out = out
        self.port = _free_port()
        self.before = shared_memory()
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        out.parent.mkdir(parents=True, exist_ok=True)
        template = out.with_suffix(".jinja")
        template.write_text(TEMPLATE)
        self.log = out.with_suffix(".log")
        command = [
            sys.executable, "-m", "tracereplay.cli.main", "record", "--engine", engine, "-o", str(out),
            *options, *(() if "--when-behind" in options else BLOCK),
            "--", "vllm", "serve", str(TINY), "--served-model-name", MODEL, "--host", "127.0.0.1",
            "--port", str(self.port), "--max-model-len", "256", "--max-num-seqs", "8", "--enforce-eager",
            "--chat-template", str(template), *arguments,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, **ENVIRONMENT}, start_new_session=True,
            )  # fmt: skip
        self.family: dict[str, list[int]] = {}

    # -- its life ---------------------------------------------------------------------------------------

    def wait_until_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server did not start:\n{self.log.read_text()[-3000:]}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    self.family = self.find_family()
                    return
            time.sleep(0.1)
        raise AssertionError(f"the server does not start:\n{self.log.read_text()[-3000:]}")

    def find_family(self) -> dict[str, list[int]]:
        """Ids of its processes by what they are."""
        found: dict[str, list[int]] = {"parent": [self.process.pid]}
        for pid in descendants(self.process.pid):
            text = _text(f"/proc/{pid}/cmdline").replace("\0", " ")
            what = (
                "janitor" if "tracereplay.cli" in text
                else "writer" if "tracereplay.recorder" in text
                else "worker" if "VLLM::Worker" in text
                else "core" if "VLLM::EngineCore" in text
                else "front" if "vllm serve" in text
                else "other"
            )  # fmt: skip
            found.setdefault(what, []).append(pid)
        return found

    def kill(self, number: int, *what: str) -> None:
        for pid in [pid for name in what for pid in self.family.get(name, [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self) -> int:
        """Waits until it has ended, with all of its processes; returns the exit code."""
        code = self.process.wait(timeout=PATIENCE)
        everyone = [pid for pids in self.family.values() for pid in pids]
        end = time.monotonic() + PATIENCE
        while left := [pid for pid in everyone if _runs(pid)]:
            assert time.monotonic() < end, f"processes {left} are left over"
            time.sleep(0.05)
        self.stop_clients()
        return code

    def close(self) -> None:
        """Whatever happens in a test, nothing is left of it."""
        self._stop.set()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=30)
        for pid in [*descendants(self.process.pid), *(p for pids in self.family.values() for p in pids)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def running(self) -> int:
        """How many requests are under way."""
        return sum(answer.ended is None for answer in list(self.answers))

    def left_over(self) -> tuple[list[int], set[str]]:
        """Its processes and its shared memory that are still there."""
        left = [pid for pids in self.family.values() for pid in pids if _runs(pid)]
        return left, shared_memory() - self.before

    # -- its clients ------------------------------------------------------------------------------------

    def start_clients(self, count: int, chance: random.Random, tokens: int = 24, aborts: float = 0.2) -> None:
        """Clients that ask one thing after the other, all of them at once; some hang up in the middle."""
        for number in range(count):
            mine = random.Random(chance.random())
            thread = threading.Thread(target=self._ask_on, args=(number, mine, tokens, aborts), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop_clients(self) -> None:
        """No more questions; waits for the answers that are due."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=PATIENCE)

    def _ask_on(self, client: int, chance: random.Random, tokens: int, aborts: float) -> None:
        for number in range(10_000):
            if self._stop.is_set():
                return
            abort = chance.randrange(1, tokens) if chance.random() < aborts else None
            kind = chance.choice(KINDS if abort is None else KINDS[1::2])
            length = chance.randrange(2, tokens + 1)
            try:
                self.ask(kind, f"{client}.{number}" + "x" * chance.randrange(1, 40), length, chance, abort)
            except (OSError, http.client.HTTPException, ValueError):
                if self._stop.wait(0.05):
                    return

    def ask(
        self, kind: str, text: str, tokens: int, chance: random.Random, abort: int | None = None, **more: Any
    ) -> Answer:
        """Asks once, for ``more`` than usual; hangs up after ``abort`` pieces of a streamed answer."""
        answer = Answer(kind)
        self.answers.append(answer)
        body: dict[str, Any] = {
            "model": MODEL, "max_tokens": tokens, "ignore_eos": True, "return_token_ids": True,
            "temperature": chance.choice([0.0, 0.8]), "stream": kind.startswith("streamed"),
            **more,
        }  # fmt: skip
        if kind.endswith("chat"):
            body["messages"], path = [{"role": "user", "content": text}], "/v1/chat/completions"
        else:
            body["prompt"], path = text, "/v1/completions"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=IMPATIENCE)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(response.read()[:200])
            if body["stream"]:
                self._listen(response, answer, abort)
            else:
                _take(json.loads(response.read()), answer)
                answer.finished = not answer.aborted
        finally:
            answer.ended = time.monotonic()
            connection.close()
        return answer

    def _listen(self, response: http.client.HTTPResponse, answer: Answer, abort: int | None) -> None:
        pieces = 0
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                # vLLM sends nothing but this for a completion that it aborts before its first token, as when it is
                # told to end: such an answer holds nothing that could be in the trace.
                answer.finished = bool(answer.tokens) and not answer.aborted
                return
            _take(json.loads(line[6:]), answer)
            pieces += 1
            if abort is not None and pieces >= abort:
                answer.aborted = True
                return
        raise ValueError("the answer was cut off")


def _take(said: Mapping[str, Any], answer: Answer) -> None:
    if "choices" not in said:
        raise ValueError(f"the server says {said}")
    for choice in said["choices"]:
        prompt = choice.get("prompt_token_ids") or said.get("prompt_token_ids")
        if prompt:
            answer.prompt = tuple(prompt)
        answer.tokens += choice.get("token_ids") or []
        answer.aborted |= choice.get("finish_reason") == "abort"


def compared(trace: Trace, answers: Sequence[Answer]) -> int:
    """Holds what clients have against the trace; returns how many finished answers there were.

    Prompts are different, so a prompt says which request it was. Of an answer that was cut off, by the client, by
    a kill or by a server that ends (which answers what it has not begun, too), the tokens that came must be there.
    """
    prompts = [tuple(p["prompt_token_ids"]) for p in trace.raw_run["workload"]["prompts"]]
    assert len(set(prompts)) == len(prompts)
    tokens: dict[int, dict[int, int]] = {}
    for sampled in (sampled for step in trace.steps("record") for sampled in step.sampled):
        tokens.setdefault(sampled.key.request, {})[sampled.key.position] = sampled.token
    finished = 0
    for answer in answers:
        if answer.finished or answer.tokens:
            request = prompts.index(answer.prompt)
            recorded = [token for _, token in sorted(tokens[request].items())]
            assert sorted(tokens[request]) == [len(answer.prompt) + i for i in range(len(recorded))]
            there = recorded if answer.finished else recorded[: len(answer.tokens)]
            assert there == answer.tokens, (answer, recorded)
            finished += answer.finished
    return finished


def tokens_of(trace: Trace) -> Iterator[tuple[tuple[int, ...], list[int], int]]:
    """Of each request of a trace: its prompt, its tokens, and the position of the first of them."""
    prompts, tokens = {}, dict[int, dict[int, int]]()
    for step in trace.steps("record"):
        prompts.update({request.request: request.prompt_token_ids for request in step.requests})
        for sampled in step.sampled:
            tokens.setdefault(sampled.key.request, {})[sampled.key.position] = sampled.token
    for request, prompt in prompts.items():
        found = sorted(tokens.get(request, {}).items())
        positions = [position for position, _ in found]
        if positions == list(range(positions[0], positions[0] + len(positions)) if positions else ()):
            yield tuple(prompt), [token for _, token in found], positions[0] if positions else len(prompt)


def shared_memory() -> set[str]:
    return {path.name for path in SHARED.iterdir()}


def descendants(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    waiting = [pid]
    while waiting:
        found = children.get(waiting.pop(), [])
        yield from found
        waiting += found


def _runs(pid: int) -> bool:
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return bool(fields) and fields[0] not in "ZX"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
