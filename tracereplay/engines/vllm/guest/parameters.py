"""An operator's weights by reference: their names in the checkpoint, whose tensors are identified by digest.

Engines fuse what is separate in the checkpoint (q, k and v; gate and up), as the model's
``packed_modules_mapping`` states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tracereplay.event import Parameter

__all__ = ["parameters_of"]


def parameters_of(model: Any, site: str, module: torch.nn.Module) -> tuple[Parameter, ...]:
    """The parameters of the operator at ``site``.

    Args:
        model: the engine's model.
        site: module path of the operator.
        module: the operator. The logits processor has the head's weights, which it applies.
    """
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", None) or {}
    if any(base.__name__ == "LogitsProcessor" for base in type(module).__mro__):
        return _head(model)
    return tuple(
        Parameter(name, str(p.dtype).removeprefix("torch."), tuple(p.shape), _tensors(f"{site}.{name}", packed))
        for name, p in module.named_parameters()
    )


def _tensors(name: str, packed: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The checkpoint's tensors that a parameter is loaded from."""
    module, _, parameter = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    parts = packed.get(last, (last,))
    return tuple(".".join(filter(None, (parent, part, parameter))) for part in parts)


def _head(model: Any) -> tuple[Parameter, ...]:
    head = getattr(model, "lm_head", None)
    weight = getattr(head, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return ()
    tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return (Parameter("lm_head.weight", str(weight.dtype).removeprefix("torch."), tuple(weight.shape), (name,)),)
