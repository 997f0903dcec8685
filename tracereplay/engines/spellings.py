"""How engines spell the same parts of operators' names: the table by which sites are paired last."""

from __future__ import annotations

__all__ = ["SPELLINGS"]

# Parts of names, each in all its spellings, the first of which stands for it. Asked last, of what neither names,
# tensors nor order have paired: operators without weights, where one engine runs more of their kind.
SPELLINGS = (
    # what holds a decoder
    (".model.", ".gpt_neox.", ".transformer.", ".language_model.model.", ".model.language_model."),
    (".layers.", ".h.", ".blocks."),
    # what holds attention: in newer engines, DeepSeek's is in a wrapper of its own
    (".self_attn.", ".self_attn.mla_attn.", ".attention.", ".self_attention."),
    (".mlp.", ".feed_forward."),
)
