"""A recorded server under random load and random orders, whose writer is killed and whose disk is full at times.

    python benchmarks/soak.py --minutes 30 --json soak.json

An unrecorded server answers all questions first: alone, and with as many clients as later, since what else is in
a batch may change how a processor adds; questions that it answers in two ways are left out. Then the same server
is recorded with ``--rotate 20MB``, and clients ask at random, streamed or not, some hanging up in the middle.
Meanwhile it is paused and resumed, cut, and told to record less or all; three times its writer is killed; once its
disk has no room. Exit 1 if an answer differed, if a request failed, if a trace is damaged, if one is not closed
that had no such accident, or if memory grew.

Its output lies on a file system in memory of 1 GB, which needs root; ``--out DIR`` takes a folder instead, and
leaves the full disk out.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving import TINY, Server, descendants

from tracereplay.launch.control import ask as order
from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify

OPTIONS = ("--rotate", "20MB", "--keep", "400MB", "--resume-when-room", "--leave-free", "40MB")
SITES = ("*", "*.mlp.*", "*norm*", "lm_head")
GROWTH = 48 << 20  # bytes by which a process may be larger in the last fifth than in the second


@dataclass(frozen=True)
class Question:
    prompt: tuple[int, ...]
    tokens: int
    temperature: float
    seed: int


@dataclass
class Seen:
    """What the clients saw."""

    asked: int = 0
    hung_up: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def questions(count: int) -> list[Question]:
    chance = random.Random(0)
    return [
        Question(
            tuple(chance.randrange(5, 200) for _ in range(chance.randrange(4, 120))), chance.randrange(2, 97),
            chance.choice((0.0, 0.8)), chance.randrange(1 << 30),
        )
        for _ in range(count)
    ]  # fmt: skip


def ask(port: int, question: Question, *, stream: bool = False, hang_up: int | None = None) -> list[int]:
    """The answer's tokens; those of its first pieces if the client hangs up."""
    body = {
        "model": "m", "prompt": list(question.prompt), "max_tokens": question.tokens, "ignore_eos": True,
        "temperature": question.temperature, "seed": question.seed, "return_token_ids": True, "stream": stream,
    }  # fmt: skip
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"{response.status}: {response.read()[:200]!r}")
        if not stream:
            return list(json.loads(response.read())["choices"][0]["token_ids"])
        tokens: list[int] = []
        for number, line in enumerate(line for line in response if line.startswith(b"data: {")):
            tokens += json.loads(line[6:])["choices"][0].get("token_ids") or []
            if hang_up is not None and number >= hang_up:
                break
        return tokens


def reference(
    folder: Path, model: Path, engine: str, asked: Sequence[Question], clients: int
) -> dict[Question, list[int]]:
    """What an unrecorded server answers, where it always answers the same."""
    server = Server(folder, "plain", engine, model, None)
    with closing(server), ThreadPoolExecutor(clients) as pool:
        server.wait_until_ready()
        alone = [ask(server.port, question) for question in asked]
        together = list(pool.map(lambda question: ask(server.port, question), asked))
    return {q: one for q, one, other in zip(asked, alone, together, strict=True) if one == other}


class Soak:
    """The recorded server and all that happens to it."""

    def __init__(self, server: Server, right: dict[Question, list[int]], minutes: float, fill: bool) -> None:
        self.server, self.right, self.fill = server, right, fill
        self.began, self.seconds = time.monotonic(), minutes * 60
        self.seen, self.orders = Seen(), Counter[str]()
        self.memory: dict[str, list[tuple[float, int]]] = {}
        self.verified: dict[str, str] = {}
        self.accidents: list[dict[str, Any]] = []
        self._lock, self._over = threading.Lock(), threading.Event()

    def run(self, clients: int) -> None:
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]
        threads += [threading.Thread(target=do) for do in (self._commander, self._observer)]
        for thread in threads:
            thread.start()
        self._accidents()
        self._over.wait(self._until(1.0))
        self._over.set()
        for thread in threads:
            thread.join()

    def _until(self, share: float) -> float:
        return max(0.0, self.began + share * self.seconds - time.monotonic())

    def _client(self, number: int) -> None:
        chance, asked = random.Random(number), list(self.right)
        while not self._over.is_set():
            question, stream = chance.choice(asked), chance.random() < 0.5
            hang_up = chance.randrange(1, 20) if stream and chance.random() < 0.2 else None
            began = time.monotonic()
            try:
                tokens = ask(self.server.port, question, stream=stream, hang_up=hang_up)
            except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
                with self._lock:
                    at = f"{began - self.began:.0f} to {time.monotonic() - self.began:.0f} s"
                    self.seen.failed.append(f"{at}: {type(error).__name__}: {error}")
                continue
            right = self.right[question]
            with self._lock:
                self.seen.asked += 1
                self.seen.hung_up += hang_up is not None
                self.seen.seconds.append(time.monotonic() - began)
                if tokens != (right if hang_up is None else right[: len(tokens)]):
                    self.seen.wrong.append({"prompt": len(question.prompt), "got": tokens, "right": right})

    def _order(self, *words: str) -> None:
        self.orders[words[0]] += 1
        command = [sys.executable, "-m", "tracereplay.cli.main", words[0], str(self.server.trace), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode != 0 or "Traceback" in done.stderr:
            self.seen.failed.append(f"{' '.join(words)}: exit {done.returncode}: {done.stderr[-500:]}")

    def _commander(self) -> None:
        chance = random.Random(99)
        while not self._over.wait(chance.uniform(3, 15)):
            what = chance.choice(("status", "pause", "trigger", "sites", "behind", "signal"))
            if what == "status":
                self._order("status", *chance.choice(((), ("--json",), ("--prometheus",))))
            elif what == "pause":
                self._order("stop")
                self._over.wait(chance.uniform(0.5, 4))
                self._order("start")
            elif what == "trigger":
                self._order("trigger", "at random")
            elif what == "sites":
                self._order(
                    "set", "--sites", chance.choice(SITES), "--sides", chance.choice(("in", "out", "in,out"))
                )
            elif what == "behind":
                self._order("set", "--when-behind", chance.choice(("drop", "block")))
            else:
                self.orders["SIGUSR2"] += 1
                self.server.process.send_signal(signal.SIGUSR2)

    def _accidents(self) -> None:
        """Three killed writers, and a full disk between the last two."""
        kill, fill = self._kill_writer, self._fill_disk
        for share, what in ((0.2, kill), (0.4, kill), (0.55, fill), (0.75, kill)):
            if self._over.wait(self._until(share)):
                return
            what()

    @contextmanager
    def _accident(self, what: str) -> Iterator[None]:
        """Traces from the one before it to the one after it may be left open."""
        before, began = self._current(), time.monotonic() - self.began
        yield
        after = self._current()
        self.accidents.append({"what": what, "second": round(began), "traces": [before, after]})

    def _current(self) -> str:
        return Path(order(self.server.trace, {"do": "status"})["trace"]).name

    def _kill_writer(self) -> None:
        with self._accident("its writer is killed"):
            self._kill()

    def _kill(self) -> None:
        for pid, name in family(self.server).items():
            if name == "writer":
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._over.wait(5)
        self._order("trigger", "after its writer was killed")

    def _fill_disk(self) -> None:
        if not self.fill:
            return
        filler = self.server.trace.parent / "filler"
        with self._accident("its disk is full"):
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * (1 << 16))
            self._over.wait(20)
            filler.unlink()
            self._over.wait(5)

    def _observer(self) -> None:
        """Memory of each process, and whether what is finished verifies, as it comes."""
        while not self._over.wait(10):
            now = time.monotonic() - self.began
            for pid, name in family(self.server).items():
                with suppress(OSError):
                    self.memory.setdefault(name, []).append((now, resident(pid)))
            newest = sorted(self.server.trace.glob("*.trace"))[-2:-1]
            for path in newest:
                self.verify(path)

    def verify(self, path: Path) -> None:
        if path.name in self.verified:
            return
        with suppress(FileNotFoundError):  # removed by --keep
            with open_trace(path) as trace:
                states = {report.state for report in verify(trace)}
            self.verified[path.name] = ", ".join(sorted(states))

    def growth(self) -> dict[str, tuple[int, int]]:
        """For each process, its size in the second fifth of the time and in the last, in bytes (medians)."""
        found = {}
        for name, sizes in self.memory.items():
            parts = [
                [size for at, size in sizes if low * self.seconds <= at < high * self.seconds]
                for low, high in ((0.2, 0.4), (0.8, 1.01))
            ]
            if all(parts):
                found[name] = (int(statistics.median(parts[0])), int(statistics.median(parts[1])))
        return found


def family(server: Server) -> dict[int, str]:
    """The server's processes, and what each is."""
    names = (
        (b"tracereplay.recorder", "writer"), (b"VLLM::Worker", "worker"), (b"VLLM::EngineCore", "core"),
        (b"tracereplay.cli.main", "janitor"), (b"api_server", "front end"),
    )  # fmt: skip
    found = {server.process.pid: "parent"}
    for pid in descendants(server.process.pid):
        with suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            found[pid] = next((name for text, name in names if text in line), "other")
    return found


def resident(pid: int) -> int:
    """Bytes in memory without those that are shared, as a recording's arenas are, which fill up once."""
    _, there, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (there - shared) * resource.getpagesize()


@contextmanager
def place(out: Path | None) -> Iterator[Path]:
    """A folder whose disk can be filled without harm, or ``out``."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A recorded server under random load and random orders.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--engine", default="v1")
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with place(given.out) as folder:
        asked = questions(given.questions)
        right = reference(folder, given.model, given.engine, asked, given.clients)
        print(f"{len(right)} of {len(asked)} questions have one answer, alone and in company", flush=True)
        server = Server(folder, "recorded", given.engine, given.model, OPTIONS)
        with closing(server):
            server.wait_until_ready()
            soak = Soak(server, right, given.minutes, fill=given.out is None)
            soak.run(given.clients)
            status = order(server.trace, {"do": "status"})
        for path in sorted(server.trace.glob("*.trace")):
            soak.verify(path)
        found = said(soak, status)
        print(json.dumps(found, indent=1))
        if given.json is not None:
            given.json.write_text(json.dumps(found, indent=1))
        if found["faults"]:
            print(server.log.read_text()[-3000:], file=sys.stderr)
            raise SystemExit(1)


def said(soak: Soak, status: dict[str, Any]) -> dict[str, Any]:
    """All that is to be known of it; ``faults`` is empty if it went well."""
    seen, growth = soak.seen, soak.growth()
    last = max(soak.verified, default="")  # the server may be killed when it takes long to end
    broken = {
        name: state
        for name, state in soak.verified.items()
        if state != "complete" and name != last
        and not any(one["traces"][0] <= name <= one["traces"][1] for one in soak.accidents)
    }  # fmt: skip
    damaged = [name for name, state in soak.verified.items() if "damaged" in state]
    larger = {name: sizes for name, sizes in growth.items() if sizes[1] > sizes[0] + GROWTH}
    faults = {
        "wrong": seen.wrong[:5],
        "failed": seen.failed[:5],
        "damaged": damaged,
        "not closed": broken,
        "grew": larger,
    }
    return {
        "minutes": soak.seconds / 60,
        "questions": len(soak.right),
        "answers": seen.asked,
        "hung_up": seen.hung_up,
        "wrong": len(seen.wrong),
        "failed": len(seen.failed),
        "median_seconds": statistics.median(seen.seconds),
        "orders": dict(soak.orders),
        "traces": {
            "verified": len(soak.verified),
            "states": Counter(soak.verified.values()),
            "accidents": soak.accidents,
        },
        "memory_mb": {name: [round(size / 1e6) for size in sizes] for name, sizes in growth.items()},
        "recorded_steps": status["recorded"],
        "dropped_steps": status.get("dropped"),
        "faults": {name: what for name, what in faults.items() if what},
    }


if __name__ == "__main__":
    main()
