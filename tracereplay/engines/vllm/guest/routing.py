"""How the experts' layer of a mixture-of-experts model chooses experts, across versions of vLLM.

Up to 0.31 the layer is a ``FusedMoE`` module, which chooses itself or has a router; from 0.32 on it is a
``MoERunner`` with a router.
"""

from __future__ import annotations

from typing import Any

__all__ = ["routing_of"]

_LAYERS = {"FusedMoE", "MoERunnerInterface"}
# Attributes that, if set, make the choice differ from the largest logits.
_OTHERWISE = (
    "use_grouped_topk", "e_score_correction_bias", "custom_routing_function", "_hash_indices_table",
    "zero_expert_type",
)  # fmt: skip


def routing_of(module: Any) -> dict[str, Any]:
    """For a site's ``config``: ``top_k``, ``num_experts``, and ``routing``; empty for other operators.

    ``routing`` is ``top_k`` where a row goes to the experts with the largest logits, else ``other``: groups of
    experts, a correction bias, a function of the model's own.
    """
    if not any(base.__name__ in _LAYERS for base in type(module).__mro__):
        return {}
    holders = [holder for holder in (getattr(module, "router", None), module) if holder is not None]
    found = {"top_k": _first(holders, "top_k"), "num_experts": _first(holders, "global_num_experts")}
    plain = not any(_is_there(getattr(holder, name, None)) for holder in holders for name in _OTHERWISE)
    return {**{k: v for k, v in found.items() if isinstance(v, int)}, "routing": "top_k" if plain else "other"}


def _first(holders: list[Any], name: str) -> Any:
    return next((value for holder in holders if (value := getattr(holder, name, None)) is not None), None)


def _is_there(value: Any) -> bool:
    return value is not None and value is not False
