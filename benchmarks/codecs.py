"""The engine's side of `trace.py`: codecs and dumps side by side, in one process, on one trace's tensors.

    python codecs.py TRACE DUMPER SCRATCH ROUNDS [GOLDEN]        prints JSON

DUMPER is SGLang's ``dumper.py``. With GOLDEN, of which TRACE is a replay, only differences from it are measured.
Runs under an engine's interpreter, since it needs torch and safetensors.

Each round runs every method once, one after the other; what is reported are all rounds. Seconds are of the
processor, this process's alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import zstandard

from tracereplay.dtypes import nbytes
from tracereplay.event import Call, Step
from tracereplay.trace import CallOfStep, SegmentWriter, TensorBytes, open_trace
from tracereplay.trace.chunk import ChunkBuilder
from tracereplay.trace.codec import PLANES, RAW, ROWS, STRONG, Encoder, decode_chunk
from tracereplay.trace.difference import difference

Bytes = bytes | bytearray | memoryview


class Tensor(NamedTuple):
    """One output of one call."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Pair(NamedTuple):
    """Rows of the candidate, and the same rows of the golden trace."""

    dtype: str
    shape: tuple[int, ...]
    value: bytes
    golden: bytes


class Chunk(NamedTuple):
    """What the writer gives to a codec: the chunk's beginning and its region of words."""

    start: bytes
    width: int
    data: bytearray


SLOW = 8  # chunks that the strong codec gets: it takes a second for each
Steps = list[list[Tensor]]
Run = tuple[float, float, int]  # seconds to store, seconds to read, bytes stored


def read_steps(path: str) -> list[Step]:
    trace = open_trace(path)
    return list(trace.steps(trace.passes[0]))


def outputs(steps: Iterable[Step]) -> Steps:
    """Every output of every call, as a dump of module outputs would have it."""
    return [[Tensor(f"{call.site}.{call.number}.{i}", value.dtype, value.shape, bytes(value.load()))
             for call in step.calls for i, value in enumerate(call.outputs)] for step in steps]  # fmt: skip


def chunked(tensors: Iterable[tuple[str, tuple[int, ...], Bytes]]) -> list[Chunk]:
    """Tensors of one width in chunks of a megabyte, as the writer fills them."""
    found, builder = [], ChunkBuilder()
    for dtype, shape, data in tensors:
        builder.add(dtype, shape, memoryview(data))
        if builder.size >= 1 << 20:
            found.append(_taken(builder))
    return [*found, _taken(builder)] if len(builder) else found


def _taken(builder: ChunkBuilder) -> Chunk:
    start, [(width, data)] = builder.take()
    return Chunk(start, width, data)


def clocked(run: Callable[[], Any]) -> tuple[float, Any]:
    before = time.process_time()
    result = run()
    return time.process_time() - before, result


# -- codecs, in memory --------------------------------------------------------------------------------------


def by_encoder(codec: int, level: int = 19) -> Callable[[list[Chunk]], Run]:
    """One of this project's codecs."""

    def run(chunks: list[Chunk]) -> Run:
        encoder = Encoder(codec, level)
        taken, stored = clocked(lambda: [b"".join(encoder.encode(c.start, [(c.width, c.data)])) for c in chunks])
        sizes = [len(c.start) + len(c.data) for c in chunks]
        read, found = clocked(
            lambda: [decode_chunk(s, codec, n, "it") for s, n in zip(stored, sizes, strict=True)]
        )
        assert all(f[0][len(c.start) :] == c.data for f, c in zip(found, chunks, strict=True))
        return taken, read, sum(map(len, stored))

    return run


def by_zstandard(level: int) -> Callable[[list[Chunk]], Run]:
    def run(chunks: list[Chunk]) -> Run:
        pack, unpack = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        taken, stored = clocked(lambda: [pack.compress(c.data) for c in chunks])
        read, _ = clocked(lambda: [unpack.decompress(s) for s in stored])
        return taken, read, sum(map(len, stored))

    return run


def as_tensors(chunks: list[Chunk]) -> list[torch.Tensor]:
    return [torch.frombuffer(c.data, dtype=torch.uint8) for c in chunks]


def by_torch(chunks: list[Chunk]) -> Run:
    def save(tensor: torch.Tensor) -> io.BytesIO:
        file = io.BytesIO()
        torch.save(tensor, file)
        file.seek(0)
        return file

    taken, stored = clocked(lambda: [save(t) for t in as_tensors(chunks)])
    read, _ = clocked(lambda: [torch.load(file, weights_only=True) for file in stored])
    return taken, read, sum(file.getbuffer().nbytes for file in stored)


def by_safetensors(chunks: list[Chunk]) -> Run:
    taken, stored = clocked(lambda: [safetensors.torch.save({"0": t}) for t in as_tensors(chunks)])
    read, _ = clocked(lambda: [safetensors.torch.load(data) for data in stored])
    return taken, read, sum(map(len, stored))


CODECS: dict[str, Callable[[list[Chunk]], Run]] = {
    "raw": by_encoder(RAW),
    "planes": by_encoder(PLANES),
    "zstandard 1": by_zstandard(1),
    "zstandard 3": by_zstandard(3),
    "torch.save": by_torch,
    "safetensors.save": by_safetensors,
}


def by_difference(pairs: list[Pair]) -> dict[str, Callable[[], Run]]:
    """The candidate's rows as they are, and as differences from golden ones; both are laid into chunks."""

    def run(encoder: Encoder, of: Callable[[str, bytes, bytes], Bytes]) -> Run:
        def encode() -> list[bytes]:
            laid = chunked((p.dtype, p.shape, of(p.dtype, p.value, p.golden)) for p in pairs)
            return [b"".join(encoder.encode(c.start, [(c.width, c.data)])) for c in laid]

        taken, stored = clocked(encode)
        return taken, float("nan"), sum(map(len, stored))

    return {
        "planes": lambda: run(Encoder(PLANES), lambda dtype, value, golden: value),
        "delta": lambda: run(Encoder(ROWS), lambda dtype, value, golden: difference(value, golden, dtype).data),
    }


def paired(steps: list[Step], golden: list[Step]) -> list[Pair]:
    """Of each output, the rows that golden has too. Engines schedule differently: calls seldom pair as a whole."""
    known = {place: row for step in golden for call in step.calls for place, row in _rows(call)}
    found = []
    for call in (call for step in steps for call in step.calls):
        by_output: dict[int, list[tuple[bytes, bytes]]] = {}
        for place, row in _rows(call):
            if place in known and len(known[place]) == len(row):
                by_output.setdefault(place[2], []).append((row, known[place]))
        for output, rows in by_output.items():
            shape = (len(rows), *call.outputs[output].shape[1:])
            mine, theirs = (b"".join(side) for side in zip(*rows, strict=True))
            found.append(Pair(call.outputs[output].dtype, shape, mine, theirs))
    return found


def _rows(call: Call) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    """Each row of each bfloat16 output, with what it belongs to."""
    keys = [tuple(key) for key in call.rows_out.tolist()]
    for output, value in enumerate(call.outputs):
        if value.dtype == "bfloat16" and value.shape[:1] == (len(keys),):
            data, size = bytes(value.load()), nbytes(value.dtype, value.shape[1:])
            for i, key in enumerate(keys):
                yield (call.site, call.number, output, key), data[i * size : (i + 1) * size]


# -- module outputs, to files -------------------------------------------------------------------------------


def to_trace(codec: int) -> Callable[[Steps, list[Step], Path], None]:
    def run(tensors: Steps, steps: list[Step], scratch: Path) -> None:
        writer = SegmentWriter(scratch / "record-rank0.seg", {}, codec)
        for step, found in zip(steps, tensors, strict=True):
            places = iter([writer.add(TensorBytes(t.dtype, t.shape, _strides(t.shape), t.data)) for t in found])
            calls = [CallOfStep(hash(c.site) & (1 << 48) - 1, c.number, c.rows_in, c.rows_out, {},
                                {i: next(places) for i in range(len(c.outputs))}, {})
                     for c in step.calls]  # fmt: skip
            writer.commit(step.number, step.rows, calls, list(step.sampled), [])
        writer.close({})

    return run


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, size = [], 1
    for n in reversed(shape):
        strides.append(size)
        size *= n
    return tuple(reversed(strides))


def torched(tensors: Steps) -> list[dict[str, torch.Tensor]]:
    """Made once, outside the clock: the engine has them as tensors."""
    return [{t.name: torch.frombuffer(bytearray(t.data), dtype=getattr(torch, t.dtype)).view(t.shape)
             for t in step if t.data} for step in tensors]  # fmt: skip


def to_torch(steps: list[dict[str, torch.Tensor]], scratch: Path) -> None:
    """One file a tensor."""
    for number, step in enumerate(steps):
        for name, tensor in step.items():
            torch.save(tensor, scratch / f"{number}.{name}.pt")


def to_safetensors(steps: list[dict[str, torch.Tensor]], scratch: Path) -> None:
    """One file a step."""
    for number, step in enumerate(steps):
        safetensors.torch.save_file(step, scratch / f"{number}.safetensors")


def to_sglang(dumper: Any) -> Callable[[list[dict[str, torch.Tensor]], Path], None]:
    """SGLang's dumper: one file a tensor, with what it says of the run."""

    def run(steps: list[dict[str, torch.Tensor]], scratch: Path) -> None:
        config = dumper.DumperConfig(enable=True, dir=str(scratch), enable_output_console=False, exp_name="it")
        it = dumper._Dumper(config=config)
        with contextlib.redirect_stdout(io.StringIO()):
            for step in steps:
                for name, tensor in step.items():
                    it.dump(name, tensor)
                it.step()

    return run


def load_dumper(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("sglang_dumper", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sglang_dumper"] = module
    spec.loader.exec_module(module)
    return module


def to_disk(run: Callable[[Path], None], scratch: Path) -> dict[str, float]:
    """Runs it in an empty directory; seconds and bytes. The disk's own time is not waited for."""
    scratch.mkdir()
    wall = time.perf_counter()
    cpu, _ = clocked(lambda: run(scratch))
    wall = time.perf_counter() - wall
    files = [file for file in scratch.rglob("*") if file.is_file()]
    found = {"wall": wall, "cpu": cpu, "bytes": sum(f.stat().st_size for f in files), "files": len(files)}
    shutil.rmtree(scratch)
    return found


def differences(path: str, golden: str, rounds: int) -> dict[str, Any]:
    """Of each pass of a replay, the rows of its outputs that the golden trace has too."""
    trace, found = open_trace(path), {}
    known = read_steps(golden)
    for name in trace.passes:
        pairs = paired(list(trace.steps(name)), known)
        ways = by_difference(pairs)
        taken: dict[str, list[Run]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                taken[way].append(run())
        found[name] = {"bytes": sum(len(p.value) for p in pairs), "ways": taken}
    return found


def side_by_side(path: str, dumper: str, scratch: Path, rounds: int) -> dict[str, Any]:
    """Every codec on the different float outputs of a recording, and every dump of all its outputs."""
    steps = read_steps(path)
    tensors = outputs(steps)
    floats = [t for step in tensors for t in step if t.dtype.startswith(("float", "bfloat")) and t.data]
    unique = {t.data: t for t in floats if t.dtype == floats[0].dtype}
    chunks = chunked((t.dtype, t.shape, t.data) for t in unique.values())
    result: dict[str, Any] = {"dtype": floats[0].dtype, "chunk bytes": sum(len(c.data) for c in chunks)}
    result["output bytes"] = sum(len(t.data) for step in tensors for t in step)
    ways = dumps(steps, tensors, dumper)
    result["codecs"], result["dumps"] = {n: [] for n in CODECS}, {n: [] for n in ways}
    for _ in range(rounds):
        for name, codec in CODECS.items():
            result["codecs"][name].append(codec(chunks))
        for name, way in ways.items():
            result["dumps"][name].append(to_disk(way, scratch / "dump"))
    result["strong bytes"] = sum(len(c.data) for c in chunks[:SLOW])
    result["strong"] = [by_encoder(STRONG)(chunks[:SLOW]) for _ in range(2)]
    return result


def dumps(steps: list[Step], tensors: Steps, dumper: str) -> dict[str, Callable[[Path], None]]:
    as_torch = torched(tensors)
    sglang = to_sglang(load_dumper(dumper))
    return {
        "trace": lambda to: to_trace(PLANES)(tensors, steps, to),
        "trace, no codec": lambda to: to_trace(RAW)(tensors, steps, to),
        "torch.save": lambda to: to_torch(as_torch, to),
        "safetensors.save_file": lambda to: to_safetensors(as_torch, to),
        "SGLang's dumper": lambda to: sglang(as_torch, to),
    }


def main() -> None:
    path, dumper, scratch, rounds = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    golden = sys.argv[5:]
    found = differences(path, golden[0], rounds) if golden else side_by_side(path, dumper, scratch, rounds)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
