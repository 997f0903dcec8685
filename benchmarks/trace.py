"""The trace file against its alternatives: codecs, dumps of module outputs, and opening a large trace.

    python benchmarks/trace.py --json trace.json
    python benchmarks/trace.py --sglang sglang-0.5.10-py3-none-any.whl --dtypes bfloat16 --gigabytes 0

The activations are real ones: the tiny model, trained on English, is recorded in each dtype on eight prompts of
300 bytes. For differences, the committed golden trace of another engine is replayed, and the candidate's outputs
are stored as what they differ by. SGLang's dumper is taken out of its wheel, which pip downloads.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import opening
import tables
from lock import locked

from tracereplay.environments.registry import Engine, load_engine
from tracereplay.launch import jobs
from tracereplay.launch.process import guest_environment
from tracereplay.workload import Prompt, Workload

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "fixtures" / "tiny-llama"
GOLDEN = HERE.parent / "fixtures" / "tiny-llama-v0.trace"
DTYPES = ("bfloat16", "float16", "float32")
PROMPTS, BYTES, TOKENS = 8, 300, 17
SETTINGS = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 4096}
SGLANG = "sglang==0.5.10"
DUMPER = "sglang/srt/debug_utils/dumper.py"


def recorded(engine: Engine, dtype: str, scratch: Path) -> Path:
    """A recording of the tiny model on texts that come with Python."""
    texts = [text.strip() for _, text in sorted(topics.items()) if len(text) > 2 * BYTES]
    sampling = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}
    prompts = [Prompt(tuple(text.encode()[:BYTES]), None, sampling) for text in texts[:PROMPTS]]
    work = Workload(str(TINY), tuple(prompts), {**SETTINGS, "dtype": dtype})
    return jobs.record(engine, work, scratch / f"{dtype}.trace")


def replayed(engine: Engine, scratch: Path) -> Path:
    return jobs.replay(engine, GOLDEN, scratch / "candidate.trace", model=TINY)


def dumper(wheel: Path | None, scratch: Path) -> Path:
    """SGLang's dumper, out of its wheel."""
    if wheel is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(scratch), SGLANG]
        subprocess.run(command, check=True, stdout=2)
        wheel = next(scratch.glob("sglang-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(DUMPER, scratch))


def in_the_engine(engine: Engine, *arguments: object) -> dict[str, Any]:
    """What `codecs.py` measures under the engine's interpreter."""
    environment = guest_environment(engine) | {"OMP_NUM_THREADS": "1"}
    command = [str(engine.python), str(HERE / "codecs.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -- tables -------------------------------------------------------------------------------------------------


def codec_table(found: Mapping[str, Any]) -> str:
    """Speeds in megabytes of activations a processor second, and bytes."""
    size = found["chunk bytes"]
    rows = [[name, f"{size / statistics.median(r[2] for r in runs):.2f}", speed(size, [r[0] for r in runs]),
             speed(size, [r[1] for r in runs])]
            for name, runs in found["codecs"].items()]  # fmt: skip
    some, runs = found["strong bytes"], found["strong"]
    rows.append([f"strong (on {tables.mega(some)})", f"{some / runs[0][2]:.2f}", speed(some, [r[0] for r in runs]),
                 speed(some, [r[1] for r in runs])])  # fmt: skip
    head = [f"{found['dtype']}, {tables.mega(size)}", "ratio", "encode, MB a CPU second", "decode"]
    return tables.table(head, rows)


def difference_table(found: Mapping[str, Any]) -> str:
    """A replay's outputs, as they are and as differences; encoding includes subtracting."""
    rows = [[f"{name}, {way}", tables.mega(case["bytes"]), f"{case['bytes'] / runs[0][2]:.2f}",
             speed(case["bytes"], [r[0] for r in runs])]
            for name, case in found.items() for way, runs in case["ways"].items()]  # fmt: skip
    return tables.table(["bfloat16 outputs of a replay", "bytes", "ratio", "encode, MB a CPU second"], rows)


def dump_table(found: Mapping[str, Any]) -> str:
    """Of each way of keeping module outputs, bytes, files and time; time as a ratio in the same round."""
    rows = []
    for name, runs in found["dumps"].items():
        pairs = [r["cpu"] / own["cpu"] for r, own in zip(runs, found["dumps"]["trace"], strict=True)]
        walls = [r["wall"] / own["wall"] for r, own in zip(runs, found["dumps"]["trace"], strict=True)]
        cpu = 1000 * statistics.median(r["cpu"] for r in runs)
        rows.append([name, tables.mega(runs[0]["bytes"]), str(runs[0]["files"]), f"{cpu:.0f} ms",
                     tables.spread(pairs), tables.spread(walls)])  # fmt: skip
    head = [f"{found['dtype']}, {tables.mega(found['output bytes'])} of outputs", "bytes", "files", "CPU",
            "CPU, ratio", "wall, ratio"]  # fmt: skip
    return tables.table(head, rows)


def opening_table(found: Mapping[str, Any]) -> str:
    rows = [[name, tables.mega(runs[0]["read"]), tables.mega(runs[0]["values"]),
             tables.spread([1000 * r["seconds"] for r in runs], digits=1) + " ms"]
            for name, runs in found.items() if name != "trace"]  # fmt: skip
    return tables.table([f"reading a trace of {tables.mega(found['trace'])}", "read", "values", "time"], rows)


def speed(size: int, seconds: Sequence[float]) -> str:
    return "" if math.isnan(seconds[0]) else tables.spread([size / 1e6 / s for s in seconds], digits=0)


def measure(engine: Engine, given: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Codecs and dumps of every recording; tables are printed as they come."""
    source, found = dumper(given.sglang, place), {}
    with locked(given.lock):
        paths = [recorded(engine, dtype, place) for dtype in given.dtypes]
        candidate = replayed(engine, place)
    for path in paths:
        case = found[path.stem] = in_the_engine(engine, path, source, place, given.rounds)
        print(codec_table(case), dump_table(case), sep="\n\n", end="\n\n", flush=True)
    found["differences"] = in_the_engine(engine, candidate, source, place, given.rounds, GOLDEN)
    print(difference_table(found["differences"]), end="\n\n", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--engine", default="v1", help="a registered engine; records, and brings torch")
    parser.add_argument("--dtypes", nargs="*", default=DTYPES, choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sglang", type=Path, help="SGLang's wheel; by default pip fetches it")
    parser.add_argument(
        "--gigabytes", type=float, default=2.0, help="of the trace of which one call is read; 0: none"
    )
    parser.add_argument("--lock", type=Path, help="a file to hold locked while an engine runs")
    parser.add_argument("--scratch", type=Path, help="where traces go; several GB")
    parser.add_argument("--json", type=Path, help="where everything measured goes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch, prefix="trace-") as scratch:
        found = measure(load_engine(given.engine), given, Path(scratch)) if given.dtypes else {}
        if given.gigabytes:
            found["opening"] = opening.opening(Path(scratch), int(1e9 * given.gigabytes))
            print(opening_table(found["opening"]))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
