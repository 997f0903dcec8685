"""How small and how fast the trace file is, beside other ways to keep the same tensors, in one process a part.

    python benchmarks/trace.py                 codecs, torch.save and SGLang's dumper, one call of a large trace
    python benchmarks/trace.py --sglang sglang-0.5.12-py3-none-any.whl

Activations are those of the trained tiny model in bfloat16, float16 and float32 under a real engine, recorded
here: all different tensors of a prefill of eight prompts and some decode steps. Rounds of all ways alternate;
figures are medians with quartiles, megabytes of tensors a second of processor time.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from tables import table

from tracereplay.dtypes import itemsize
from tracereplay.environments.registry import load_engine
from tracereplay.event import Site, make_rows
from tracereplay.launch import jobs
from tracereplay.launch.process import guest_environment
from tracereplay.trace import CallOfStep, SegmentWriter, TensorBytes, TraceDirectory, open_trace, segment_path
from tracereplay.trace.chunk import ChunkBuilder
from tracereplay.trace.codec import PLANES, RAW, STRONG, Encoder, decode_chunk, difference
from tracereplay.trace.verify import values_of
from tracereplay.workload import Prompt, Workload

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "fixtures" / "tiny-llama"
SETTINGS = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8}
Tensors = list[tuple[str, tuple[int, ...], bytes]]
Way = tuple[
    Callable[[], Any], Callable[[Any], Any], Callable[[Any], int]
]  # encode, decode, size of what was encoded


def activations(engine: str, dtype: str, scratch: Path) -> Tensors:
    """All different float tensors of a recording of the tiny model."""
    text = (TINY.parent / "README.md").read_text()
    sampling = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    prompts = [Prompt(tuple(text.encode()[i * 300 : i * 300 + 300]), None, sampling) for i in range(8)]
    work = Workload(str(TINY), tuple(prompts), {**SETTINGS, "dtype": dtype})
    path = jobs.record(load_engine(engine), work, scratch / f"{dtype}.trace")
    found: dict[bytes, tuple[str, tuple[int, ...], bytes]] = {}
    for step in open_trace(path):
        for value in values_of(step):
            if value.dtype == dtype and 0 not in value.shape:
                data = value.load()
                found.setdefault(xxhash.xxh3_128_digest(data), (value.dtype, value.shape, data))
    return list(found.values())


def chunks(tensors: Tensors) -> list[tuple[bytes, list[tuple[int, bytearray]]]]:
    """The tensors in chunks, as the writer lays them."""
    builder, found = ChunkBuilder(), []
    for dtype, shape, data in tensors:
        builder.add(dtype, shape, data)
        if builder.size >= 1 << 20:
            found.append(builder.take())
    return [*found, builder.take()] if len(builder) else found


def ours(tensors: Tensors, codec: int) -> Way:
    laid = chunks(tensors)
    encoder = Encoder(codec)

    def encode() -> list[tuple[bytes, int]]:
        return [
            (b"".join(encoder.encode(start, buffers)), len(start) + sum(len(b) for _, b in buffers))
            for start, buffers in laid
        ]

    def decode(stored: list[tuple[bytes, int]]) -> None:
        for data, size in stored:
            decode_chunk(data, codec, size, "benchmark")

    return encode, decode, lambda stored: sum(len(data) for data, _ in stored)


def plain_zstandard(tensors: Tensors, level: int) -> Way:
    blocks = [start + b"".join(bytes(data) for _, data in buffers) for start, buffers in chunks(tensors)]
    pack, unpack = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return (
        lambda: [pack.compress(block) for block in blocks],
        lambda stored: [unpack.decompress(data) for data in stored],
        lambda stored: sum(map(len, stored)),
    )


def differences(tensors: Tensors, share: float) -> Way:
    """As the difference from a base in which one of ``1 / share`` elements is a unit in the last place away."""
    random = np.random.default_rng(0)
    laid = []
    for dtype, shape, data in tensors:
        word = itemsize(dtype)
        bits = np.frombuffer(data, f"<u{word}")
        base = np.where(random.random(len(bits)) < share, bits ^ 1, bits).astype(bits.dtype).tobytes()
        laid.append((dtype, shape, data, base))
    encoder = Encoder(PLANES)

    def encode() -> list[bytes]:
        builder = ChunkBuilder()
        found = []
        for dtype, shape, data, base in laid:
            builder.add(dtype, shape, difference(data, base, dtype).data)
            if builder.size >= 1 << 20:
                found.append(b"".join(encoder.encode(*builder.take())))
        return [*found, b"".join(encoder.encode(*builder.take()))]

    return encode, lambda stored: None, lambda stored: sum(map(len, stored))


def measure(ways: Mapping[str, Way], size: int, rounds: int) -> list[list[str]]:
    """A row a way: ratio, and MB of tensors a second of processor time, encoding and decoding."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    ratio = {}
    for _ in range(rounds):
        for name, (encode, decode, size_of) in ways.items():
            begun = time.process_time()
            stored = encode()
            encoded = time.process_time()
            decode(stored)
            taken[name].append((encoded - begun, time.process_time() - encoded))
            ratio[name] = size / size_of(stored)
    return [
        [name, f"{ratio[name]:.2f}", *(speed(size, [t[i] for t in taken[name]]) for i in range(2))]
        for name in ways
    ]


def ways_of(tensors: Tensors) -> dict[str, Way]:
    return {
        "raw": ours(tensors, RAW),
        "planes (default)": ours(tensors, PLANES),
        "strong": ours(tensors, STRONG),
        "difference, 1 of 10 differs": differences(tensors, 0.1),
        "zstandard -1": plain_zstandard(tensors, 1),
        "zstandard -3": plain_zstandard(tensors, 3),
    }


def speed(size: int, seconds: Sequence[float]) -> str:
    if max(seconds) < 1e-5:
        return "-"
    low, middle, high = np.percentile([size / s / 1e6 for s in seconds if s > 0] or [np.inf], [25, 50, 75])
    return f"{middle:.0f} ({low:.0f}-{high:.0f})"


# -- beside torch ---------------------------------------------------------------------------------------------


def beside_torch(engine: str, tensors: Tensors, sglang: Path | None, rounds: int) -> dict[str, Any]:
    """What `torch_ways.py` measures under the engine's interpreter, on the same tensors."""
    found = load_engine(engine)
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder) / "tensors", "wb") as file:
            for dtype, shape, data in tensors:
                file.write(json.dumps([dtype, shape, len(data)]).encode() + b"\n" + data)
        command = [found.python, HERE / "torch_ways.py", folder, str(rounds), str(sglang or "")]
        done = subprocess.run(command, env=guest_environment(found), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# -- one call of a large trace ----------------------------------------------------------------------------------


def large(scratch: Path, size: int) -> list[list[str]]:
    """A synthetic trace of ``size`` bytes: one call of it, and all of it."""
    random = np.random.default_rng(0)
    directory = TraceDirectory(scratch / "large.trace", {"workload": {"prompts": []}})
    writer = SegmentWriter(segment_path(directory.path, "record", 0), {}, RAW)
    names = [f"model.layers.{i}.mlp.down_proj" for i in range(64)]
    writer.sites([Site(name, "Linear", i) for i, name in enumerate(names)])
    number = 0
    while writer.size < size:
        rows = make_rows([(0, 0, number)])
        calls = []
        for slot in range(64):
            data = random.bytes(64 << 10)
            place = writer.add(TensorBytes("bfloat16", (1, 32 << 10), (32 << 10, 1), data))
            calls.append(CallOfStep(slot, 0, rows, rows, {0: place}, {}, {}))
        writer.commit(number, rows, calls, [], [])
        number += 1
    writer.close({})
    directory.complete()
    return [_opened("one call", directory.path, number // 2), _opened("all of it", directory.path, None)]


def _opened(name: str, path: Path, step: int | None) -> list[str]:
    segment = next(path.glob("*.seg"))
    fd = os.open(segment, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the disk's time counts, not the page cache's
    os.close(fd)
    before, begun = _bytes_read(), time.perf_counter()
    reader = open_trace(path).segment("record")
    if step is not None:
        size = len(reader.step(step).calls[32].inputs[0].load())
    else:
        size = sum(len(v.load()) for s in reader.steps() for v in values_of(s))
    seconds = time.perf_counter() - begun
    return [
        name,
        f"{size / 1e6:,.2f} MB",
        f"{(_bytes_read() - before) / 1e6:,.2f} MB",
        f"{1000 * seconds:,.1f} ms",
    ]


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ", 1)[1].split("\n", 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--engine", default="v1")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sglang", type=Path, help="SGLang's wheel, for its dumper")
    parser.add_argument("--large", type=int, default=2 << 30, help="bytes of the large trace")
    given = parser.parse_args()
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("bfloat16", "float16", "float32"):
            tensors = activations(given.engine, dtype, Path(folder))
            size = sum(len(data) for _, _, data in tensors)
            rows = measure(ways_of(tensors), size, given.rounds)
            torch = beside_torch(given.engine, tensors, given.sglang, given.rounds)
            rows += [[name, f"{t['ratio']:.2f}", *(speed(size, t[k]) for k in ("encode", "decode"))]
                     for name, t in torch.items()]  # fmt: skip
            head = [f"{dtype}, {len(tensors)} tensors, {size / 1e6:.1f} MB", "ratio", "encode MB/s", "decode MB/s"]
            out.write(table(head, rows) + "\n\n")
        rows = large(Path(folder), given.large)
        out.write(
            table([f"a trace of {given.large / 1e9:.1f} GB", "tensors", "bytes read", "seconds"], rows) + "\n"
        )
    sys.stdout.write(out.getvalue())


if __name__ == "__main__":
    main()
