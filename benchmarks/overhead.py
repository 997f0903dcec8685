"""What recording and replaying cost, as ratios to plain generation in the same engine process.

    python benchmarks/overhead.py --json overhead.json
    python benchmarks/overhead.py --model 200m --batch 8 --rounds 7

    one engine process a model and batch size
    ┌──────────────────────────────────────────────────────────────────────────────┐
    │ warm-up, then rounds of:  plain  record  plain  rerun  plain  injected  ...   │
    └──────────────────────────────────────────────────────────────────────────────┘

Each measured generation stands between two plain ones; its ratio is to their mean, so that a machine that
grows slower or faster changes both sides. Medians and quartiles are of these paired ratios. ``plain`` in the
tables is each plain generation against its own two neighbours: what the machine's noise alone looks like.

``plain`` runs without taps, ``idle taps`` with taps that nobody listens to, ``block outputs`` records what blocks,
attention, MLPs and norms give, ``record`` every input and output of every operator.

Afterwards, on the traces just made: their bytes against raw dumps, the writer's speed, and what it takes to
read one call.

A decode step is the median of its generation's: the usual one. The mean has those after the prefill in it too, in
which the engine may have to wait until the writer has room again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sizes
import tables
from lock import locked

from tracereplay.comparator import compare_traces
from tracereplay.engines.request import Inject, PassRequest
from tracereplay.environments.registry import Engine, load_engine
from tracereplay.launch.home import home
from tracereplay.launch.process import EngineProcess, guest_environment
from tracereplay.passes import INJECTED, RECORD, RERUN
from tracereplay.recorder.options import KERNEL, Options
from tracereplay.storage.checkpoint import read_checkpoint
from tracereplay.trace import TraceDirectory
from tracereplay.trace.codec import RAW
from tracereplay.workload import Prompt, Workload

HERE = Path(__file__).resolve().parent
Generations = list[tuple[str, dict[str, Any]]]  # (plain or variant, result), in the order in which they ran
SETTINGS = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8, "max_num_batched_tokens": 2048}
# One process, one thread of computation: the engine's thread and the writer's have a core each.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
# What attention and MLP give comes out of their last linear layers, what a block gives out of the next norm.
BLOCKS = Options(sites=("*norm*", "*.o_proj", "*.down_proj"), sides=("out",))


@dataclass(frozen=True)
class Variant:
    """What a generation is beside a plain one.

    Args:
        name: of its pass.
        inject: golden's values are fed.
        options: how much is recorded.
        taps, mode, discard: see `guest/clocked_driver.py`; with one of the first two nothing is recorded.
    """

    name: str = RECORD
    inject: bool = False
    options: Options = Options()
    taps: bool = False
    mode: str | None = None
    discard: bool = False


VARIANTS: Mapping[str, Variant] = {
    "idle taps": Variant(taps=True),
    "block outputs": Variant(options=BLOCKS),
    "record": Variant(),
    "record, no codec": Variant(options=Options(codec=RAW)),
    "record, thrown away": Variant(discard=True),
    "kernels": Variant(options=Options(level=KERNEL)),
    "kernels, no check of writes": Variant(options=Options(level=KERNEL, check_writes=False)),
    "mode that does nothing": Variant(mode="nothing"),
    "DebugMode with hashes": Variant(mode="hashes"),
    "rerun": Variant(RERUN),
    "injected": Variant(INJECTED, inject=True),
}
USUAL = ("idle taps", "block outputs", "record", "rerun", "injected")


class TimedEngine(EngineProcess):
    """An engine whose driver is `guest/clocked_driver.py`."""

    def __init__(self, engine: Engine, model: Path) -> None:
        self.name = engine.name
        self._log_file = tempfile.NamedTemporaryFile("w+b", prefix="overhead-", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            [engine.python, HERE / "guest" / "clocked_driver.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log_file,
            env=guest_environment(engine) | ENVIRONMENT, start_new_session=True, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            self.info = self.request("start", model=str(model), settings={**engine.settings, **SETTINGS})
        except BaseException:
            self.close()
            raise

    def timed(self, workload: Workload, variant: Variant, request: PassRequest | None) -> dict[str, Any]:
        """Generates once."""
        result: dict[str, Any] = self.request(
            "generate", prompts=[p.as_dict() for p in workload.prompts],
            recording=None if request is None else request.as_dict(), taps=variant.taps, mode=variant.mode,
            discard=variant.discard,
        )  # fmt: skip
        return result


class Bench:
    """One model, one batch size, one engine process.

    Args:
        process: the engine.
        workload: what every generation is.
        scratch: directory for traces.
    """

    def __init__(self, process: TimedEngine, workload: Workload, scratch: Path) -> None:
        self._process = process
        self._workload = workload
        self._scratch = scratch
        self._made = 0
        self._checkpoint = read_checkpoint(Path(workload.model)).tensors
        self._golden: Path | None = None

    def plain(self) -> dict[str, Any]:
        return self._process.timed(self._workload, Variant(), None)

    def variant(self, name: str) -> dict[str, Any]:
        """Runs a variant once; an injected pass is compared too, and its trace is deleted as all are."""
        variant = VARIANTS[name]
        if variant.taps or variant.mode is not None:
            return self._process.timed(self._workload, variant, None)
        result, path = self.trace(variant)
        result["compare"] = self._compare(path) if name == "injected" else 0.0
        shutil.rmtree(path)
        return result

    def golden(self) -> Path:
        """The recording that replays use."""
        if self._golden is None:
            self._golden = self.trace(Variant())[1]
        return self._golden

    def trace(self, variant: Variant) -> tuple[dict[str, Any], Path]:
        """One generation with recording on, and the trace it made."""
        golden = None if variant.name == RECORD else self.golden()
        path = self._scratch / f"{self._made}.trace"
        self._made += 1
        engine = {"name": "bench", **self._process.info}
        run = {"workload": self._workload.as_dict(), "checkpoint": self._checkpoint, "engine": engine, "notes": []}
        directory = TraceDirectory(path, run)
        feed = Inject() if variant.inject else None
        request = PassRequest(path.resolve(), variant.name, golden, feed, variant.options)
        result = self._process.timed(self._workload, variant, request)
        if result["ranks"][0]["errors"]:
            raise SystemExit(f"Recording failed: {result['ranks'][0]['errors']}")
        directory.add_pass(variant.name, {k: result[k] for k in ("requests", "seconds", "ranks")})
        directory.complete()
        return result, path

    def _compare(self, candidate: Path) -> float:
        started = time.perf_counter()
        verdict = compare_traces(self.golden(), candidate)
        if verdict.verdict != "match":
            raise SystemExit(f"The engine does not match itself: {verdict.reasons}")
        return time.perf_counter() - started


# -- measuring ----------------------------------------------------------------------------------------------


def measure(bench: Bench, given: argparse.Namespace) -> Generations:
    """All generations in order, warm-up left out; every second one is plain."""
    for _ in range(given.warm_up):
        bench.plain()
        for name in given.variants:
            bench.variant(name)
    done = [("plain", bench.plain())]
    for number in range(given.rounds):
        for name in given.variants:
            done.append((name, bench.variant(name)))
            done.append(("plain", bench.plain()))
        print(f"  round {number + 1} of {given.rounds}", file=sys.stderr)
    return done


# what is measured -> its seconds in a generation's result
MEASURES: Mapping[str, Any] = {
    "decode step": lambda r: statistics.median(s[0] for s in r["steps"][1:]),
    "decode step, mean": lambda r: statistics.mean(s[0] for s in r["steps"][1:]),
    "decode step, engine thread's CPU": lambda r: statistics.median(s[1] for s in r["steps"][1:]),
    "prefill step": lambda r: r["steps"][0][0],
    "generation": lambda r: r["seconds"],
    "generation, opened and closed": lambda r: r["whole"][0],
    "generation, all CPU": lambda r: r["whole"][2] + r["children"],
    "generation, opened, closed and compared": lambda r: r["whole"][0] + r.get("compare", 0.0),
}


def ratios(done: Generations, measure_of: Any) -> dict[str, list[float]]:
    """Of each variant, its paired ratios to the plain generations before and after it."""
    seconds = [measure_of(result) for _, result in done]
    found: dict[str, list[float]] = {"plain": []}
    for i, (name, _) in enumerate(done):
        reach = 2 if name == "plain" else 1  # a plain one's plain neighbours are two away
        if reach <= i < len(done) - reach:
            pair = seconds[i] / statistics.mean((seconds[i - reach], seconds[i + reach]))
            found.setdefault(name, []).append(pair)
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q1": float(low), "q3": float(high), "count": len(values)}


def times(runs: Sequence[Generations]) -> dict[str, Any]:
    """Of each measure, the plain seconds and each variant's ratio, over all engine starts."""
    found = {}
    for name, of in MEASURES.items():
        plain = [of(r) for done in runs for kind, r in done if kind == "plain"]
        pairs: dict[str, list[float]] = {}
        for done in runs:
            for kind, more in ratios(done, of).items():
                pairs.setdefault(kind, []).extend(more)
        found[name] = {
            "plain seconds": summary(plain),
            "ratio": {kind: summary(values) for kind, values in pairs.items() if values},
        }
    return found


def parts(done: Generations) -> dict[str, Any]:
    """Median seconds that each variant spends outside generating."""
    found = {}
    for kind in dict.fromkeys(kind for kind, _ in done if kind != "plain"):
        results = [r for k, r in done if k == kind]
        found[kind] = {p: statistics.median(r.get(p, 0.0) for r in results) for p in ("begin", "end", "compare")}
    return found


# -- what is run --------------------------------------------------------------------------------------------


def models(wanted: Sequence[str]) -> Iterator[tuple[str, Path]]:
    places = {"tiny": HERE.parent / "fixtures" / "tiny-llama", "200m": home() / "models" / "llama-200m"}
    for name in wanted:
        path = places.get(name, Path(name))
        if name == "200m" and not (path / "model.safetensors").exists():
            print(f"Making the 200 M model in {path}", file=sys.stderr)
            script = HERE.parent / "fixtures" / "make_random_model.py"
            subprocess.run([sys.executable, script, "llama", path, "--preset", "200m"], check=True, stdout=2)
        yield name, path


def workload(model: Path, batch: int, given: argparse.Namespace) -> Workload:
    """``batch`` different prompts of token ids below 256, greedy; the prefill gives the first token."""
    random = np.random.default_rng(0)
    sampling = {"temperature": 0.0, "max_tokens": given.decode + 1, "ignore_eos": True, "logprobs": 1}
    prompts = [Prompt(tuple(random.integers(0, 256, given.prompt).tolist()), None, sampling) for _ in range(batch)]
    return Workload(str(model), tuple(prompts), SETTINGS, read_checkpoint(model).digest)


def one(engine: Engine, model: Path, batch: int, given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All measurements of one model and batch size."""
    runs = []
    for start in range(given.starts):
        with locked(given.lock), TimedEngine(engine, model) as process:
            bench = Bench(process, workload(model, batch, given), scratch / str(start))
            golden = bench.golden()
            runs.append(measure(bench, given))
    done = [generation for run in runs for generation in run]
    found = {"times": times(runs), "parts": parts(done), "seconds": [(kind, r["seconds"]) for kind, r in done]}
    found["bytes"] = {
        "prefill": sizes.of_trace(golden, model, steps=1),
        f"prefill + {given.decode} decode steps": sizes.of_trace(golden, model),
    }
    found["writing"] = sizes.write_speed(golden, scratch)
    found["opening"] = sizes.opening(golden)
    return found


def arguments(description: str, variants: Sequence[str], rounds: int) -> argparse.ArgumentParser:
    """What all benchmarks that time an engine are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--engine", default="v1", help="a registered engine; V0 or V1 of vLLM")
    parser.add_argument("--model", action="append", help="tiny, 200m or a directory; by default the first two")
    parser.add_argument("--batch", action="append", type=int, help="requests at once")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--decode", type=int, default=16, help="decode steps after the prefill")
    parser.add_argument("--rounds", type=int, default=rounds, help="of every variant once, in each engine process")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--variants", nargs="+", default=variants, choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--lock", type=Path, help="a file to hold locked while an engine runs")
    parser.add_argument("--scratch", type=Path, help="where traces go; several GB")
    parser.add_argument("--json", type=Path, help="where everything measured goes")
    return parser


def main() -> None:
    parser = arguments(__doc__.split("\n", 1)[0], USUAL, rounds=7)
    parser.add_argument("--starts", type=int, default=1, help="engine processes, results pooled")
    given = parser.parse_args()
    engine = load_engine(given.engine)
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    found["engine"] = dict(engine.versions)
    found["command"] = " ".join(["overhead.py", *sys.argv[1:]])
    found["results"] = {}
    for name, model in models(given.model or ("tiny", "200m")):
        for batch in given.batch or (1, 8):
            title = f"{name}, batch {batch}, prompt {given.prompt}, {given.decode} decode steps"
            print(title, file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=given.scratch, prefix="overhead-") as scratch:
                case = one(engine, model, batch, given, Path(scratch))
            found["results"][title] = case
            print(tables.of_case(title, case), flush=True)
            if given.json:
                given.json.write_text(json.dumps(found, indent=1))


def machine() -> dict[str, Any]:
    """Cores, processor, memory and system; nothing that names a host."""
    model, system = _value("/proc/cpuinfo", "model name", ":"), _value("/etc/os-release", "PRETTY_NAME", "=")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": os.cpu_count(), "processor": model, "memory GiB": round(memory / 2**30), "system": system,
        "load average at the start": os.getloadavg(),
    }  # fmt: skip


def _value(path: str, name: str, sign: str) -> str:
    """The first value called ``name`` in a file of ``name sign value`` lines."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((line.split(sign, 1)[1].strip(' "') for line in lines if line.startswith(name)), "unknown")


if __name__ == "__main__":
    main()
