"""Executes recorded operators: vLLM's layers rebuilt from their recorded configuration, without a model.

A request is one of::

    {"build": key, "operator": class name, "config": as recorded, "dtype": the recording engine's,
     "parameters": {name: tensor}}     rebuilds an operator and keeps it under a key, a whole number
    {"call": key, "inputs": [tensor or nil, ...], "rows": [[request, sequence, position], ...]}     runs it
    {"forget": [key, ...]}     deletes operators

Inputs are in the order in which a tap numbers them. The answer to a call is ``{"outputs": [tensors],
"written": {index: tensor}}``: outputs in a tap's order, and the inputs that were changed in place and not
returned, with their values after, as `event.Call` has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tracereplay.alone.child.service import NotReplayable
from tracereplay.alone.child.tensors import lay_out, plain
from tracereplay.engines.family import Plan
from tracereplay.engines.vllm.alone.attention import AttentionAlone
from tracereplay.engines.vllm.alone.build import build
from tracereplay.engines.vllm.alone.known import plan
from tracereplay.engines.vllm.alone.world import enter
from tracereplay.engines.vllm.guest.describe import describe_process
from tracereplay.trace import TensorBytes

__all__ = ["prepare", "run"]

MOST_KEPT = 1 << 14  # operators
_kept: dict[int, tuple[Plan, torch.nn.Module]] = {}
_config: Any = None


def prepare(setup: Mapping[str, Any] | None) -> dict[str, Any]:
    """Loads vLLM if there is a ``setup``; without one, no operator is executed. Returns a description.

    Args:
        setup: ``{"settings": engine arguments}``.
    """
    global _config
    if setup is not None:
        _config = enter(setup["settings"])
    return describe_process()


def run(request: Mapping[str, Any]) -> Any:
    """Executes one request; see the module.

    Raises:
        NotReplayable: the operator is not supported, or not on these inputs.
        RuntimeError: the operator raised it.
    """
    if "forget" in request:
        for key in request["forget"]:
            _kept.pop(key, None)
        return None
    if "build" in request:
        return _build(request)
    made, module = _kept[request["call"]]
    return _call(made, module, request["inputs"], request["rows"])


def _build(request: Mapping[str, Any]) -> None:
    if _config is None:
        raise RuntimeError("this process was started without vLLM")
    if len(_kept) >= MOST_KEPT:
        raise NotReplayable(f"{MOST_KEPT} operators are kept already")
    parameters: dict[str, TensorBytes] = request["parameters"]
    made = plan(request["operator"], request["config"], request["dtype"], parameters)
    tensors = lay_out([_dense(t) for t in parameters.values()])
    if made.role == "attention":
        module: torch.nn.Module = AttentionAlone(
            made.arguments, getattr(torch, made.dtype), _config, f"model.alone.{request['build']}.attn"
        )
    else:
        module = build(made, dict(zip(parameters, tensors, strict=True)))
    _kept[int(request["build"])] = made, module


def _dense(tensor: TensorBytes) -> TensorBytes:
    """A contiguous tensor: weights are sent element by element, so their recorded strides do not apply."""
    strides, step = [], 1
    for size in reversed(tensor.shape):
        strides.append(step)
        step *= size
    return TensorBytes(tensor.dtype, tensor.shape, tuple(reversed(strides)), tensor.data)


def _call(
    made: Plan, module: torch.nn.Module, inputs: Sequence[TensorBytes | None], rows: Sequence[Sequence[int]]
) -> dict[str, Any]:
    made.check(inputs)
    taken = lay_out([x for x in inputs if x is not None])
    _check_values(made, taken)
    before = [x.clone() for x in taken]
    with torch.inference_mode():
        result = module(*taken, rows) if made.role == "attention" else module(*taken)
    found = result if isinstance(result, (tuple, list)) else (result,)
    outputs = [x for x in found if isinstance(x, torch.Tensor) and not isinstance(x, torch.nn.Parameter)]
    returned = {x.untyped_storage().data_ptr() for x in outputs}  # as the recorder decides it
    written = {
        i: plain(x)
        for i, (x, was) in enumerate(zip(taken, before, strict=True))
        if x.untyped_storage().data_ptr() not in returned and not _same_bits(x, was)
    }
    return {"outputs": [plain(x) for x in outputs], "written": written}


def _check_values(made: Plan, taken: Sequence[torch.Tensor]) -> None:
    if made.below is None or not taken[0].numel():
        return
    least, most = int(taken[0].min()), int(taken[0].max())
    if least < 0 or most >= made.below:
        raise NotReplayable(
            f"its first input has values from {least} to {most}; 0 to {made.below - 1} are allowed"
        )


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they have the same bytes; equal NaNs are equal."""
    return bool(torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)))
