"""What reading one call of a large trace takes, against reading all of it.

    python benchmarks/opening.py SCRATCH [GIGABYTES]

The trace is made up: steps of 100 calls, each of 128 KiB of noise. Each reading is a process of its
own, once after the page cache was asked to let go of the file and once more with the file in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sizes

from tracereplay.event import Site, make_rows
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes, TraceDirectory, open_trace, segment_path
from tracereplay.trace.codec import RAW

CALLS, ROWS, WIDTH = 100, 32, 2048  # of bfloat16


def make(path: Path, size: int) -> None:
    """A recording of about ``size`` bytes, stored as they are so that size is size."""
    directory = TraceDirectory(path, {"workload": {}, "engine": {}, "notes": []})
    sites = [Site(f"model.layers.{i}.mlp", "MLP", i) for i in range(CALLS)]
    writer = SegmentWriter(segment_path(path, "record", 0), {}, RAW)
    writer.sites(sites)
    random = np.random.default_rng(0)
    rows = make_rows([(0, 0, i) for i in range(ROWS)])
    for number in range(size // (CALLS * ROWS * WIDTH * 2)):
        noise = random.bytes(CALLS * ROWS * WIDTH * 2)
        pieces = [noise[i * ROWS * WIDTH * 2 :][: ROWS * WIDTH * 2] for i in range(CALLS)]
        tensors = [TensorBytes("bfloat16", (ROWS, WIDTH), (WIDTH, 1), piece) for piece in pieces]
        calls = [PendingCall(i, 0, rows, rows, {}, {0: tensor}) for i, tensor in enumerate(tensors)]
        writer.step(number, rows, calls, [], [])
    writer.close({})
    directory.add_pass("record", {"requests": [], "seconds": 0.0, "ranks": [{"errors": {}}]})
    directory.complete()


def read_one(path: Path) -> int:
    """The middle call of the middle step."""
    segment = open_trace(path).segment("record")
    calls = segment.step(len(segment) // 2).calls
    return len(calls[len(calls) // 2].outputs[0].load())


def read_all(path: Path) -> int:
    """Every call, once."""
    return sum(len(v.load()) for step in open_trace(path).steps("record") for c in step.calls for v in c.outputs)


def measured(path: Path, what: str) -> dict[str, Any]:
    """In a process of its own; only the reading counts, not the imports."""
    done = subprocess.run([sys.executable, __file__, path, what], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def forget(path: Path) -> None:
    """Asks the system to drop the file's pages."""
    for file in path.iterdir():
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def opening(scratch: Path, size: int, rounds: int = 5) -> dict[str, Any]:
    """Bytes and seconds of each way of reading; ``one`` and ``all``, cold and warm."""
    path = scratch / "large.trace"
    make(path, size)
    found: dict[str, Any] = {"trace": sizes.disk(path)}
    for what in ("one", "all"):
        for state in ("cold", "warm"):
            runs = []
            for _ in range(rounds if what == "one" else 3):
                if state == "cold":
                    forget(path)
                runs.append(measured(path, what))
            found[f"{what}, {state}"] = runs
    return found


def _read(path: Path, what: str) -> dict[str, float]:
    before, started = sizes.bytes_read(), time.perf_counter()
    size = read_one(path) if what == "one" else read_all(path)
    return {"seconds": time.perf_counter() - started, "read": sizes.bytes_read() - before, "values": size}


def main() -> None:
    place, given = Path(sys.argv[1]), sys.argv[2:]
    if given and given[0] in ("one", "all"):
        print(json.dumps(_read(place, given[0])))
    else:
        print(json.dumps(opening(place, int(1e9 * float(given[0] if given else 2)))))


if __name__ == "__main__":
    main()
