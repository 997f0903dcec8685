"""What operators return in float64, on the recorded inputs.

A reference takes an operator's inputs as rows ``[rows, width]`` in float64 and gives its outputs alike; see
`Inputs`. Of a value that is rounded on the way (a sum of residuals that the norm reads again) it takes the
unrounded one: the truth is what the formula says, not how an engine rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.event import Site

__all__ = ["Inputs", "NoReference", "Reference", "reference_for"]

Floats = npt.NDArray[np.float64]


class NoReference(Exception):
    """There is no reference for this operator; the text says why, as a clause."""


@dataclass(frozen=True)
class Inputs:
    """What a reference is given.

    Args:
        tensors: the operator's tensor inputs, ``[rows, width]``.
        weight: gives a parameter by its name in float64, or None where the operator has none of that name.
        width: of each output.
    """

    tensors: Sequence[Floats]
    weight: Callable[[str], Floats | None]
    width: Sequence[int]


Reference: TypeAlias = Callable[[Site, Inputs], Sequence[Floats]]


def reference_for(site: Site) -> Reference:
    """The reference of an operator.

    Raises:
        NoReference: there is none for its class.
    """
    found = None if site.formula is None else _REFERENCES.get(site.formula)
    if found is None:
        raise NoReference(f"no reference is known for {site.operator}")
    return found


def _need(config: Mapping[str, Any], name: str) -> Any:
    if name not in config:
        raise NoReference(f"its {name} was not recorded")
    return config[name]


def _weight(inputs: Inputs, name: str) -> Floats:
    found = inputs.weight(name)
    if found is None:
        raise NoReference(f"it has no parameter {name}")
    return found


# -- norms --------------------------------------------------------------------------------------------------


def rms_norm(site: Site, inputs: Inputs) -> list[Floats]:
    """``x / sqrt(mean(x^2) + eps) * weight``; with a residual, of the sum of both, which is given as well."""
    return _rms_norm(site, inputs, 0.0)


def gemma_rms_norm(site: Site, inputs: Inputs) -> list[Floats]:
    """The same with ``1 + weight``."""
    return _rms_norm(site, inputs, 1.0)


def _rms_norm(site: Site, inputs: Inputs, more: float) -> list[Floats]:
    if site.config.get("variance_size_override") is not None:
        raise NoReference("it computes its variance over part of the row")
    total: Floats = inputs.tensors[0] + (inputs.tensors[1] if len(inputs.tensors) > 1 else 0.0)
    scale: Floats | float = 1.0
    if site.config.get("has_weight", True):
        scale = more + _weight(inputs, "weight")
    hidden = int(site.config.get("hidden_size") or (np.size(scale) if np.ndim(scale) else total.shape[1]))
    heads = total.reshape(len(total), -1, hidden)
    mean = np.square(heads).mean(axis=2, keepdims=True)
    normed = heads / np.sqrt(mean + _need(site.config, "variance_epsilon")) * scale
    return [normed.reshape(total.shape), *([total] if len(inputs.tensors) > 1 else [])]


# -- activations --------------------------------------------------------------------------------------------


def silu_and_mul(site: Site, inputs: Inputs) -> list[Floats]:
    gate, up = np.split(inputs.tensors[0], 2, axis=1)
    return [gate / (1 + np.exp(-gate)) * up]


def gelu_and_mul(site: Site, inputs: Inputs) -> list[Floats]:
    gate, up = np.split(inputs.tensors[0], 2, axis=1)
    kind = _need(site.config, "approximate")
    if kind not in ("none", "tanh"):
        raise NoReference(f"its approximation {kind!r} is not known")
    if kind == "tanh":
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        return [0.5 * gate * (1 + np.tanh(inner)) * up]
    return [0.5 * gate * (1 + _erf(gate / math.sqrt(2))) * up]


_erf_of_objects = np.frompyfunc(math.erf, 1, 1)


def _erf(x: Floats) -> Floats:
    return np.asarray(_erf_of_objects(x), np.float64)


# -- linear layers and embeddings ---------------------------------------------------------------------------


def linear(site: Site, inputs: Inputs) -> list[Floats]:
    """``x @ weight^T``, and the bias if it is added here."""
    result = inputs.tensors[0] @ _weight(inputs, "weight").T
    bias = inputs.weight("bias")
    return [result if bias is None or site.config.get("skip_bias_add") else result + bias]


def embedding(site: Site, inputs: Inputs) -> list[Floats]:
    weight, ids = _weight(inputs, "weight"), inputs.tensors[0][:, 0].astype(np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(weight):
        raise NoReference("token ids are outside its table")
    return [weight[ids]]


def logits(site: Site, inputs: Inputs) -> list[Floats]:
    """Of the head that the logits processor applies; padding of the vocabulary is cut off."""
    if site.config.get("soft_cap") or site.config.get("logits_as_input"):
        raise NoReference("it caps its logits, or does not compute them")
    head = _weight(inputs, "lm_head.weight")[: inputs.width[0]]
    return [inputs.tensors[0] @ head.T * float(site.config.get("scale", 1.0))]


# -- rotary embedding ---------------------------------------------------------------------------------------


def rotary(site: Site, inputs: Inputs) -> list[Floats]:
    """Rotates pairs of each head by ``position / base^(2i / rotary_dim)``; the angle is not rounded."""
    config = site.config
    size, turned, base = (_need(config, name) for name in ("head_size", "rotary_dim", "base"))
    positions, *heads = inputs.tensors
    if positions.shape[1] != 1:
        raise NoReference("its positions have several dimensions")
    angles = positions * base ** (-np.arange(0, turned, 2, dtype=np.float64) / turned)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    results = []
    for x in heads:
        rows = x.reshape(len(x), -1, size).copy()
        part = rows[:, :, :turned]
        neox = _need(config, "is_neox_style")
        one, two = (
            (part[..., : turned // 2], part[..., turned // 2 :]) if neox else (part[..., 0::2], part[..., 1::2])
        )
        first, second = one * cos - two * sin, two * cos + one * sin
        if neox:
            rows[:, :, :turned] = np.concatenate([first, second], axis=2)
        else:
            rows[:, :, :turned] = np.stack([first, second], axis=3).reshape(part.shape)
        results.append(rows.reshape(x.shape))
    return results


_FORMULAS = (rms_norm, gemma_rms_norm, silu_and_mul, gelu_and_mul, linear, embedding, logits, rotary)
_REFERENCES: Mapping[str, Reference] = {reference.__name__: reference for reference in _FORMULAS}
