"""What a trial of `bisect operators` costs: passes with operators cancelled, against plain generation.

    python benchmarks/trials.py --json trials.json
    python benchmarks/trials.py --model DIR --tokens 64 --rounds 7

One engine (vLLM 0.32.0, eager, one thread) records its own golden trace and replays it; then each round generates
plainly and makes each trial once, in turn. A trial is all of it: its trace is made, generated, closed, opened and
deleted. Without --model, a random Llama of 200 million parameters is made first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables

from tracereplay.bisector.bench import Bench
from tracereplay.bisector.operators import TOKENS
from tracereplay.cancellation import Cancellation
from tracereplay.comparator.numbers.align import sites_of
from tracereplay.comparator.tokens.rollout import sampled_tokens
from tracereplay.engines.request import PassRequest
from tracereplay.environments.registry import load_engine
from tracereplay.launch import EngineProcess, jobs
from tracereplay.launch.making import making, run_header
from tracereplay.passes import CANCELLED, INJECTED, RECORD
from tracereplay.recorder.options import Options
from tracereplay.trace import open_trace
from tracereplay.workload import Prompt, Workload

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
SETTINGS = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8, "enable_prefix_caching": False}
PROMPTS, LENGTH = 4, 16


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, which has the engine in it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(process: EngineProcess, run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of the engine's processor."""
    begun, used = time.monotonic(), cpu_seconds(process.pid)
    run()
    return time.monotonic() - begun, cpu_seconds(process.pid) - used


def trials(model: Path, folder: Path, tokens: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    engine = load_engine("v1")
    sampling = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.0, "logprobs": 0}
    prompts = tuple(Prompt(tuple(range(i, i + LENGTH)), None, sampling) for i in range(10, 10 + PROMPTS))
    work = Workload(str(model.resolve()), prompts, SETTINGS)
    with EngineProcess(engine, model=model.resolve(), settings=SETTINGS) as process:
        golden = folder / "golden.trace"
        with making(golden, run_header("recording", engine, work)) as directory:
            jobs.record_pass(process, directory, work, PassRequest(golden.resolve(), RECORD))
        with open_trace(golden) as trace, Bench(engine, trace, work, folder, None, print, process) as bench:
            with open_trace(bench.replay()) as candidate:
                sites = sites_of(candidate, INJECTED).values()
            norms = Cancellation(frozenset(site.name for site in sites if site.role == "norm"))
            one = Cancellation(frozenset({next(site.name for site in sites if site.role == "linear")}))

            def trial(selection: Cancellation, options: Options) -> Callable[[], None]:
                def run() -> None:
                    with bench.cancelled(selection, options) as made:
                        sampled_tokens(made, CANCELLED)

                return run

            ways = {
                "plain generation": lambda: process.generate([p.as_dict() for p in prompts]),
                "one operator, tokens recorded": trial(one, TOKENS),
                "all norms, tokens recorded": trial(norms, TOKENS),
                "everything, tokens recorded": trial(Cancellation(everything=True), TOKENS),
                "one operator, all recorded": trial(one, Options()),
                "all norms, all recorded": trial(norms, Options()),
            }
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for number in range(rounds + 1):
                for name, run in ways.items():
                    took = measured(process, run)
                    if number:  # the first round reads both traces, and warms up
                        found[name].append(took)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
        model = given.model
        if model is None:
            model = Path(folder) / "model"
            maker = [
                sys.executable,
                str(FIXTURES / "make_random_model.py"),
                "llama",
                str(model),
                "--preset",
                "200m",
            ]
            subprocess.run(maker, check=True)
        found = trials(model, Path(folder), given.tokens, given.rounds)
    plain = found["plain generation"]
    rows = []
    for name, took in found.items():
        ratios = [[mine[i] / base[i] for mine, base in zip(took, plain, strict=True)] for i in (0, 1)]
        told = [f"{statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})" for r in ratios]
        rows.append([name, f"{statistics.median(t for t, _ in took):.2f} s", *told])
    print(tables.table(["4 requests", "wall", "wall, x plain", "engine's CPU, x plain"], rows))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
