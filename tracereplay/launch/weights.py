"""The checkpoint's tensors in a trace, where requested: usually a trace names them by digest only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.errors import WorkloadError
from tracereplay.event import make_rows
from tracereplay.storage.checkpoint import entries
from tracereplay.trace import (
    WEIGHTS,
    CallOfStep,
    SegmentWriter,
    TensorBytes,
    TraceDirectory,
    segment_path,
    weight_site,
)
from tracereplay.trace.chunk import DTYPE_NAMES

__all__ = ["store_weights"]


def store_weights(model: Path, directory: TraceDirectory, recipients: Sequence[str] = ()) -> None:
    """Copies all tensors of a checkpoint into the trace, as the pass `trace.WEIGHTS` with a step for each.

    Args:
        model: directory of the checkpoint.
        directory: the trace being made.
        recipients: see `SegmentWriter`.

    Raises:
        WorkloadError: a tensor has a dtype that traces do not support.
        OSError: it cannot be written.
    """
    writer = SegmentWriter(segment_path(directory.path, WEIGHTS, 0), {"model": str(model)}, recipients=recipients)
    none = make_rows([])
    found = [(path, *entry) for path in sorted(model.glob("*.safetensors")) for entry in entries(path)]
    sites = {name: weight_site(name) for _, name, _, _ in found}
    writer.sites(sites.values())
    for number, (path, name, base, entry) in enumerate(sorted(found, key=lambda f: f[1])):
        tensor = _read(path, name, base, entry)
        call = CallOfStep(sites[name].slot, 0, none, none, {}, {0: writer.add(tensor)}, {})
        writer.commit(number, none, [call], [], [])
    writer.close({})


def _read(path: Path, name: str, base: int, entry: Mapping[str, Any]) -> TensorBytes:
    dtype = DTYPE_NAMES.get(entry["dtype"])
    if dtype is None:
        raise WorkloadError(f"{name} of {path} has the dtype {entry['dtype']!r}, which a trace cannot store.")
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    with path.open("rb") as file:
        file.seek(base + start)
        data = file.read(end - start)
    strides: list[int] = []
    width = 1
    for size in reversed(shape):
        strides.append(width)
        width *= size
    return TensorBytes(dtype, shape, tuple(reversed(strides)), data)
