"""What recording kernels costs, how large it is, and how fast kernels are replayed in isolation.

    python benchmarks/kernels.py --json kernels.json
    python benchmarks/kernels.py --model 200m --batch 1 --rounds 5

Times are taken as `overhead.py` takes them: each measured generation stands between two plain ones in one engine
process. Beside the recording stand a dispatch mode that does nothing, which is the least that seeing kernels can
cost, and PyTorch's DebugMode with hashes of all inputs and outputs, which keeps no tensor. Both see the whole
step; the recording sees what runs inside operators.

Bytes are those of the trace against a dump of every input and output of every call (what a call writes in place
counts as an output), with and without the parameters that calls take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import sizes
import tables
from lock import locked
from overhead import VARIANTS, Bench, TimedEngine, arguments, machine, measure, models, times, workload

from tracereplay.alone.constants import Constants
from tracereplay.alone.kernels import KernelRunner
from tracereplay.alone.sandbox import Sandbox
from tracereplay.environments.registry import Engine, load_engine
from tracereplay.trace import open_trace

KINDS = ("mode that does nothing", "DebugMode with hashes", "record", "kernels", "kernels, no check of writes")


def one(engine: Engine, model: Path, batch: int, given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All measurements of one model and batch size."""
    with locked(given.lock), TimedEngine(engine, model) as process:
        bench = Bench(process, workload(model, batch, given), scratch)
        done = measure(bench, given)
        _, golden = bench.trace(VARIANTS["kernels"])
    found: dict[str, Any] = {"times": times([done])}
    found["bytes"] = {
        "prefill": sizes.of_kernels(golden, steps=1),
        f"prefill + {given.decode} decode steps": sizes.of_kernels(golden),
    }
    with locked(given.lock):
        found["isolated"] = [isolated(engine, golden, model, exact) for exact in (False, True)]
    return found


def isolated(engine: Engine, golden: Path, model: Path, reference: bool) -> dict[str, Any]:
    """Calls a second of the trace's last step, decode; the first time brings the parameters and is left out.

    Seconds are those of the calls that were executed; what was refused costs nothing and counts for nothing.
    """
    with closing(open_trace(golden)) as trace, Sandbox(engine, setup={"kernel": {"vllm": True}}) as sandbox:
        runner = KernelRunner(sandbox, Constants(trace, model=model), reference=reference)
        kernels = trace.steps("record")[-1].kernels
        rates, outcomes = [], Counter(runner.run(kernel).status for kernel in kernels)
        for _ in range(5):
            started = time.perf_counter()
            for kernel in kernels:
                runner.run(kernel)
            rates.append(outcomes["done"] / (time.perf_counter() - started))
    return {"reference": reference, "calls": len(kernels), "executed": outcomes["done"],
            "calls a second": statistics.median(rates), "slowest": min(rates), "fastest": max(rates)}  # fmt: skip


def main() -> None:
    given = arguments(__doc__.split("\n", 1)[0], KINDS, rounds=5).parse_args()
    engine = load_engine(given.engine)
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    found["engine"] = dict(engine.versions)
    found["command"] = " ".join(["kernels.py", *sys.argv[1:]])
    found["results"] = {}
    for name, model in models(given.model or ("tiny", "200m")):
        for batch in given.batch or (1,):
            title = f"{name}, batch {batch}, prompt {given.prompt}, {given.decode} decode steps"
            print(title, file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=given.scratch, prefix="kernels-") as scratch:
                case = one(engine, model, batch, given, Path(scratch))
            found["results"][title] = case
            print(tables.of_kernels(title, case), flush=True)
            if given.json:
                given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
