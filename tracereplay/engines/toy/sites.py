"""The toy's operators and their weights, and how two ranks share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from tracereplay.engines.toy.names import Names
from tracereplay.engines.toy.roles import OPERATORS
from tracereplay.engines.toy.weights import HEAD, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, VOCABULARY
from tracereplay.event import Layout, Parameter, Site

__all__ = ["sites"]

_WHOLE, _PAIR = Layout(-1, (1,), (1,)), Layout(-1, (1, 1), (1, 1))
_QKV = Layout(-1, (HEADS, KV_HEADS, KV_HEADS), (1, 1, 1))
_Q, _KV = HEADS * HEAD, KV_HEADS * HEAD


def sites(ranks: int, dtype: str, names: Names) -> Iterator[Site]:
    """All operators in the order of their calls; with layouts if there are several ranks."""
    return _Sites(ranks, dtype, names).all()


class _Sites:
    def __init__(self, ranks: int, dtype: str, names: Names) -> None:
        self._ranks, self._dtype, self._names = ranks, dtype, names

    @property
    def _norm_inputs(self) -> tuple[str, ...]:
        return ("x",) if self._names.split else ("x", "residual")

    def all(self) -> Iterator[Site]:
        names = self._names
        embedding = self._weight(VOCABULARY, HIDDEN, "model.embed_tokens")
        yield self._site(names("embed"), "VocabParallelEmbedding", ("input_",), embedding)
        for layer in range(LAYERS):
            yield from self._layer(layer, f"model.layers.{layer}.")
        yield self._norm(names("norm"), "model.norm")
        head = self._weight(VOCABULARY, HIDDEN, "lm_head")
        yield self._site(names("logits"), "LogitsProcessor", ("hidden_states",), head)
        yield self._site("sampler", "Sampler", ("logits",))

    def _layer(self, layer: int, at: str) -> Iterator[Site]:
        """The operators of a layer; ``at`` is where the checkpoint has its tensors."""
        names = self._names
        yield self._norm(names("input_layernorm", layer), at + "input_layernorm")
        yield from self._projections(layer, at)
        cuts = {"in1": _WHOLE, "in2": _WHOLE, "out0": _WHOLE, "out1": _WHOLE}
        yield self._site(names("rotary", layer), "RotaryEmbedding", ("positions", "query", "key"), **cuts)
        cuts = {"in0": _WHOLE, "in1": _WHOLE, "in2": _WHOLE, "out0": _WHOLE}
        yield self._site(names("attn", layer), "Attention", ("query", "key", "value"), **cuts)
        out = self._weight(HIDDEN, _Q // self._ranks, at + "self_attn.o_proj")
        yield self._site(names("o_proj", layer), "RowParallelLinear", ("input_",), out, in0=_WHOLE)
        yield self._norm(names("post_attention_layernorm", layer), at + "post_attention_layernorm")
        yield from self._gate_and_up(layer, at + "mlp.")
        yield self._site(names("act", layer), "SiluAndMul", ("x",), in0=_PAIR, out0=_WHOLE)
        down = self._weight(HIDDEN, INTERMEDIATE // self._ranks, at + "mlp.down_proj")
        yield self._site(names("down_proj", layer), "RowParallelLinear", ("input_",), down, in0=_WHOLE)

    def _projections(self, layer: int, at: str) -> Iterator[Site]:
        tensors = {
            f"{x}_proj": (f"{at}self_attn.{x}_proj", width) for x, width in zip("qkv", (_Q, _KV, _KV), strict=True)
        }
        yield from self._columns("qkv_proj", "QKVParallelLinear", _QKV, tensors, layer)

    def _gate_and_up(self, layer: int, at: str) -> Iterator[Site]:
        tensors = {name: (at + name, INTERMEDIATE) for name in ("gate_proj", "up_proj")}
        yield from self._columns("gate_up_proj", "MergedColumnParallelLinear", _PAIR, tensors, layer)

    def _columns(
        self, fused: str, operator: str, layout: Layout, tensors: Mapping[str, tuple[str, int]], layer: int
    ) -> Iterator[Site]:
        """Projections of one input: as one operator, or one by one."""
        inputs = ("input_",)
        if self._names.split:
            for name, (tensor, width) in tensors.items():
                weight = self._weight(width // self._ranks, HIDDEN, tensor)
                yield self._site(self._names(name, layer), "ColumnParallelLinear", inputs, weight, out0=_WHOLE)
            return
        width = sum(width for _, width in tensors.values())
        weight = self._weight(width // self._ranks, HIDDEN, *(tensor for tensor, _ in tensors.values()))
        yield self._site(self._names(fused, layer), operator, inputs, weight, out0=layout)

    def _norm(self, name: str, tensor: str) -> Site:
        weight = Parameter("weight", self._dtype, (HIDDEN,), (f"{tensor}.weight",))
        return self._site(name, "RMSNorm", self._norm_inputs, weight)

    def _weight(self, rows: int, columns: int, *tensors: str) -> Parameter:
        return Parameter("weight", self._dtype, (rows, columns), tuple(f"{tensor}.weight" for tensor in tensors))

    def _site(
        self, name: str, operator: str, inputs: tuple[str, ...], *parameters: Parameter, **layouts: Layout
    ) -> Site:
        known = OPERATORS[operator]
        cut = layouts if self._ranks > 1 else {}
        return Site(
            name, operator, _slot(name), inputs, cut, parameters=parameters, role=known.role, formula=known.formula
        )


def _slot(site: str) -> int:
    return int.from_bytes(hashlib.blake2b(site.encode(), digest_size=6).digest(), "little")
