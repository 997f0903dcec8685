"""What time and memory do as a generation grows longer, from one command.

    python benchmarks/scale.py SCRATCH [--engine v1] [--steps 16,128,512] [--batch 1]

One request (or ``--batch`` of them) of 128 prompt tokens is generated plainly, recorded and replayed by one
running engine, at each length. What reads traces runs in a process of its own, whose CPU seconds and peak memory
are taken. Ratios are to the plain generation of the same length in the same engine, or to what was measured in the
same run: how fast this machine decodes the golden trace's chunks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tables
from replays import PRESETS, SETTINGS, find, record, started, token_ids, write_model

from tracereplay.dtypes import nbytes
from tracereplay.gate import workload_of
from tracereplay.launch.jobs import replay_passes
from tracereplay.launch.making import engine_header, making, replay_header
from tracereplay.launch.process import EngineProcess
from tracereplay.passes import INJECTED
from tracereplay.trace import Trace, open_trace
from tracereplay.workload import Prompt

PROMPT = 128
READERS: dict[str, Sequence[str]] = {
    "show": ("show", "GOLDEN"),
    "verify": ("verify", "GOLDEN"),
    "compare with itself": ("compare", "GOLDEN", "GOLDEN"),
    "compare golden, candidate": ("compare", "GOLDEN", "CANDIDATE"),
    "pack": ("pack", "GOLDEN", "-o", "PACKED", "--force"),
}


def raw_bytes(trace: Trace, name: str) -> int:
    """Bytes of the tensors that a pass stores, each once."""
    total = 0
    for step in trace.records(name):
        stored = {(v.chunk, v.tensor): nbytes(v.dtype, v.shape) for v in step.form.values if v.chunk >= 0}
        total += sum(stored.values())
    return total


def decode_rate(trace: Trace, name: str) -> float:
    """Bytes of decoded chunks in a CPU second."""
    segment = trace.segment(name)
    begun, size = time.process_time(), 0
    for number in range(len(segment.index.chunks)):  # type: ignore[union-attr]
        size += segment.read_chunk(number)[0].nbytes
    return size / (time.process_time() - begun)


def command(arguments: Sequence[str]) -> dict[str, float]:
    """CPU seconds, seconds and peak memory of a command of tracereplay's."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURED, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _, told = process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = json.loads(told.splitlines()[-1])["peak"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "seconds": time.monotonic() - begun, "peak": peak}


MEASURED = """
import json, sys
from tracereplay.cli.main import main
try:
    main()
except SystemExit:
    pass
# Not ru_maxrss, which begins with what the parent had when it forked.
told = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": int(told.split()[1]) * 1024}), file=sys.stderr)
"""


def peak_of(process: EngineProcess) -> int:
    """The largest memory of the engine's process since this was last asked, bytes, without its children's."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def timed(call: Callable[[], Any]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def at_length(
    process: EngineProcess, engine: Any, model: Path, scratch: Path, steps: int, batch: int
) -> dict[str, Any]:
    """All figures of one length."""
    sampling = {"max_tokens": steps, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}
    prompts = [Prompt(token_ids(PROMPT, seed), None, sampling) for seed in range(batch)]
    golden_path, candidate_path = scratch / f"{steps}.golden", scratch / f"{steps}.candidate"
    asked = [prompt.as_dict() for prompt in prompts]
    process.generate(asked)  # warm
    peak_of(process)
    plain = [timed(lambda: process.generate(asked)) for _ in range(2)]
    plain_peak = peak_of(process)
    recording = timed(lambda: record(process, engine, model, prompts, golden_path))
    golden = open_trace(golden_path)
    workload = workload_of(golden, {}, model)
    header = replay_header(engine, replace(workload, settings=SETTINGS), golden.digest(), golden.run.level)
    begun = time.monotonic()
    with making(candidate_path, header) as directory:
        directory.update_run(engine=engine_header(engine, process.info))
        replay_passes(process, directory, golden, workload)
    replayed = time.monotonic() - begun
    injected_peak = peak_of(process)
    plain += [timed(lambda: process.generate(asked))]
    candidate = open_trace(candidate_path)
    injected = float(candidate.results[INJECTED]["seconds"])
    places = {"GOLDEN": str(golden_path), "CANDIDATE": str(candidate_path), "PACKED": str(scratch / "packed")}
    found: dict[str, Any] = {
        "steps": steps, "plain": sorted(plain)[1], "recording": recording, "replay": replayed,
        "injected": injected, "golden": golden.size,
        "raw": [raw_bytes(golden, "record"), raw_bytes(candidate, INJECTED)],
        "decode rate": decode_rate(golden, "record"),
        "engine peak beyond plain": injected_peak - plain_peak,
    }  # fmt: skip
    golden.close()
    candidate.close()
    for name, arguments in READERS.items():
        found[name] = command([places.get(a, a) for a in arguments])
    return found


def shown(results: Sequence[dict[str, Any]]) -> str:
    """The table."""
    head = ["decode steps", *(str(r["steps"]) for r in results)]
    rows = [
        ["plain generation, s", *(f"{r['plain']:.1f}" for r in results)],
        ["recorded, x plain", *(f"{r['recording'] / r['plain']:.2f}" for r in results)],
        ["golden, MB", *(f"{r['golden'] / 1e6:.0f}" for r in results)],
        ["injected pass and compare, x plain", *(
            f"{(r['injected'] + r['compare golden, candidate']['seconds']) / r['plain']:.2f}" for r in results
        )],
        ["injected pass alone, x plain", *(f"{r['injected'] / r['plain']:.2f}" for r in results)],
        ["engine's peak beyond plain, MB", *(f"{r['engine peak beyond plain'] / 1e6:.0f}" for r in results)],
    ]  # fmt: skip
    for name in READERS:
        rows.append([f"{name}, CPU s", *(f"{r[name]['cpu']:.1f}" for r in results)])
        rows.append([f"{name}, peak MB", *(f"{r[name]['peak'] / 1e6:.0f}" for r in results)])
    rows.append([
        "compare with itself, raw GB of both a CPU s",
        *(f"{2 * r['raw'][0] / r['compare with itself']['cpu'] / 1e9:.2f}" for r in results),
    ])  # fmt: skip
    rows.append([
        "compare golden, candidate, raw GB of both a CPU s",
        *(f"{sum(r['raw']) / r['compare golden, candidate']['cpu'] / 1e9:.2f}" for r in results),
    ])  # fmt: skip
    rows.append(["decoding alone, GB a CPU s", *(f"{r['decode rate'] / 1e9:.2f}" for r in results)])
    return tables.table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--engine", default="v1")
    parser.add_argument("--steps", default="16,128,512")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", default="200m", choices=sorted(PRESETS))
    given = parser.parse_args()
    lengths = [int(n) for n in given.steps.split(",")]
    scratch: Path = given.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    model = scratch / f"model-{given.size}"
    if not model.exists():
        write_model("llama", model, PRESETS[given.size])
    engine = find(given.engine, max_model_len=PROMPT + max(lengths) + 8)
    results = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with started(engine, model, scratch) as process:
        for steps in lengths:
            results.append(at_length(process, engine, model, scratch, steps, given.batch))
            print(shown(results), flush=True)
    (scratch / "scale.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
