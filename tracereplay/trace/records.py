"""The records inside frames: each one's ``write`` and ``read``, one under the other.

A tensor is stored as ``[dtype, shape, strides, chunk, offset]``; ``chunk`` counts the segment's DATA frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from tracereplay.errors import DamagedTrace
from tracereplay.event import Call, Layout, Request, RowKey, RowMap, Sampled, Site, Step, Value

__all__ = [
    "ITEMSIZE",
    "Located",
    "nbytes",
    "read_site",
    "read_step",
    "write_call",
    "write_rows",
    "write_site",
    "write_step",
]

Located: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...], int, int]
Loader: TypeAlias = Callable[[int, int, int], bytes]  # chunk, offset, length

ITEMSIZE = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Size of a contiguous tensor in bytes."""
    return ITEMSIZE[dtype] * math.prod(shape)


def write_site(site: Site) -> dict[str, Any]:
    layouts = {k: [v.dim, list(v.parts), list(v.copies)] for k, v in site.layouts.items()}
    return {
        "name": site.name, "operator": site.operator, "slot": site.slot, "inputs": list(site.inputs),
        "layouts": layouts, "config": dict(site.config),
    }  # fmt: skip


def read_site(data: Mapping[str, Any]) -> Site:
    layouts = {k: Layout(d, tuple(parts), tuple(copies)) for k, (d, parts, copies) in data["layouts"].items()}
    return Site(
        data["name"], data["operator"], data["slot"], tuple(data["inputs"]), layouts, data.get("config", {})
    )


def write_rows(rows: RowMap) -> bytes:
    return np.ascontiguousarray(rows, dtype="<i4").tobytes()


def read_rows(data: bytes) -> RowMap:
    return np.frombuffer(data, dtype="<i4").reshape(-1, 3)


def write_sampled(sampled: Sampled) -> list[Any]:
    return [*sampled.key, sampled.token, sampled.choice, sampled.logprob]


def read_sampled(data: list[Any]) -> Sampled:
    request, sequence, position, token, choice, logprob = data
    return Sampled(RowKey(request, sequence, position), token, choice, logprob)


def write_request(request: Request) -> list[Any]:
    return [request.request, request.sequence, list(request.prompt_token_ids), dict(request.sampling)]


def read_request(data: list[Any]) -> Request:
    request, sequence, ids, sampling = data
    return Request(request, sequence, tuple(ids), sampling)


def write_call(
    slot: int, number: int, inputs: list[Located], outputs: list[Located], rows_in: int, rows_out: int,
    written: Mapping[int, Located],
) -> list[Any]:  # fmt: skip
    """``rows_in`` and ``rows_out`` index the step's list of row maps."""
    return [slot, number, inputs, outputs, rows_in, rows_out, sorted(written.items())]


def read_call(data: list[Any], maps: list[RowMap], names: Mapping[int, str], load: Loader) -> Call:
    slot, number, inputs, outputs, rows_in, rows_out, written = data[:7]
    return Call(
        site=names[slot],
        number=number,
        inputs=tuple(_value(v, load) for v in inputs),
        outputs=tuple(_value(v, load) for v in outputs),
        rows_in=maps[rows_in],
        rows_out=maps[rows_out],
        written={index: _value(v, load) for index, v in written},
    )


def _value(located: list[Any], load: Loader) -> Value:
    dtype, shape, strides, chunk, offset = located
    if dtype not in ITEMSIZE or any(type(s) is not int or s < 0 for s in shape):
        raise DamagedTrace(f"A tensor of dtype {dtype!r} and shape {shape!r} cannot be read.")
    length = nbytes(dtype, tuple(shape))
    return Value(dtype, tuple(shape), tuple(strides), lambda: load(chunk, offset, length))


def write_step(
    number: int, maps: list[bytes], calls: list[list[Any]], sampled: list[Sampled], notes: list[str],
    requests: list[Request],
) -> dict[str, Any]:  # fmt: skip
    """The step's own row map is the first of ``maps``."""
    return {
        "number": number,
        "maps": maps,
        "calls": calls,
        "sampled": [write_sampled(s) for s in sampled],
        "notes": notes,
        "requests": [write_request(r) for r in requests],
    }


def read_step(data: Mapping[str, Any], names: Mapping[int, str], load: Loader) -> Step:
    """Raises DamagedTrace if the record has not the parts of a step."""
    try:
        maps = [read_rows(m) for m in data["maps"]]
        return Step(
            number=data["number"],
            rows=maps[0],
            calls=tuple(read_call(c, maps, names, load) for c in data["calls"]),
            sampled=tuple(read_sampled(s) for s in data["sampled"]),
            notes=tuple(data["notes"]),
            requests=tuple(read_request(r) for r in data.get("requests", ())),
        )
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DamagedTrace(f"A step record is not complete: {error!r}.") from error
