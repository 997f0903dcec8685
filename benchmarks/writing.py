"""How fast a segment is written, against plain ``os.write`` of the same bytes, for large and small tensors.

    python benchmarks/writing.py [SCRATCH]

The tensors are made up: bfloat16 of a normal distribution, all different. Large ones are those of a prefill of 128
tokens, small ones those of a decode step of one sequence, both of width 1024. In each round every way runs once;
figures are medians with quartiles. The disk is not waited for in any of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tables

from tracereplay.event import Site, make_rows
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes
from tracereplay.trace.codec import PLANES, RAW

CALLS, WIDTH = 100, 1024
ROUNDS = 9
Steps = list[list[PendingCall]]
Taken = tuple[float, float]  # processor seconds, wall seconds


def steps(rows: int, count: int) -> Steps:
    random, row_map = np.random.default_rng(0), make_rows([(0, 0, i) for i in range(rows)])

    def tensor() -> TensorBytes:
        values = random.standard_normal(rows * WIDTH).astype(np.float32).view(np.uint32)
        return TensorBytes("bfloat16", (rows, WIDTH), (WIDTH, 1), (values >> 16).astype(np.uint16).tobytes())

    return [
        [PendingCall(i, 0, row_map, row_map, {}, {0: tensor()}) for i in range(CALLS)]
        for _ in range(count)
    ]  # fmt: skip


def pieces(made: Steps) -> list[bytes]:
    return [bytes(call.outputs[0].data) for step in made for call in step]


def clocks() -> Taken:
    return time.process_time(), time.perf_counter()


def since(before: Taken) -> Taken:
    now = clocks()
    return now[0] - before[0], now[1] - before[1]


def to_segment(made: Steps, path: Path, codec: int) -> Taken:
    """Of writing all steps; opening and closing are left out."""
    writer = SegmentWriter(path, {}, codec)
    writer.sites([Site(f"model.layers.{i}.mlp", "MLP", i) for i in range(CALLS)])
    before = clocks()
    for number, calls in enumerate(made):
        writer.step(number, calls[0].rows_in, calls, [], [])
    taken = since(before)
    writer.close({})
    return taken


def to_file(blob: bytes, path: Path) -> Taken:
    """Of ``os.write``, 4 MiB at a time."""
    handle, left = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), memoryview(blob)
    before = clocks()
    while left:
        left = left[os.write(handle, left[: 4 << 20]) :]
    taken = since(before)
    os.close(handle)
    return taken


def measure(made: Steps, path: Path) -> list[list[str]]:
    blob = b"".join(pieces(made))
    ways: dict[str, Callable[[], Taken]] = {
        "os.write": lambda: to_file(blob, path),
        "raw": lambda: to_segment(made, path, RAW),
        "planes": lambda: to_segment(made, path, PLANES),
    }
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            seconds = way()
            path.unlink()
            if number:  # the first round touches the memory
                taken[name].append(seconds)
    plain = taken["os.write"]
    tensors = sum(map(len, made))
    return [
        [name, tables.spread([len(blob) / 1e9 / cpu for cpu, _ in rounds]),
         tables.spread([p / cpu for (p, _), (cpu, _) in zip(plain, rounds, strict=True)]),
         tables.spread([p / wall for (_, p), (_, wall) in zip(plain, rounds, strict=True)]),
         tables.spread([1e6 * cpu / tensors for cpu, _ in rounds], digits=1)]
        for name, rounds in taken.items()
    ]  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory(dir=next(iter(sys.argv[1:]), None), prefix="writing-") as scratch:
        for name, rows, count in (("large", 128, 4), ("small", 1, 40)):
            head = [f"{name} tensors, {2 * WIDTH * rows / 1024:.0f} KiB each", "GB a CPU second",
                    "speed, ratio to os.write", "the same, wall time", "us a tensor"]  # fmt: skip
            print(tables.table(head, measure(steps(rows, count), Path(scratch) / "it.seg")), end="\n\n")


if __name__ == "__main__":
    main()
