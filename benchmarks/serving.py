"""What recording costs a server: the same clients ask the same of one unrecorded and of some that are recorded.

    python benchmarks/serving.py --json serving.json
    python benchmarks/serving.py --only armed --clients 8 1 --rounds 20 --model DIR

    servers:   plain    armed    one percent    ...          all of them started once, and idle but for one
    rounds:    plain armed plain one-percent plain ... plain    in turns, with the same requests

Each round of a recorded server stands between two of the plain one; its ratio is to their mean, so that a machine
that grows slower changes both sides. Medians of these ratios have bootstrap intervals (95 %). A ratio of
``throughput`` is of seconds for the same tokens; those of ``p50`` and ``p99`` are of a request's time; that of
``cpu`` is of what all processes of the server computed, which other work on the machine hardly changes. ``plain``
in the table is each plain round against the mean of its own two neighbours: what noise alone looks like.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracereplay.environments.registry import load_engine
from tracereplay.launch.control import ask as order
from tracereplay.launch.process import process_environment

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "fixtures" / "tiny-llama"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
PLAIN = "plain"
BLOCKS = ("--sites", "*norm*", "--sites", "*.o_proj", "--sites", "*.down_proj", "--sides", "out")
# What a server is recorded with, beside the plain one.
VARIANTS: dict[str, tuple[str, ...]] = {
    "armed": ("--requests", "nobody-*"),
    "one percent": ("--sample", "1/100"),
    "ring of block outputs": ("--ring", "256MB", *BLOCKS),
    "block outputs": BLOCKS,
    "everything": (),
}
JSON = {"Content-Type": "application/json"}
PATIENCE = 300.0  # seconds for a server to start


@dataclass
class Round:
    """What the clients saw in one round.

    Args:
        seconds: from the first question to the last answer.
        tokens: of all answers.
        times: of each request, in seconds.
        busy: seconds of CPU that the server's processes took, those of the recording included.
    """

    seconds: float
    tokens: int
    times: list[float]
    busy: float

    def measures(self) -> dict[str, float]:
        times = sorted(self.times)
        return {
            "throughput": self.seconds / self.tokens,
            "p50": statistics.median(times),
            "p99": times[min(len(times) - 1, round(0.99 * (len(times) - 1)))],
            "cpu": self.busy / self.tokens,
        }


class Server:
    """A server of vLLM's, recorded with ``options``, or not at all (None)."""

    def __init__(
        self, folder: Path, name: str, engine_name: str, model: Path, options: Sequence[str] | None
    ) -> None:
        engine = load_engine(engine_name)
        self.port = _free_port()
        several = {"--ring", "--rotate"} & set(options or ())  # traces, which have a folder
        self.trace = folder / (name.replace(" ", "-") + ("" if several else ".trace"))
        command = [
            str(engine.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(self.port), "--max-model-len", "512",
            "--max-num-seqs", "8", "--enforce-eager", "--no-enable-prefix-caching", "--disable-uvicorn-access-log",
        ]  # fmt: skip
        environment = {**os.environ, **ENVIRONMENT}
        if options is None:
            environment = process_environment(engine.env, environment)
        else:
            command = [
                sys.executable, "-m", "tracereplay.cli.main", "record", "--engine", engine_name, "-o",
                str(self.trace), *options, "--", *command,
            ]  # fmt: skip
        self.log = folder / f"{name.replace(' ', '-')}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise SystemExit(f"A server did not start:\n{self.log.read_text()[-3000:]}")
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.2)
        raise SystemExit(f"A server does not start:\n{self.log.read_text()[-3000:]}")

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def round(self, clients: int, requests: int, tokens: int, seed: int) -> Round:
        """All clients ask one thing after the other; the same things for the same seed."""
        chance = random.Random(seed)
        prompts = [[chance.randrange(5, 200) for _ in range(chance.randrange(8, 64))] for _ in range(requests)]

        def ask(prompt: list[int]) -> float:
            body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
            began = time.perf_counter()
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)) as connection:
                connection.request(
                    "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
                )
                answer = json.loads(connection.getresponse().read())
            if answer["usage"]["completion_tokens"] != tokens:
                raise SystemExit(f"A server answered {answer}")
            return time.perf_counter() - began

        began, busy = time.perf_counter(), _busy(self.process.pid)
        with ThreadPoolExecutor(clients) as pool:
            times = list(pool.map(ask, prompts))
        seconds = time.perf_counter() - began
        return Round(seconds, tokens * requests, times, _busy(self.process.pid) - busy)


def descendants(pid: int) -> list[int]:
    """Ids of a process's living descendants; a recording's writers are among them."""
    found: list[int] = []
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found


def _busy(pid: int) -> float:
    """Seconds of CPU that a process and its living descendants have taken."""
    ticks = 0
    for each in (pid, *descendants(pid)):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def measured(
    servers: dict[str, Server], clients: int, given: argparse.Namespace, say: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """For each variant and measure, the ratios of its rounds to the plain rounds around them."""
    requests, others = given.requests * clients, [name for name in servers if name != PLAIN]
    for server in servers.values():
        server.round(clients, requests, given.tokens, -1)
    plain = [servers[PLAIN].round(clients, requests, given.tokens, 0).measures()]
    found: dict[str, dict[str, list[float]]] = {name: {} for name in (PLAIN, *others)}
    for number in range(given.rounds):
        for name in others:
            here = servers[name].round(clients, requests, given.tokens, number).measures()
            plain.append(servers[PLAIN].round(clients, requests, given.tokens, number).measures())
            for key, value in here.items():
                found[name].setdefault(key, []).append(value / statistics.mean(p[key] for p in plain[-2:]))
        say(f"{clients} clients, round {number + 1} of {given.rounds}")
    for before, here, after in zip(plain, plain[1:], plain[2:], strict=False):
        for key, value in here.items():
            found[PLAIN].setdefault(key, []).append(value / statistics.mean((before[key], after[key])))
    return found


def interval(ratios: Sequence[float], times: int = 2000) -> tuple[float, float, float]:
    """The median, and the middle 95 % of the medians of as many draws from the same ratios."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(times))
    return statistics.median(ratios), medians[int(0.025 * times)], medians[int(0.975 * times)]


def main() -> None:
    parser = argparse.ArgumentParser(description="What recording costs a server.")
    parser.add_argument("--engine", default="v1")
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--requests", type=int, default=4, help="of each client in a round")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="serving-"))
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        servers: dict[str, Server] = {}
        for name in (PLAIN, *given.only):
            options = None if name == PLAIN else VARIANTS[name]
            servers[name] = Server(folder, name, given.engine, given.model, options)
            stack.callback(servers[name].close)
            servers[name].wait_until_ready()
        for clients in given.clients:
            found = measured(servers, clients, given, lambda line: print(line, file=sys.stderr))
            results[str(clients)] = found
            print(f"\n| {clients} clients | throughput | p50 | p99 | cpu | rounds |\n|---|---|---|---|---|---|")
            for name, ratios in found.items():
                cells = ["{:.3f} ({:.3f}-{:.3f})".format(*interval(values)) for values in ratios.values()]
                print(f"| {name} | {' | '.join(cells)} | {len(next(iter(ratios.values())))} |", flush=True)
        print("\n| recorded | steps recorded | left out |\n|---|---|---|")
        for name in given.only:
            status = order(servers[name].trace, {"do": "status"})
            print(f"| {name} | {status['recorded']} | {status['dropped']} |", flush=True)
            results.setdefault("steps", {})[name] = status["recorded"], status["dropped"]
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
