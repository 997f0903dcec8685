"""An operator's weights by reference: their names in the checkpoint, whose tensors are identified by digest.

Engines fuse what the checkpoint has apart (q, k and v; gate and up), and say so in the model's
``packed_modules_mapping``. Some rename all of it as they load (``gpt_neox.layers.0`` to ``model.layers.0``), and
say so in its ``hf_to_vllm_mapper``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tracereplay.errors import WorkloadError
from tracereplay.event import Parameter
from tracereplay.hooks.census import held_besides
from tracereplay.storage.checkpoint import entries

__all__ = ["TensorNames", "parameters_of", "tensor_names"]

_OF_ADAPTERS = "base_layer."  # between a layer that takes adapters and the parameters of the layer itself


class TensorNames:
    """What the checkpoint calls the tensors that parameters are loaded from.

    Args:
        packed: by the last part of a module's name, those of the checkpoint's modules that it fuses.
        renamed: by the engine's name of a tensor, the checkpoint's; empty: they have the same names.
    """

    def __init__(self, packed: Mapping[str, Sequence[str]], renamed: Mapping[str, str]) -> None:
        self._packed, self._renamed = packed, renamed

    def of(self, name: str) -> tuple[str, ...]:
        """The tensors of the parameter ``name``, which is the engine's name of it from the model on."""
        module, _, parameter = name.replace(_OF_ADAPTERS, "").rpartition(".")
        parent, _, last = module.rpartition(".")
        parts = self._packed.get(last, (last,))
        found = [".".join(filter(None, (parent, part, parameter))) for part in parts]
        return tuple(self._renamed.get(tensor, tensor) for tensor in found)


def tensor_names(model: Any, checkpoint: Path) -> TensorNames:
    """The names of ``model``, loaded from the directory ``checkpoint`` (which need not be there)."""
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", None) or {}
    rename = getattr(getattr(model, "hf_to_vllm_mapper", None), "_map_name", None)
    if rename is None:
        return TensorNames(packed, {})
    renamed = {rename(name): name for name in _stored(checkpoint)}
    return TensorNames(packed, {new: name for new, name in renamed.items() if new is not None})


def _stored(checkpoint: Path) -> Iterable[str]:
    for path in sorted(checkpoint.glob("*.safetensors")):
        with contextlib.suppress(OSError, WorkloadError):
            yield from (name for name, _, _ in entries(path))


def parameters_of(model: Any, site: str, module: torch.nn.Module, names: TensorNames) -> tuple[Parameter, ...]:
    """The parameters of the operator at ``site``.

    Args:
        model: the engine's model.
        site: module path of the operator.
        module: the operator. The logits processor has the head's weights, which it applies; attention has the
            sinks that the module around it has given it.
        names: of the checkpoint's tensors.
    """
    if any(base.__name__.startswith("LogitsProcessor") for base in type(module).__mro__):
        return _head(model, names)
    own = tuple(
        Parameter(name.replace(_OF_ADAPTERS, ""), _dtype(p), tuple(p.shape), names.of(f"{site}.{name}"))
        for name, p in module.named_parameters()
    )
    given = {id(x) for x in held_besides(module) if isinstance(x, torch.nn.Parameter)}
    return own + tuple(
        Parameter(name.rpartition(".")[2], _dtype(p), tuple(p.shape), names.of(name))
        for name, p in (model.named_parameters() if given else ())
        if id(p) in given and not name.startswith(f"{site}.")
    )


def _head(model: Any, names: TensorNames) -> tuple[Parameter, ...]:
    weight = getattr(getattr(model, "lm_head", None), "weight", None)
    if not isinstance(weight, torch.Tensor):
        return ()
    tied = (n for n, p in model.named_parameters() if not n.startswith("lm_head.") and p is weight)
    return (
        Parameter("lm_head.weight", _dtype(weight), tuple(weight.shape), names.of(next(tied, "lm_head.weight"))),
    )


def _dtype(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
