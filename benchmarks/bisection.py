"""What a bisection costs, on the tiny model: engine starts, passes, and passes a minute.

    python benchmarks/bisection.py --json bisection.json
    python benchmarks/bisection.py --kinds operators settings

    operators   vLLM 0.8.5's committed golden trace under vLLM 0.32.0: one start, many passes
    settings    vLLM 0.32.0, eager against compiled, bit for bit: one start a run
    versions    vLLM 0.27.1 to 0.32.0, a fault planted by the tests' plugin from 0.30.0 on; builds what is missing

Why this file is not called bisect.py: a module of that name in the script's folder would hide the standard
library's from everything that the benchmarks import.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tables

from tracereplay.bisector.operators import MAX_PASSES, bisect_operators
from tracereplay.bisector.settings import MAX_STARTS, bisect_settings
from tracereplay.bisector.versions import bisect_versions
from tracereplay.comparator import Policy
from tracereplay.environments.registry import load_engine
from tracereplay.gate import workload_of
from tracereplay.launch import jobs
from tracereplay.trace import open_trace
from tracereplay.verdict import Verdict

ROOT = Path(__file__).resolve().parents[1]
MODEL, GOLDEN = ROOT / "fixtures" / "tiny-llama", ROOT / "fixtures" / "tiny-llama-v0.trace"
FAULTS = ROOT / "tests" / "engine" / "faults"
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


class Clock:
    """Notes when each step of a bisection was reported."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.lines: list[tuple[float, str]] = []

    def __call__(self, line: str) -> None:
        self.lines.append((time.monotonic() - self.begun, line))

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def first(self, words: str) -> float:
        return next((at for at, line in self.lines if words in line), self.seconds())


def operators(folder: Path) -> dict[str, Any]:
    clock = Clock()
    verdict = bisect_operators(load_engine("v1"), GOLDEN, folder, model=MODEL, report=clock)
    found = _found(verdict, clock)
    begun = clock.first("(closure)")
    found["seconds of start and replay"] = begun
    found["passes a minute"] = 60 * found["passes"] / (clock.seconds() - begun)
    found["class level"], found["budget"] = verdict.bisection.class_passes, MAX_PASSES  # type: ignore[union-attr]
    return found


def settings(folder: Path) -> dict[str, Any]:
    golden = _golden(folder)
    clock = Clock()
    verdict = bisect_settings(
        load_engine("v1"), golden, folder / "work", policy=Policy().made_strict(), report=clock,
        settings={"enforce_eager": False},
    )  # fmt: skip
    found = _found(verdict, clock)
    found["passes a minute"] = 60 * found["engine starts"] / clock.seconds()
    found["budget"] = MAX_STARTS
    return found


def versions(folder: Path) -> dict[str, Any]:
    golden = _golden(folder)
    (folder / "fault").write_text("other_activation")
    os.environ.update(
        PYTHONPATH=str(FAULTS), TRACEREPLAY_TEST_FAULT=str(folder / "fault"), TRACEREPLAY_TEST_FAULT_SINCE="0.30.0"
    )
    clock = Clock()
    verdict = bisect_versions(golden, folder / "work", good="0.27.1", bad="0.32.0", report=clock)
    found = _found(verdict, clock)
    assert verdict.bisection is not None
    found["minimal"] = [str(verdict.bisection.first_bad)]
    found["passes"] = len(verdict.bisection.tried)
    found["passes a minute"] = 60 * found["engine starts"] / clock.seconds()
    found["budget"] = "log2"
    return found


def _golden(folder: Path) -> Path:
    """The committed workload, recorded under vLLM 0.32.0."""
    work = workload_of(open_trace(GOLDEN), {}, MODEL)
    return jobs.record(load_engine("v1"), work, folder / "golden.trace")


def _found(verdict: Verdict, clock: Clock) -> dict[str, Any]:
    bisection = verdict.bisection
    assert bisection is not None, verdict.reasons
    return {
        "engine starts": bisection.engine_starts,
        "passes": bisection.passes,
        "seconds": clock.seconds(),
        "minimal": [m.name for m in bisection.minimal or ()],
        "closure": None if verdict.closure is None else verdict.closure.held,
    }


KINDS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "operators": operators, "settings": settings, "versions": versions,
}  # fmt: skip


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [kind, str(r["engine starts"]), str(r["passes"]), str(r.get("class level", "-")), str(r["budget"]),
         f"{r['seconds']:.0f} s", f"{r['passes a minute']:.0f}", ", ".join(r["minimal"])]
        for kind, r in results.items()
    ]  # fmt: skip
    head = ["bisect", "engine starts", "passes", "class level", "budget", "all of it", "passes a minute", "found"]
    return tables.table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    results: dict[str, Any] = {}
    for kind in given.kinds:
        with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
            results[kind] = KINDS[kind](Path(folder))
        print(_table({kind: results[kind]}), flush=True)  # each at once: a later one may be cut off
        if given.json:
            given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
