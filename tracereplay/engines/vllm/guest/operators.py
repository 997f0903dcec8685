"""Finds operators, their configuration, and how tensor parallelism cuts their tensors.

A module is an operator if its class or a base class is known by name (the classes themselves move between versions
of an engine), or if it has no children: whatever an unknown leaf computes is then recorded as what it is. "Has no
children" alone would miss some: attention and rotary embeddings have children in newer versions. An operator
within an operator is part of it.
"""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tracereplay.engines.family import Operator
from tracereplay.engines.vllm.guest.parameters import TensorNames, parameters_of
from tracereplay.engines.vllm.guest.routing import routing_of
from tracereplay.engines.vllm.roles import OPERATORS
from tracereplay.event import Layout, Site
from tracereplay.hooks.census import ENTRIES
from tracereplay.hooks.taps import slot_of, tap

__all__ = [
    "batched", "compiled_modules", "find_operators", "is_operator", "layouts", "of_transformers",
    "parts_of_operators", "tap_operators",
]  # fmt: skip

_OPERATORS = frozenset(
    {
        # vLLM: norms, activations and rotary embeddings are CustomOps
        "CustomOp", "LinearBase", "VocabParallelEmbedding", "Attention", "MLAAttention", "LogitsProcessor",
        "FusedMoE", "MoERunnerInterface", "RotaryEmbedding", "RotaryEmbeddingBase", "MambaMixer", "MambaMixer2",
        "ShortConv",
        # a layer with adapters computes them and its base layer in one
        "BaseLayerWithLoRA",
        # torch, as some models use them
        "Linear", "Embedding", "LayerNorm", "RMSNorm", "GELU", "SiLU", "ReLU", "Conv1d", "Conv2d",
    }
)  # fmt: skip
# Leaves that compute nothing: dropout does not while a model generates, and what another rank has is not here.
_INERT = frozenset({"Identity", "Dropout", "PPMissingLayer", "StageMissingLayer"})
# The logits processor applies a head's weights; nobody calls the head.
_HEADS = frozenset({"ParallelLMHead"})


def is_operator(module: torch.nn.Module) -> bool:
    """Whether ``module`` computes as one; containers, heads and leaves that compute nothing do not."""
    bases = {base.__name__ for base in type(module).__mro__}
    if bases & _HEADS or bases & _INERT:
        return False
    return bool(bases & _OPERATORS) or (not module._modules and _has_forward(module))


def _has_forward(module: torch.nn.Module) -> bool:
    """Whether it can be called; lists of modules cannot."""
    return getattr(type(module).forward, "__name__", "") != "_forward_unimplemented"


@dataclass(frozen=True)
class Place:
    """Where the model holds an operator: ``above`` are the modules around it, the last of which holds it."""

    site: str
    module: torch.nn.Module
    above: tuple[torch.nn.Module, ...]


def find_operators(model: torch.nn.Module) -> Iterator[list[Place]]:
    """Each operator by its places, the first of which names it; a shared module is one for each caller.

    A module may hand its operators down to one below it: DeepSeek's attention to the layer that runs them, which
    holds them too. Those are one operator with several places. It has the outermost's name, which is that of its
    weights in the checkpoint and of the same operator in engines that hand nothing down.
    """
    places = list(_below(model, "", (model,)))
    alike: dict[int, list[Place]] = {}
    for place in places:
        alike.setdefault(id(place.module), []).append(place)
    for place in places:
        same = alike[id(place.module)]
        if not any(place in _handed_down(outer, same) for outer in same):
            yield [place, *_handed_down(place, same)]


def _below(parent: torch.nn.Module, prefix: str, above: tuple[torch.nn.Module, ...]) -> Iterator[Place]:
    for name, child in parent._modules.items():
        if child is None or name == "lm_head":  # tied to an embedding, the head is one
            continue
        site = f"{prefix}{name}"
        if is_operator(child):
            yield Place(site, child, above)
        else:
            yield from _below(child, f"{site}.", (*above, child))


def _handed_down(outer: Place, same: Sequence[Place]) -> list[Place]:
    """The places that have their operator from ``outer``; none if it is handed to several callers."""
    inner = [place for place in same if outer.above[-1] in place.above[:-1]]
    deepest = max(inner, key=lambda place: len(place.above), default=outer)
    return inner if all(place.above[-1] in deepest.above for place in inner) else []


def tap_operators(
    model: torch.nn.Module, tensor_parallel: int, kv_copies: int, names: TensorNames, *, eager: bool
) -> list[Site]:
    """Puts taps on every operator of ``model`` and returns the sites.

    Args:
        model: the engine's model, loaded and not yet traced by a compiler.
        tensor_parallel: number of ranks.
        kv_copies: how many neighbouring ranks hold the same key/value heads.
        names: of the checkpoint's tensors.
        eager: whether no compiler will trace the model.
    """
    untapped: dict[int, Mapping[str, Callable[..., Any]]] = {}
    sites = []
    for places in list(find_operators(model)):
        name, module = places[0].site, places[0].module
        entries = untapped.get(id(module))
        if entries is None:
            entries = untapped[id(module)] = _entries(module)
        else:
            # Why a copy: all layers share one rotary embedding, and a call must tell its layer. The copy shares
            # parameters, buffers and children with the original.
            original, module = module, copy.copy(module)
            entries = _bound_to(module, original, entries)
            vars(module).update(_bound_to(module, original, vars(module)))
            for place in places:
                place.above[-1]._modules[place.site.rpartition(".")[2]] = module
        slot = slot_of(name)
        found = layouts(name, module, kv_copies) if tensor_parallel > 1 else {}
        inputs = tap(module, slot, entries, eager=eager)
        weights = parameters_of(model, name, module, names)
        known = _known(module)
        site = Site(name, type(module).__name__, slot, inputs, found, _config(module), weights)
        sites.append(replace(site, role=known.role, formula=known.formula))
    return sites


def _bound_to(module: torch.nn.Module, original: torch.nn.Module, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values``, with methods of ``original`` as those of its copy: their calls would be the original's."""
    return {
        name: types.MethodType(value.__func__, module) if getattr(value, "__self__", None) is original else value
        for name, value in values.items()
    }


def _entries(module: torch.nn.Module) -> dict[str, Callable[..., Any]]:
    """The methods by which the engine calls an operator: some models call ``q_norm.forward_native`` themselves."""
    return {name: getattr(module, name) for name in ENTRIES if hasattr(module, name)}


# What vLLM puts into a model of transformers takes rows as everywhere else.
_FLAT = frozenset({"attention", "logits", "sampler", "experts"})


def of_transformers(model: torch.nn.Module) -> bool:
    """Whether transformers defines the model, which vLLM runs with its own operators put in."""
    modules = (base.__module__ for base in type(model).__mro__)
    return any(name.startswith("vllm.") and ".transformers" in name for name in modules)


def batched(model: torch.nn.Module, sites: Sequence[Site]) -> frozenset[int]:
    """Slots whose tensors have a leading dimension of one before their rows.

    Models of transformers are written for ``[batch, rows, hidden]``; vLLM's backend for them runs a batch of one.
    """
    if not of_transformers(model):
        return frozenset()
    return frozenset(site.slot for site in sites if site.role not in _FLAT)


def compiled_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The outermost modules that a compiler traces: vLLM marks them, or the model itself is compiled."""
    if getattr(model, "_compiled_call_impl", None) is not None:
        return [model]
    found: list[torch.nn.Module] = []
    for module in model.modules():  # outer ones first
        if not getattr(module, "do_not_compile", True) and not any(module in outer.modules() for outer in found):
            found.append(module)
    return found


def parts_of_operators(model: torch.nn.Module, sites: Sequence[Site]) -> frozenset[int]:
    """Slots of operators that another operator holds too, and calls or not as it pleases.

    Latent attention expands keys and values of a prompt by ``kv_b_proj``, and multiplies its weights into others
    for a decode step.
    """
    operators = [places[0].module for places in find_operators(model)]
    parts = {id(part) for operator in operators for part in operator.modules() if part is not operator}
    return frozenset(site.slot for site in sites if id(model.get_submodule(site.name)) in parts)


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
    module = getattr(module, "base_layer", module)  # of a layer with adapters
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
