"""How many bytes a trace is, how fast its writer is, and what reading one call of it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.dtypes import nbytes
from tracereplay.event import Call, Named, Step, Value, flatten
from tracereplay.storage.checkpoint import entries
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes, open_trace
from tracereplay.trace.codec import PLANES, RAW
from tracereplay.trace.frames import HEADER_SIZE

# Operators that fuse several of the checkpoint's, as vLLM names them.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def of_trace(path: Path, model: Path, steps: int | None = None) -> dict[str, int]:
    """Bytes of a trace's first steps, of their inputs and outputs as dumped, and of these with parameters.

    Args:
        path: a recording.
        model: its checkpoint.
        steps: how many; None means all, and the trace as it is.
    """
    weights = parameters(model)
    chosen = all_steps(path)[:steps]
    calls = [call for step in chosen for call in step.calls]
    values = sum(nbytes(v.dtype, v.shape) for call in calls for v in tensors(call))
    carried = sum(weights_of(call.site, weights) for call in calls)
    size = disk(path) if steps is None else up_to(path, steps)
    return {"trace": size, "values": values, "values and parameters": values + carried}


def of_kernels(path: Path, steps: int | None = None) -> dict[str, int]:
    """Bytes of a kernel-level trace's first steps, of every input and output as dumped, and of these with the
    parameters and buffers that each call takes.

    Args:
        path: a recording at kernel level.
        steps: how many; None means all, and the trace as it is.
    """
    values = named = calls = 0
    for step in all_steps(path)[:steps]:
        for kernel in step.kernels:
            calls += 1
            for argument in flatten((*kernel.given, *kernel.outputs)):
                if isinstance(argument, Named):
                    named += nbytes(argument.dtype, argument.shape)
                elif isinstance(argument, Value):
                    values += nbytes(argument.dtype, argument.shape)
            values += sum(nbytes(v.dtype, v.shape) for v in kernel.written.values())
    size = disk(path) if steps is None else up_to(path, steps)
    return {"calls": calls, "trace": size, "values": values, "values and parameters": values + named}


def up_to(path: Path, steps: int) -> int:
    """Bytes of a recording up to the end of its first steps, without an index."""
    segment = open_trace(path).segment("record")
    _, offset, length = segment.index.steps[steps - 1]
    return offset + HEADER_SIZE + length + disk(path) - segment.file.size


def disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def all_steps(path: Path) -> list[Step]:
    """The steps of a recording; its file stays open, since tensors are read when asked for."""
    return open_trace(path).steps("record")


def tensors(call: Call) -> tuple[Value, ...]:
    return (*call.inputs, *call.outputs, *call.written.values())


def parameters(model: Path) -> dict[str, int]:
    """Bytes of the checkpoint's tensors by the module they belong to."""
    found: dict[str, int] = {}
    for file in model.glob("*.safetensors"):
        for name, _, entry in entries(file):
            start, end = entry["data_offsets"]
            module = name.rpartition(".")[0]
            found[module] = found.get(module, 0) + end - start
    return found


def weights_of(site: str, weights: Mapping[str, int]) -> int:
    """What a dump of this operator's call would write besides its inputs and outputs."""
    if site == "logits_processor":
        return weights.get("lm_head", weights.get("model.embed_tokens", 0))
    parent, _, last = site.rpartition(".")
    return sum(weights.get(f"{parent}.{name}", 0) for name in FUSED.get(last, (last,)))


# -- writing ------------------------------------------------------------------------------------------------


def write_speed(path: Path, scratch: Path, repetitions: int = 3) -> dict[str, Any]:
    """The trace's own tensors written again, by the trace's writer and by ``os.write``; the best of three.

    Returns:
        ``bytes`` given to the writer and ``unique`` bytes among them; for each way, wall and processor seconds.
    """
    given = [[_pending(call) for call in step.calls] for step in all_steps(path)]
    originals = all_steps(path)
    everything = [t for calls in given for call in calls for t in _given(call)]
    unique = {t.data for t in everything}
    found: dict[str, Any] = {"bytes": sum(len(t.data) for t in everything), "unique": sum(map(len, unique))}
    blob = b"".join(unique)
    for name, write in (
        ("codec", lambda to: _write(to, originals, given, PLANES)),
        ("no codec", lambda to: _write(to, originals, given, RAW)),
        ("os.write", lambda to: _plain(to, blob)),
    ):
        taken = [_timed(write, scratch / "written") for _ in range(repetitions)]
        found[name] = {"wall": min(t[0] for t in taken), "cpu": min(t[1] for t in taken), "disk": taken[0][2]}
    return found


def _pending(call: Call) -> PendingCall:
    inputs, outputs = (dict(enumerate(map(_loaded, side))) for side in (call.inputs, call.outputs))
    written = {i: _loaded(v) for i, v in call.written.items()}
    slot = slot_of(call.site)
    return PendingCall(slot, call.number, call.rows_in, call.rows_out, inputs, outputs, written)


def slot_of(site: str) -> int:
    """A number as wide as the real slots (whose module needs torch)."""
    return xxhash.xxh3_64_intdigest(site.encode()) >> 16


def _loaded(value: Value) -> TensorBytes:
    return TensorBytes(value.dtype, value.shape, value.strides, bytes(value.load()))


def _given(call: PendingCall) -> Iterator[TensorBytes]:
    for side in (call.inputs, call.outputs, call.written):
        yield from side.values()


def _write(to: Path, originals: list[Step], given: list[list[PendingCall]], codec: int) -> None:
    writer = SegmentWriter(to, {}, codec)
    for step, calls in zip(originals, given, strict=True):
        writer.step(step.number, step.rows, calls, list(step.sampled), list(step.notes))
    writer.close({})


def _plain(to: Path, blob: bytes) -> None:
    handle = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    data = memoryview(blob)
    while data:
        data = data[os.write(handle, data[: 4 << 20]) :]
    os.close(handle)


def _timed(write: Any, to: Path) -> tuple[float, float, int]:
    wall, cpu = time.perf_counter(), time.process_time()
    write(to)
    taken = time.perf_counter() - wall, time.process_time() - cpu, to.stat().st_size
    to.unlink()
    return taken


# -- opening ------------------------------------------------------------------------------------------------


def opening(path: Path) -> dict[str, Any]:
    """Opens the trace, reads the tensors of the middle call of the middle step, and closes it; files are warm."""
    before, started = bytes_read(), time.perf_counter()
    trace = open_trace(path)
    segment = trace.segment(trace.passes[0])
    opened = time.perf_counter()
    calls = segment.step(len(segment) // 2).calls
    call = calls[len(calls) // 2]
    size = sum(len(v.load()) for v in tensors(call))
    read = time.perf_counter()
    trace.close()
    return {
        "trace": disk(path), "open seconds": opened - started, "read seconds": read - opened, "call": call.site,
        "call bytes": size, "bytes read": bytes_read() - before,
    }  # fmt: skip


def bytes_read() -> int:
    """What this process has read so far through system calls (Linux)."""
    return int(Path("/proc/self/io").read_text().split("rchar: ", 1)[1].split("\n", 1)[0])
