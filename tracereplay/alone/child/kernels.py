"""Executing one recorded kernel: from plain data to tensors, the call, and back.

A request is one of::

    {"keep": {name: tensor}}     constants of the model, for later calls; {"forget": true} lets all of them go
    {"name": "aten.mm.default", "schema": as recorded, "renamed": {old argument name: new one},
     "without": [names of arguments that may be left out], "arguments": [...], "keywords": {...},
     "want": [numbers of the tensors wanted after the call],
     "reference": whether the same call on float64 inputs is wanted too}

Arguments are plain data and tensors; a map among them is something else::

    {"constant": name, "dtype", "shape", "strides", "start"}    a kept constant, or a view of it
    {"kind": "dtype", "text": "bfloat16", "state": tensor or nil}    `event.Opaque`
    {"complex": [real, imaginary]}

The answer to a call is ``{"schema": the candidate's, "outputs": [...], "written": [tensors]}`` and, if a
reference was requested, also ``reference`` and ``reference_written``, or ``no_reference``: why there is none.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from tracereplay.alone.child.service import NotReplayable
from tracereplay.alone.child.tensors import lay_out, plain
from tracereplay.dtypes import itemsize
from tracereplay.schemas import outside_of_tensors, schema_arguments
from tracereplay.trace import TensorBytes

__all__ = ["prepare", "run"]

_NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_constants: dict[str, torch.Tensor] = {}


def prepare(setup: Mapping[str, Any] | None) -> dict[str, Any]:
    """Loads the libraries that register kernels; describes the process.

    Args:
        setup: ``{"libraries": modules to import, "describe": "module:function"}`` (`engines.family.Alone`), of the
            analyst's side and never of a trace.
    """
    if setup is None:
        return {}
    for name in setup["libraries"]:
        importlib.import_module(name)
    module, _, function = setup["describe"].partition(":")
    described: dict[str, Any] = getattr(importlib.import_module(module), function)()
    return described


def run(request: Mapping[str, Any]) -> Any:
    """Executes one request; see the module.

    Raises:
        NotReplayable: the candidate has no such kernel, or its arguments have a different meaning.
        RuntimeError: the kernel raised it.
    """
    if request.get("forget"):
        _constants.clear()
        return None
    if "keep" in request:
        _constants.update({name: lay_out([tensor])[0] for name, tensor in request["keep"].items()})
        return None
    op = _operator(request["name"])
    request = _without(op, request)
    _check_schema(op, request["schema"], request["renamed"], request.get("without", ()))
    answer = {"schema": str(op._schema), **_execute(op, request, exact=False)}
    if request.get("reference"):
        answer.update(_reference(op, request))
    return answer


def _execute(op: Any, request: Mapping[str, Any], *, exact: bool) -> dict[str, Any]:
    renamed = request["renamed"]
    known = {argument.name for argument in op._schema.arguments}
    with torch.inference_mode():
        call = _Call(request, writes=any(a.alias_info and a.alias_info.is_write for a in op._schema.arguments),
                     exact=exact)  # fmt: skip
        arguments = [call.argument(a) for a in request["arguments"]]
        keywords = {renamed.get(k, k): call.argument(a) for k, a in request["keywords"].items()}
        if "generator" not in known and (drawn := keywords.pop("generator", None)) is not None:
            torch.default_generator.set_state(drawn.get_state())
        result = op(*arguments, **keywords)
        results = result if isinstance(result, (tuple, list)) else (result,)
        return {
            "outputs": [plain(r) for r in results],
            "written": [plain(call.tensors[i]) for i in request["want"]],
        }


def _reference(op: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        exact = _execute(op, request, exact=True)
    except (RuntimeError, NotImplementedError) as error:
        return {"no_reference": str(error).strip().split("\n", 1)[0][:200]}
    return {"reference": exact["outputs"], "reference_written": exact["written"]}


# What the candidate has


def _operator(name: str) -> Any:
    space, base, overload = name.split(".", 2)
    packet = getattr(getattr(torch.ops, space), base, None)
    if packet is None:
        raise NotReplayable(f"this engine has no kernel {space}.{base}")
    if overload not in packet.overloads():
        raise NotReplayable(f"{space}.{base} has no overload {overload!r} in this engine")
    return getattr(packet, overload)


def _without(op: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """The request without optional arguments that this kernel does not have."""
    known = {argument.name for argument in op._schema.arguments}
    left_out = set(request.get("without", ())) - known
    names = [argument.name for argument in schema_arguments(request["schema"])]
    placed = zip_longest(names[: len(request["arguments"])], request["arguments"])
    return {
        **request,
        "without": sorted(left_out),
        "arguments": [value for name, value in placed if name not in left_out],
        "keywords": {name: value for name, value in request["keywords"].items() if name not in left_out},
    }


def _check_schema(op: Any, recorded: str, renamed: Mapping[str, str], without: Sequence[str]) -> None:
    """Refuses if the recorded arguments would mean something different to the candidate's kernel."""
    schema = str(op._schema)
    outside = outside_of_tensors(schema)
    if outside:
        raise NotReplayable(outside)
    before = [renamed.get(a.name, a.name) for a in schema_arguments(recorded) if a.name not in without]
    now = schema_arguments(schema)
    if [a.name for a in now[: len(before)]] != before or not all(a.default for a in now[len(before) :]):
        raise NotReplayable(f"its schema is different here: {schema}")


# Arguments


class _Call:
    """The arguments of one call.

    Args:
        request: see the module.
        writes: whether the kernel writes into arguments; a kept constant is then copied first.
        exact: whether floating-point tensors, and dtypes of them, are float64.

    Attributes:
        tensors: those among the arguments, in order.
    """

    def __init__(self, request: Mapping[str, Any], *, writes: bool, exact: bool) -> None:
        self._writes, self._exact = writes, exact
        given = list(_tensors([request["arguments"], list(request["keywords"].values())]))
        self._laid_out = iter(lay_out(given))
        self.tensors: list[torch.Tensor] = []

    def argument(self, value: Any) -> Any:
        if isinstance(value, TensorBytes):
            return self._tensor(next(self._laid_out))
        if isinstance(value, list):
            return [self.argument(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        if "constant" in value:
            found = _constant(value["constant"], value["dtype"], value["shape"], value["strides"], value["start"])
            return self._tensor(found.clone() if self._writes else found)
        if "complex" in value:
            return complex(*value["complex"])
        return self._opaque(value["kind"], value["text"], value["state"])

    def _tensor(self, found: torch.Tensor) -> torch.Tensor:
        if self._exact and found.dtype in _NARROW.values():
            found = found.to(torch.float64)
        self.tensors.append(found)
        return found

    def _opaque(self, kind: str, text: str, state: TensorBytes | None) -> Any:
        if kind == "dtype":
            return torch.float64 if self._exact and text in _NARROW else _attribute(text, torch.dtype)
        if kind == "device":
            if torch.device(text).type != "cpu":
                raise NotReplayable(f"it was recorded on {text}; calls are replayed on the CPU")
            return torch.device("cpu")
        if kind in ("layout", "memory_format"):
            return _attribute(text, getattr(torch, kind))
        if kind == "Generator" and state is not None:
            generator = torch.Generator()
            generator.set_state(torch.from_numpy(np.frombuffer(bytes(state.data), np.uint8).copy()))
            return generator
        raise NotReplayable(f"an argument of type {kind!r} cannot be recreated")


def _tensors(value: Any) -> Any:
    """Tensors that were sent with a request, in order; a generator's state is none of the arguments."""
    if isinstance(value, TensorBytes):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _tensors(item)


def _attribute(name: str, kind: type) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, kind):
        raise NotReplayable(f"{name[:40]!r} is not a {kind.__name__} in this torch")
    return found


def _constant(
    name: str, dtype: str, shape: Sequence[int], strides: Sequence[int], start: int
) -> torch.Tensor:  # fmt: skip
    whole = _constants[name]
    if str(whole.dtype) != f"torch.{dtype}":
        raise NotReplayable(f"{name} is used as {dtype}, but is {whole.dtype}")
    numbers = int(np.prod(shape, dtype=np.int64))
    room = whole.untyped_storage().nbytes() // itemsize(dtype)
    if start + numbers > room:
        raise NotReplayable(f"a view of {name} extends past its end")
    return whole.as_strided(list(shape), list(strides), start)
