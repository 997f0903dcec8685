"""The toy's operators, named as in an engine's Llama, and how two ranks share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tracereplay.engines.toy.roles import OPERATORS
from tracereplay.engines.toy.weights import HEADS, KV_HEADS, LAYERS
from tracereplay.event import Layout, Site

__all__ = ["sites"]


def sites(ranks: int) -> Iterator[Site]:
    """All operators in the order of their calls; with their layouts where there are several ranks."""
    whole, pair = Layout(-1, (1,), (1,)), Layout(-1, (1, 1), (1, 1))

    def site(name: str, operator: str, inputs: tuple[str, ...], **layouts: Layout) -> Site:
        known = OPERATORS[operator]
        cut = layouts if ranks > 1 else {}
        return Site(name, operator, _slot(name), inputs, cut, role=known.role, formula=known.formula)

    yield site("model.embed_tokens", "VocabParallelEmbedding", ("input_",))
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        qkv = Layout(-1, (HEADS, KV_HEADS, KV_HEADS), (1, 1, 1))
        yield site(at + "input_layernorm", "RMSNorm", ("x", "residual"))
        yield site(at + "self_attn.qkv_proj", "QKVParallelLinear", ("input_",), out0=qkv)
        cuts = {"in1": whole, "in2": whole, "out0": whole, "out1": whole}
        yield site(at + "self_attn.rotary_emb", "RotaryEmbedding", ("positions", "query", "key"), **cuts)
        cuts = {"in0": whole, "in1": whole, "in2": whole, "out0": whole}
        yield site(at + "self_attn.attn", "Attention", ("query", "key", "value"), **cuts)
        yield site(at + "self_attn.o_proj", "RowParallelLinear", ("input_",), in0=whole)
        yield site(at + "post_attention_layernorm", "RMSNorm", ("x", "residual"))
        yield site(at + "mlp.gate_up_proj", "MergedColumnParallelLinear", ("input_",), out0=pair)
        yield site(at + "mlp.act_fn", "SiluAndMul", ("x",), in0=pair, out0=whole)
        yield site(at + "mlp.down_proj", "RowParallelLinear", ("input_",), in0=whole)
    yield site("model.norm", "RMSNorm", ("x", "residual"))
    yield site("logits_processor", "LogitsProcessor", ("hidden_states",))
    yield site("sampler", "Sampler", ("logits",))


def _slot(site: str) -> int:
    return int.from_bytes(hashlib.blake2b(site.encode(), digest_size=6).digest(), "little")
