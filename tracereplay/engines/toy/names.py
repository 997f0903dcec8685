"""The toy's operator names, as in an engine that fuses projections or in one that does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from tracereplay.errors import UsageError

__all__ = ["NAMES", "Names", "Naming", "names_of"]

Naming: TypeAlias = Literal["fused", "split"]
NAMES: tuple[Naming, ...] = get_args(Naming)

_FUSED = {
    "embed": "model.embed_tokens", "input_layernorm": "model.layers.{}.input_layernorm",
    "qkv_proj": "model.layers.{}.self_attn.qkv_proj", "rotary": "model.layers.{}.self_attn.rotary_emb",
    "attn": "model.layers.{}.self_attn.attn", "o_proj": "model.layers.{}.self_attn.o_proj",
    "post_attention_layernorm": "model.layers.{}.post_attention_layernorm",
    "gate_up_proj": "model.layers.{}.mlp.gate_up_proj", "act": "model.layers.{}.mlp.act_fn",
    "down_proj": "model.layers.{}.mlp.down_proj", "norm": "model.norm", "logits": "logits_processor",
}  # fmt: skip
_SPLIT = {
    "embed": "decoder.embed_in", "input_layernorm": "decoder.blocks.{}.norm_1",
    "q_proj": "decoder.blocks.{}.attention.query", "k_proj": "decoder.blocks.{}.attention.key",
    "v_proj": "decoder.blocks.{}.attention.value", "rotary": "decoder.blocks.{}.attention.rotary",
    "attn": "decoder.blocks.{}.attention.core", "o_proj": "decoder.blocks.{}.attention.dense",
    "post_attention_layernorm": "decoder.blocks.{}.norm_2", "gate_proj": "decoder.blocks.{}.ffn.gate",
    "up_proj": "decoder.blocks.{}.ffn.up", "act": "decoder.blocks.{}.ffn.act",
    "down_proj": "decoder.blocks.{}.ffn.down", "norm": "decoder.final_norm", "logits": "unembedding",
}  # fmt: skip


class Names:
    """The names of one naming.

    Args:
        known: of each operator, with a placeholder for the layer.
        split: whether projections are separate, and norms take the sum of x and residual.
    """

    def __init__(self, known: Mapping[str, str], split: bool) -> None:
        self._known, self.split = known, split

    def __call__(self, operator: str, layer: int | None = None) -> str:
        return self._known[operator].format(layer)


def names_of(naming: Naming) -> Names:
    """Raises `UsageError` if there is no such naming."""
    if naming not in NAMES:
        raise UsageError(f"The toy engine knows no naming {naming!r}; it knows {NAMES}.")
    return Names(_SPLIT, True) if naming == "split" else Names(_FUSED, False)
