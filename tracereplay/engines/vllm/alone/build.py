"""Rebuilds operators: instantiates vLLM's classes, and loads and processes weights as its model loader does."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tracereplay.alone.child.service import NotReplayable
from tracereplay.engines.family import Plan

__all__ = ["build"]


def build(plan: Plan, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """An operator as the engine has it once its model is loaded.

    Args:
        plan: checked (`known.plan`).
        weights: by parameter name, whole, in the dtypes of the parameters.

    Raises:
        NotReplayable: this vLLM has no such class, or the class has other parameters.
    """
    dtype = getattr(torch, plan.dtype)
    arguments = dict(plan.arguments)
    if plan.role == "rotary":
        arguments["dtype"] = dtype
    with _default_dtype(dtype):
        try:
            module: torch.nn.Module = _class(plan)(**arguments)
        except TypeError as error:  # this version lacks an argument
            raise NotReplayable(f"this vLLM does not build {plan.operator} so: {error}") from error
        _load(plan, module, weights)
    return module.eval()


def _class(plan: Plan) -> Any:
    # The name is one of `known.KNOWN`, never the trace's own.
    for name in plan.modules:
        try:
            found = getattr(importlib.import_module(name), plan.operator, None)
        except ModuleNotFoundError:
            continue
        if found is not None:
            return found
    raise NotReplayable(f"this vLLM has no {plan.operator}")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _load(plan: Plan, module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(module.named_parameters())
    if set(parameters) != set(weights):
        raise NotReplayable(
            f"{plan.operator} has the parameters {sorted(parameters)} here, and {sorted(weights)} in the recording"
        )
    for name, parameter in parameters.items():
        weight = weights[name]
        if plan.role == "embedding":
            weight = weight[: plan.arguments["org_num_embeddings"]]  # the loader pads the rest
        loader = getattr(parameter, "weight_loader", None)
        if loader is None:
            parameter.data.copy_(weight)
        else:
            loader(parameter, weight)
    method: Any = getattr(module, "quant_method", None)
    if hasattr(method, "process_weights_after_loading"):
        method.process_weights_after_loading(module)
