"""The records inside frames: each one's ``write`` and ``read``, one under the other.

A step names each of its values once, in a list; its calls name values by their place in that list. What one
operator gives and the next takes is one value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tracereplay.dtypes import DTYPES
from tracereplay.errors import DamagedTrace
from tracereplay.event import Call, Layout, Parameter, Request, RowKey, RowMap, Sampled, Site, Step, Value

__all__ = [
    "CallRecord",
    "Located",
    "located_of",
    "read_site",
    "read_step",
    "write_call",
    "write_rows",
    "write_site",
    "write_step",
]

# What a damaged or hostile record can raise while it is taken apart.
WRONG = (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError)


class Located(NamedTuple):
    """A value and where its bytes lie.

    Args:
        dtype, shape, strides: as the operator saw it; strides in elements.
        storage: number of the memory it lay in, within the step; -1 if not known.
        start: of its first element in that memory, in elements.
        version: how often that memory was seen to be written before, within the step.
        chunk: of the first piece of the stored tensor; -1 for a tensor without elements.
        tensor: its number in the chunk.
        pieces: chunks that it goes on through; each later piece is tensor 0 of the next chunk.
        skip: bytes of the stored tensor before the value's first element.
        strided: whether its elements lie there at its own strides; otherwise one after the other.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: int
    start: int
    version: int
    chunk: int
    tensor: int
    pieces: int
    skip: int
    strided: bool


Loader = Callable[[Located], bytes]
# slot, number, inputs, outputs, rows in, rows out, written: see `write_call`
CallRecord = tuple[int, int, list[int], list[int], int, int, list[tuple[int, int]]]


def write_site(site: Site) -> dict[str, Any]:
    layouts = {k: [v.dim, list(v.parts), list(v.copies)] for k, v in site.layouts.items()}
    parameters = [[p.name, p.dtype, list(p.shape), list(p.tensors)] for p in site.parameters]
    return {
        "name": site.name, "operator": site.operator, "slot": site.slot, "inputs": list(site.inputs),
        "layouts": layouts, "config": dict(site.config), "parameters": parameters,
    }  # fmt: skip


def read_site(data: Mapping[str, Any]) -> Site:
    layouts = {k: Layout(d, tuple(parts), tuple(copies)) for k, (d, parts, copies) in data["layouts"].items()}
    parameters = tuple(
        Parameter(name, dtype, tuple(shape), tuple(tensors))
        for name, dtype, shape, tensors in data.get("parameters", ())
    )
    return Site(
        str(data["name"]), str(data["operator"]), data["slot"], tuple(map(str, data["inputs"])), layouts,
        data.get("config", {}), parameters,
    )  # fmt: skip


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


def read_value(data: list[Any], load: Loader) -> Value:
    dtype, shape, strides, *rest = data
    located = Located(dtype, tuple(shape), tuple(strides), *rest[:8])
    numbers = (*located.shape, *located.strides, located.start, located.version, located.tensor, located.skip)
    if dtype not in DTYPES or len(located.shape) != len(located.strides) or not _whole(numbers):
        raise ValueError(f"a tensor of dtype {dtype!r}, shape {shape!r} and strides {strides!r}")
    return Value(
        dtype, located.shape, located.strides, partial(load, located), located.storage, located.start,
        located.version
    )  # fmt: skip


def located_of(value: Value) -> Located:
    """Where the bytes of a value that `read_value` made lie."""
    assert isinstance(value.load, partial)
    found: Located = value.load.args[0]
    return found


def _whole(numbers: Sequence[Any]) -> bool:
    return all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)


def write_call(
    slot: int, number: int, inputs: list[int], outputs: list[int], rows_in: int, rows_out: int,
    written: Mapping[int, int],
) -> CallRecord:  # fmt: skip
    """Tensors are places in the step's list of values, ``rows_in`` and ``rows_out`` in its list of row maps."""
    return slot, number, inputs, outputs, rows_in, rows_out, sorted(written.items())


def read_call(data: list[Any], maps: list[RowMap], values: list[Value], names: Mapping[int, str]) -> Call:
    slot, number, inputs, outputs, rows_in, rows_out, written = data[:7]
    return Call(
        site=names[slot],
        number=number,
        inputs=tuple([values[v] for v in inputs]),
        outputs=tuple([values[v] for v in outputs]),
        rows_in=maps[rows_in],
        rows_out=maps[rows_out],
        written={index: values[v] for index, v in written},
    )


def write_step(
    number: int, maps: list[bytes], values: Sequence[Located], calls: list[CallRecord], sampled: Sequence[Sampled],
    notes: Sequence[str], requests: Sequence[Request], weights: int,
) -> dict[str, Any]:  # fmt: skip
    """The step's own row map is the first of ``maps``; ``weights`` counts updates of the weights so far."""
    return {
        "number": number,
        "maps": maps,
        "values": values,
        "calls": calls,
        "sampled": [write_sampled(s) for s in sampled],
        "notes": list(notes),
        "requests": [write_request(r) for r in requests],
        "weights": weights,
    }


def read_step(data: Mapping[str, Any], names: Mapping[int, str], load: Loader) -> Step:
    """Raises DamagedTrace if the record has not the parts of a step."""
    try:
        maps = [read_rows(m) for m in data["maps"]]
        values = [read_value(v, load) for v in data["values"]]
        return Step(
            number=int(data["number"]),
            rows=maps[0],
            calls=tuple([read_call(c, maps, values, names) for c in data["calls"]]),
            sampled=tuple([read_sampled(s) for s in data["sampled"]]),
            notes=tuple(map(str, data["notes"])),
            requests=tuple([read_request(r) for r in data["requests"]]),
            weights=int(data["weights"]),
        )
    except WRONG as error:
        raise DamagedTrace(f"A step record cannot be read: {error!r}.") from error
