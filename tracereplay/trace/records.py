"""The records in frames: each one's ``write`` and ``read``, one under the other.

A step names each of its values once, in a list; its calls name values by their place in that list. What one
operator gives and the next takes is one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tracereplay.census import Census, Counted, Unowned
from tracereplay.dtypes import DTYPES
from tracereplay.errors import DamagedTrace
from tracereplay.event import Call, Layout, Parameter, Request, RowKey, RowMap, Sampled, Site, Step, Value
from tracereplay.trace.chunk import MAX_DIMENSIONS
from tracereplay.trace.kernels import Check, Kernels
from tracereplay.trace.plain import as_place, as_text

__all__ = [
    "WRONG",
    "CallRecord",
    "Located",
    "check_located",
    "located_of",
    "read_site",
    "read_step",
    "too_deep",
    "write_call",
    "write_census",
    "write_rows",
    "write_site",
    "write_step",
]

# What a damaged or hostile record can raise while it is taken apart.
WRONG = (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)
MAX_DEPTH = 64  # of what a site or a request says of itself
MAX_ID = 1024  # characters of a request's id


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


NO_KERNELS: Mapping[str, Any] = {"names": [], "calls": []}
Loader = Callable[[Located], bytes]
# slot, number, inputs, outputs, rows in, rows out, written, and fed where anything is: see `write_call`
CallRecord = tuple[Any, ...]


def write_site(site: Site) -> dict[str, Any]:
    layouts = {k: [v.dim, list(v.parts), list(v.copies)] for k, v in site.layouts.items()}
    parameters = [[p.name, p.dtype, list(p.shape), list(p.tensors)] for p in site.parameters]
    return {
        "name": site.name, "operator": site.operator, "slot": site.slot, "inputs": list(site.inputs),
        "layouts": layouts, "config": dict(site.config), "parameters": parameters,
        **({"role": site.role} if site.role else {}),
        **({"formula": site.formula} if site.formula else {}),
    }  # fmt: skip


def read_site(data: Mapping[str, Any]) -> Site:
    layouts = {as_text(k): _layout(*v) for k, v in data["layouts"].items()}
    parameters = tuple(
        Parameter(as_text(name), as_text(dtype), tuple(map(_number, shape)), tuple(map(as_text, tensors)))
        for name, dtype, shape, tensors in data.get("parameters", ())
    )
    return Site(
        as_text(data["name"]), as_text(data["operator"]), _number(data["slot"]),
        tuple(map(as_text, data["inputs"])), layouts, _plain(data.get("config", {})), parameters,
        as_text(data.get("role", "")), None if data.get("formula") is None else as_text(data["formula"]),
    )  # fmt: skip


def _layout(dim: Any, parts: list[Any], copies: list[Any]) -> Layout:
    found = Layout(_number(dim), tuple(map(_number, parts)), tuple(map(_number, copies)))
    if (
        not found.parts
        or len(found.parts) != len(found.copies)
        or not all(0 < n < 1 << 31 for n in (*found.parts, *found.copies))
    ):
        raise ValueError("a layout whose parts and copies do not fit together")
    return found


def _number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{type(value).__name__} where a whole number belongs")
    return value


def _token(value: Any) -> int:
    if type(value) is not int or not -1 <= value < 1 << 62:
        raise ValueError("something else where a token belongs")
    return value


def _plain(value: Any) -> dict[str, Any]:
    """A map from texts to plain data that is not nested deeply."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value) or too_deep(value, MAX_DEPTH):
        raise ValueError("something else where a map of plain data belongs")
    return value


def too_deep(value: Any, most: int) -> bool:
    """Whether lists and maps lie more than ``most`` deep in each other."""
    level = [value]
    for _ in range(most):
        level = [part for whole in level if isinstance(whole, dict | list) for part in _parts(whole)]
    return any(isinstance(whole, dict | list) for whole in level)


def _parts(whole: dict[Any, Any] | list[Any]) -> Iterable[Any]:
    return whole.values() if isinstance(whole, dict) else whole


def write_rows(rows: RowMap) -> bytes:
    return np.ascontiguousarray(rows, dtype="<i4").tobytes()


def read_rows(data: bytes) -> RowMap:
    return np.frombuffer(data, dtype="<i4").reshape(-1, 3)


def write_sampled(sampled: Sampled) -> list[Any]:
    return [*sampled.key, sampled.token, sampled.choice, sampled.logprob]


def read_sampled(data: Sequence[Any]) -> Sampled:
    request, sequence, position, token, choice, logprob = data
    if logprob is not None and not isinstance(logprob, float | int):
        raise ValueError(f"{type(logprob).__name__} where a logprob belongs")
    key = RowKey(as_place(request), as_place(sequence), as_place(position))
    return Sampled(key, _token(token), _token(choice), logprob)


def write_request(request: Request) -> list[Any]:
    return [request.request, request.sequence, list(request.prompt_token_ids), dict(request.sampling)]


def read_request(data: list[Any]) -> Request:
    """One as `write_request` writes it, and perhaps its id behind that: on the way between processes."""
    request, sequence, ids, sampling, *rest = data
    name = _id(rest[0]) if rest else None
    return Request(_number(request), _number(sequence), tuple(map(_token, ids)), _plain(sampling), name)


def read_requests(data: Mapping[str, Any]) -> tuple[Request, ...]:
    """The requests of a step's record; what they are called stands beside them, where readers of old skip it."""
    requests = [read_request(r) for r in data["requests"]]
    ids = data.get("ids") or [None] * len(requests)
    return tuple([replace(r, id=_id(name)) for r, name in zip(requests, ids, strict=True)])


def _id(value: Any) -> str | None:
    if value is not None and len(as_text(value)) > MAX_ID:
        raise ValueError("a request's id that no engine gives")
    return None if value is None else as_text(value)


def read_value(data: list[Any], load: Loader) -> Value:
    dtype, shape, strides, *rest = data
    located = Located(dtype, tuple(shape), tuple(strides), *rest[:8])
    check_located(located)
    return Value(
        dtype, located.shape, located.strides, partial(load, located), located.storage, located.start,
        located.version
    )  # fmt: skip


def check_located(located: Located) -> None:
    """Raises ValueError or TypeError unless it can be a tensor, wherever its bytes are."""
    numbers = (*located.shape, *located.strides, located.start, located.version, located.tensor, located.skip)
    more = (located.storage + 1, located.chunk + 1, located.pieces)  # -1 says that there is none
    if located.dtype not in DTYPES or len(located.shape) != len(located.strides) or not _whole((*numbers, *more)):
        raise ValueError("a tensor with an invalid dtype, shape or strides")
    if len(located.shape) > MAX_DIMENSIONS or type(located.strided) is not bool or not _holdable(located):
        raise ValueError("a tensor of a shape that fits no memory")


def located_of(value: Value) -> Located:
    """Where the bytes of a value that `read_value` made lie."""
    assert isinstance(value.load, partial)
    found: Located = value.load.args[0]
    return found


def _holdable(located: Located) -> bool:
    """Whether its sizes, and how far it reaches, can be counted in bytes; numpy raises for others."""
    if len(located.shape) <= 3 and max(located.start, *located.shape, *located.strides, 0) < 1 << 16:
        return True  # nearly all of them
    width = DTYPES[located.dtype].itemsize
    reach = located.start + sum(n * s for n, s in zip(located.shape, located.strides, strict=True))
    return width * math.prod(n or 1 for n in located.shape) < 1 << 62 and width * reach < 1 << 62


def _whole(numbers: Sequence[Any]) -> bool:
    return set(map(type, numbers)) == {int} and min(numbers) >= 0 and max(numbers) < 1 << 62


def write_call(
    slot: int, number: int, inputs: list[int], outputs: list[int], rows_in: int, rows_out: int,
    written: Mapping[int, int], fed: Sequence[int] | None = None,
) -> CallRecord:  # fmt: skip
    """Tensors are places in the step's list of values, ``rows_in`` and ``rows_out`` in its list of row maps."""
    record = slot, number, inputs, outputs, rows_in, rows_out, sorted(written.items())
    return record if fed is None else (*record, sorted(fed))


def read_call(data: list[Any], maps: list[RowMap], values: list[Value], names: Mapping[int, str]) -> Call:
    slot, number, inputs, outputs, rows_in, rows_out, written = data[:7]
    return Call(
        site=names[slot],
        number=as_place(number),
        inputs=tuple([values[as_place(v)] for v in inputs]),
        outputs=tuple([values[as_place(v)] for v in outputs]),
        rows_in=maps[as_place(rows_in)],
        rows_out=maps[as_place(rows_out)],
        written={as_place(index): values[as_place(v)] for index, v in written},
        fed=tuple(map(as_place, data[7])) if len(data) > 7 else None,
    )


def write_step(
    number: int, maps: list[bytes], values: Sequence[Located], calls: list[CallRecord], sampled: Sequence[Sampled],
    notes: Sequence[str], requests: Sequence[Request], weight_updates: int,
    kernels: Mapping[str, Any] | None = None, census: Mapping[str, Any] | None = None, padded: int = 0,
    company: Sequence[int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The step's own row map is the first of ``maps``; ``kernels`` are a record of `trace.kernels`,
    ``census`` the contents of a `census.Census`, ``padded`` and ``company`` as in `event.Step`."""
    record = {
        "number": number,
        "maps": maps,
        "values": values,
        "calls": calls,
        "sampled": [write_sampled(s) for s in sampled],
        "notes": list(notes),
        "requests": [write_request(r) for r in requests],
        "weights": weight_updates,
    }
    if any(r.id is not None for r in requests):
        record["ids"] = [r.id for r in requests]
    if kernels is not None:
        record["kernels"] = dict(kernels)
    if census is not None:
        record["census"] = dict(census)
    if padded:
        record["padded"] = padded
    if company is not None:
        record["company"] = list(company)
    return record


def read_company(data: Any) -> tuple[int, int, int] | None:
    if data is None:
        return None
    rows, requests, passed = data[:3]
    return as_place(rows), as_place(requests), as_place(passed)


def write_census(census: Census) -> dict[str, Any]:
    return {
        "operators": census.operators,
        "calls": census.calls,
        "unobserved": [[c.module, c.kind, c.calls, c.computed] for c in census.unobserved],
        "between": [[c.module, c.kind, c.calls, c.computed] for c in census.between],
        "parameters": [[p.name, p.dtype, list(p.shape), list(p.users)] for p in census.parameters],
    }


def read_census(data: Mapping[str, Any]) -> Census:
    return Census(
        as_place(data["operators"]),
        as_place(data["calls"]),
        tuple(_counted(row) for row in data["unobserved"]),
        tuple(_counted(row) for row in data["between"]),
        tuple(_unowned(row) for row in data["parameters"]),
    )


def _counted(row: Any) -> Counted:
    module, kind, calls, computed = row
    return Counted(as_text(module), as_text(kind), as_place(calls), as_place(computed))


def _unowned(row: Any) -> Unowned:
    name, dtype, shape, users = row
    return Unowned(as_text(name), as_text(dtype), tuple(map(as_place, shape)), tuple(map(as_text, users)))


def read_step(data: Mapping[str, Any], names: Mapping[int, str], load: Loader, check: Check) -> Step:
    """Raises DamagedTrace if the record has not the parts of a step; ``check`` is for its kernels."""
    try:
        maps = [read_rows(m) for m in data["maps"]]
        values = [read_value(v, load) for v in data["values"]]
        kernels = Kernels(data.get("kernels", NO_KERNELS), values, names, check)
        return Step(
            number=as_place(data["number"]),
            rows=maps[0],
            calls=tuple([read_call(c, maps, values, names) for c in data["calls"]]),
            sampled=tuple([read_sampled(s) for s in data["sampled"]]),
            notes=tuple(map(as_text, data["notes"])),
            requests=read_requests(data),
            weight_updates=as_place(data["weights"]),
            kernels=kernels,
            census=read_census(data["census"]) if "census" in data else None,
            padded=as_place(data.get("padded", 0)),
            company=read_company(data.get("company")),
        )
    except WRONG as error:
        raise DamagedTrace(f"A step record cannot be read: {error!r}.") from error
