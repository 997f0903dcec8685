"""Traces of kernels, built by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracereplay.event import RowMap, Site, make_rows
from tracereplay.trace import (
    CallOfStep,
    SegmentWriter,
    TensorBytes,
    Trace,
    TraceDirectory,
    open_trace,
    segment_path,
)

SITE = Site("model.norm", "RMSNorm", 7)
ROWS = make_rows([(0, 0, 0), (0, 0, 1)])


def tensor(array: Any, dtype: str | None = None, storage: int = -1) -> TensorBytes:
    """``array`` row-major; a dtype other than numpy's own is that of its bits."""
    array = np.ascontiguousarray(array)
    strides = tuple(s // array.itemsize for s in array.strides)
    return TensorBytes(dtype or array.dtype.name, array.shape, strides, array.tobytes(), storage)


def call(name: str, outputs: Sequence[Any] = (), *, written: Mapping[int, Any] | None = None, failed: str = "",
         arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None, number: int = 0,
         parent: int = -1) -> dict[str, Any]:  # fmt: skip
    """A kernel whose arguments and results are `TensorBytes` or as they stand in a record.

    It ran inside the operator's call of this number, and inside the kernel at the place ``parent``.
    """
    return {"name": name, "outputs": outputs, "written": written or {}, "failed": failed,
            "arguments": arguments, "keywords": keywords or {}, "number": number, "parent": parent}  # fmt: skip


def write_pass(
    directory: TraceDirectory, name: str, *steps: Sequence[Mapping[str, Any]], rows: RowMap = ROWS,
    calls: bool = True, schema: Callable[[str], str] = lambda name: "x::y() -> ()",
) -> None:  # fmt: skip
    """Writes a pass of rank 0 with these kernels, all inside the step's only call of one operator.

    If ``calls``, that call is there too: it takes what the first kernel takes and gives what the last one gives.
    """
    writer = SegmentWriter(segment_path(directory.path, name, 0), {"rank": 0, "world": 1})
    writer.sites([SITE])

    def argument(value: Any) -> Any:
        return ["t", writer.add(value)] if isinstance(value, TensorBytes) else value

    for number, kernels_of_step in enumerate(steps):
        names = list(dict.fromkeys(c["name"] for c in kernels_of_step))
        records = [
            [names.index(c["name"]), SITE.slot, c["number"], c["parent"], [*map(argument, c["arguments"])],
             {name: argument(value) for name, value in c["keywords"].items()}, [*map(argument, c["outputs"])],
             [[i, writer.add(v)] for i, v in c["written"].items()], [], c["failed"]]
            for c in kernels_of_step
        ]  # fmt: skip
        kernels = {"names": [[name, schema(name)] for name in names], "calls": records, "constants": []}
        took, gave = (_first_tensor(records[at][part]) if records else {} for at, part in ((0, 4), (-1, 6)))
        call = CallOfStep(SITE.slot, 0, rows, rows, took, gave, {})
        writer.commit(number, rows, [call] if calls else [], [], [], kernels=kernels)
    writer.close({})
    directory.add_pass(name, {"requests": []})


def _first_tensor(arguments: Sequence[Any]) -> dict[int, int]:
    return next(({0: a[1]} for a in arguments if isinstance(a, list) and a[0] == "t"), {})


def write_golden(path: Path, *steps: Sequence[Mapping[str, Any]]) -> Trace:
    directory = TraceDirectory(path, {"level": "kernel", "engine": {"versions": {"torch": "1"}}})
    write_pass(directory, "record", *steps)
    directory.complete()
    return open_trace(path)


def write_isolated(path: Path, golden: Trace, *steps: Sequence[Mapping[str, Any]]) -> Trace:
    run = {"level": "kernel", "golden": golden.digest(), "engine": {"versions": {"torch": "2"}}}
    directory = TraceDirectory(path, run)
    write_pass(directory, "isolated", *steps, calls=False)
    directory.complete()
    return open_trace(path)
