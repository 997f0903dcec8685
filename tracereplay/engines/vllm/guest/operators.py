"""Finds operators, their configuration, and how tensor parallelism cuts their tensors.

Operators are recognized by the names of their classes and base classes, since the classes move between modules in
versions of an engine. "Has no children" would miss some: attention and rotary embeddings have children in newer
versions. An operator within an operator is part of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from tracereplay.engines.family import Operator
from tracereplay.engines.vllm.guest.parameters import parameters_of
from tracereplay.engines.vllm.guest.routing import routing_of
from tracereplay.engines.vllm.roles import OPERATORS
from tracereplay.event import Layout, Site
from tracereplay.hooks.taps import slot_of, tap

__all__ = ["find_operators", "layouts", "tap_operators"]

_OPERATORS = frozenset(
    {
        # vLLM: norms, activations and rotary embeddings are CustomOps
        "CustomOp", "LinearBase", "VocabParallelEmbedding", "Attention", "MLAAttention", "LogitsProcessor",
        "FusedMoE", "MoERunnerInterface", "RotaryEmbedding", "RotaryEmbeddingBase", "MambaMixer", "MambaMixer2",
        # torch, as some models use them
        "Linear", "Embedding", "LayerNorm", "RMSNorm", "GELU", "SiLU", "ReLU", "Conv1d", "Conv2d",
    }
)  # fmt: skip


def is_operator(module: torch.nn.Module) -> bool:
    return any(base.__name__ in _OPERATORS for base in type(module).__mro__)


def find_operators(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, torch.nn.Module]]:
    """Each operator as ``(site, module, parent)``, outermost first; a shared module once per caller.

    The head (``lm_head``) is skipped: it is never called, the logits processor applies its weights.
    """
    yield from _below(model, "")


def _below(parent: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.nn.Module, torch.nn.Module]]:
    for name, child in parent._modules.items():
        if child is None or name == "lm_head":
            continue
        site = f"{prefix}{name}"
        if is_operator(child):
            yield site, child, parent
        else:
            yield from _below(child, f"{site}.")


def tap_operators(model: torch.nn.Module, tensor_parallel: int, kv_copies: int) -> list[Site]:
    """Puts taps on every operator of ``model`` and returns the sites.

    Args:
        model: the engine's model, loaded and not yet traced by a compiler.
        tensor_parallel: number of ranks.
        kv_copies: how many neighbouring ranks hold the same key/value heads.
    """
    untapped: dict[int, Any] = {}
    sites = []
    for name, module, parent in list(find_operators(model)):
        if id(module) in untapped:
            # Why a copy: all layers share one rotary embedding, and a call must tell its layer. The copy shares
            # parameters, buffers and children with the original.
            forward = untapped[id(module)]
            module = copy.copy(module)
            module.forward = forward
            parent._modules[name.rsplit(".", 1)[-1]] = module
        else:
            untapped[id(module)] = module.forward
        slot = slot_of(name)
        found = layouts(name, module, kv_copies) if tensor_parallel > 1 else {}
        inputs = tap(module, slot)
        weights = parameters_of(model, name, module)
        known = _known(module)
        site = Site(name, type(module).__name__, slot, inputs, found, _config(module), weights)
        sites.append(replace(site, role=known.role, formula=known.formula))
    return sites


def _known(module: torch.nn.Module) -> Operator:
    """The role of its class or nearest known base, and the formula of its own class only."""
    own, *bases = [OPERATORS[base.__name__] for base in type(module).__mro__]
    role = next((known.role for known in (own, *bases) if known.role != "other"), own.role)
    return Operator(role, own.formula)


def _config(module: torch.nn.Module) -> dict[str, Any]:
    plain = (bool, int, float, str)
    found = {k: v for k, v in vars(module).items() if isinstance(v, plain) and not k.startswith("_")}
    return {**found, **_attention_of(module), **routing_of(module)}


def _attention_of(module: torch.nn.Module) -> dict[str, Any]:
    """Attention's parameters, which vLLM keeps in the backend's implementation; empty for other operators.

    A window, a cap on the logits and slopes are included only if they have an effect.
    """
    impl = getattr(module, "impl", None)
    scale = getattr(impl, "scale", None)
    if not isinstance(scale, float):
        return {}
    window = getattr(impl, "sliding_window", None)
    window = max(window) if isinstance(window, tuple | list) else window
    cap, slopes = getattr(impl, "logits_soft_cap", None), getattr(impl, "alibi_slopes", None)
    return {
        "scale": scale,
        **({"sliding_window": int(window)} if window is not None and window > 0 else {}),
        **({"logits_soft_cap": float(cap)} if cap else {}),
        **({"alibi": True} if slopes is not None else {}),
    }


def layouts(site: str, module: Any, kv_copies: int) -> Mapping[str, Layout]:
    """Which of an operator's tensors are cut over the ranks, keyed ``in0``, ``out1`` ...

    Tensors that are whole on every rank have no entry.
    """
    bases = {base.__name__ for base in type(module).__mro__}
    whole = Layout(-1, (1,), (1,))
    keys = Layout(-1, (1,), (kv_copies,))
    last = site.rsplit(".", 1)[-1]
    if "QKVParallelLinear" in bases:
        heads = (module.num_heads, module.num_kv_heads, module.num_kv_heads)
        return {"out0": Layout(-1, heads, (1, kv_copies, kv_copies))}
    if "MergedColumnParallelLinear" in bases:
        common = math.gcd(*module.output_sizes)
        parts = tuple(size // common for size in module.output_sizes)
        return {"out0": Layout(-1, parts, (1,) * len(parts))}
    if "ColumnParallelLinear" in bases:
        return {} if module.gather_output else {"out0": whole}
    if "RowParallelLinear" in bases:
        return {"in0": whole} if module.input_is_parallel else {}
    if "Attention" in bases:
        return {"in0": whole, "in1": keys, "in2": keys, "out0": whole}
    if bases & {"RotaryEmbedding", "RotaryEmbeddingBase"}:
        return {"in1": whole, "in2": keys, "out0": whole, "out1": keys}
    if any(name.endswith("AndMul") for name in bases):
        return {"in0": Layout(-1, (1, 1), (1, 1)), "out0": whole}
    if last in ("q_norm", "k_norm"):
        per_head = Layout(-2, (1,), (kv_copies if last == "k_norm" else 1,))
        return {"in0": per_head, "out0": per_head}
    return {}
