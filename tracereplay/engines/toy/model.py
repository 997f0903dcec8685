"""The toy's model: two decoder layers, called as an engine's Llama calls its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from tracereplay.engines.toy.attention import Attention, rotate
from tracereplay.engines.toy.flaws import Planted
from tracereplay.engines.toy.numerics import Array, Numerics
from tracereplay.engines.toy.recorder import Recorder
from tracereplay.engines.toy.schedule import Batch
from tracereplay.engines.toy.weights import HEAD, HEADS, KV_HEADS, LAYERS, VOCABULARY, Weights
from tracereplay.event import RowMap

__all__ = ["Model"]

EPS = 1e-6


class Model:
    """Embedding, layers and logits, each operator between its taps.

    Args:
        weights: those of the steps to come; they may be exchanged between steps.
        ranks: 1 or 2 tensor-parallel ranks.
        noise: relative size of an error that no two runs share, in every linear layer.
    """

    def __init__(self, weights: Weights, numerics: Numerics, planted: Planted, ranks: int, noise: float) -> None:
        self.weights, self._numerics, self._planted, self._ranks = weights, numerics, planted, ranks
        self._noise, self._random = noise, np.random.default_rng(time.perf_counter_ns())
        self.attention = Attention(numerics, planted)

    def decode(self, tap: Recorder, batch: Batch) -> Array:
        """The hidden state of each row, as the final norm gives it."""
        positions = batch.rows[:, 2].astype(np.int64)
        if self._planted.has("positions"):
            positions = positions + 1
        ids = tap.feed("model.embed_tokens", 0, batch.token_ids)
        embedded = self._planted.flawed("model.embed_tokens", self._embed(ids, batch), batch.rows)
        hidden = tap.observe("model.embed_tokens", 0, embedded)
        residual: Array | None = None
        for layer in self._order():
            hidden, residual = self._layer(tap, layer, hidden, residual, positions, batch)
        return self._norm(tap, "model.norm", self.weights.norm, hidden, residual, batch)[0]

    def logits(self, tap: Recorder, hidden: Array, picked: list[int], rows: RowMap) -> Array:
        """Logits of the ``picked`` rows of a step, whose places are ``rows``."""
        site = "logits_processor"
        if self._numerics.rounding == "twice":
            hidden = tap.feed(site, 0, self._planted.edge(site, 0, hidden))[picked]
        else:
            hidden = tap.feed(site, 0, self._planted.edge(site, 0, hidden[picked]), rows)
        logits = self._planted.flawed(site, self._numerics.rounded(hidden @ self.weights.head.T), rows)
        return tap.observe(site, 0, logits, rows)

    def _order(self) -> Sequence[int]:
        return list(reversed(range(LAYERS))) if self._planted.has("swap") else range(LAYERS)

    def _layer(
        self, tap: Recorder, layer: int, hidden: Array, residual: Array | None, positions: Array, batch: Batch
    ) -> tuple[Array, Array]:
        at, weights = f"model.layers.{layer}.", self.weights.layers[layer]
        norm, post_norm = "input_layernorm", "post_attention_layernorm"
        hidden, residual = self._norm(tap, at + norm, weights[norm], hidden, residual, batch)
        hidden = self._attention(tap, at + "self_attn.", weights, hidden, positions, batch)
        hidden, residual = self._norm(tap, at + post_norm, weights[post_norm], hidden, residual, batch)
        hidden = self._linear(tap, at + "mlp.gate_up_proj", weights["gate_up_proj"], hidden, batch)
        act = at + "mlp.act_fn"
        gate_up = tap.feed(act, 0, self._planted.edge(act, 0, hidden))
        hidden = tap.observe(act, 0, self._planted.flawed(act, self._silu_and_mul(gate_up), batch.rows))
        hidden = self._linear(tap, at + "mlp.down_proj", weights["down_proj"], hidden, batch, reduced=True)
        return hidden, residual

    def _attention(
        self, tap: Recorder, at: str, weights: Mapping[str, Array], hidden: Array, positions: Array, batch: Batch
    ) -> Array:
        qkv = self._linear(tap, at + "qkv_proj", weights["qkv_proj"], hidden, batch)
        q, k, v = np.split(qkv, [HEADS * HEAD, (HEADS + KV_HEADS) * HEAD], axis=1)
        rotary, attn = at + "rotary_emb", at + "attn"
        where = tap.feed(rotary, 0, positions)
        q, k = tap.feed(rotary, 1, q), tap.feed(rotary, 2, k)
        if self._planted.sits("rotary", rotary):
            where = where + 1
        q = tap.observe(rotary, 0, self._planted.flawed(rotary, rotate(self._numerics, q, where), batch.rows))
        k = tap.observe(rotary, 1, rotate(self._numerics, k, where))
        q, k, v = tap.feed(attn, 0, q), tap.feed(attn, 1, k), tap.feed(attn, 2, self._planted.edge(attn, 2, v))
        mixed = self.attention.attend(attn, q, k, v, batch.rows)
        hidden = tap.observe(attn, 0, self._planted.flawed(attn, mixed, batch.rows))
        return self._linear(tap, at + "o_proj", weights["o_proj"], hidden, batch, reduced=True)

    # Operators. Each rounds its result; `between` marks where the other version rounds as well.

    def _embed(self, ids: Array, batch: Batch) -> Array:
        if self._planted.sits("wrong_row", "model.embed_tokens"):
            ids = np.where(batch.rows[:, 2] == 1, (ids + 1) % VOCABULARY, ids)
        found: Array = self.weights.embedding[ids]
        return found

    def _norm(
        self, tap: Recorder, site: str, weight: Array, hidden: Array, residual: Array | None, batch: Batch
    ) -> tuple[Array, Array]:
        x = tap.feed(site, 0, self._planted.edge(site, 0, hidden))
        if residual is not None:
            x = self._numerics.rounded(x + tap.feed(site, 1, self._planted.edge(site, 1, residual)))
        eps = 0.5 if self._planted.sits("eps", site) else EPS
        scaled = self._numerics.between(x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps))
        y = self._numerics.rounded(scaled * weight)
        normed = tap.observe(site, 0, self._planted.flawed(site, y, batch.rows))
        return normed, x if residual is None else tap.observe(site, 1, x)

    def _linear(
        self, tap: Recorder, site: str, weight: Array, x: Array, batch: Batch, *, reduced: bool = False
    ) -> Array:
        x = tap.feed(site, 0, self._planted.edge(site, 0, x))
        if reduced and self._ranks > 1:
            halves = zip(np.split(x, self._ranks, axis=1), np.split(weight, self._ranks, axis=1), strict=True)
            y = self._numerics.rounded(np.sum([self._numerics.rounded(part @ w.T) for part, w in halves], axis=0))
        else:
            y = self._numerics.rounded(x @ weight.T)
        if self._noise:
            y = self._numerics.rounded(y * (1 + self._noise * self._random.standard_normal(y.shape)))
        return tap.observe(site, 0, self._planted.flawed(site, y, batch.rows))

    def _silu_and_mul(self, x: Array) -> Array:
        gate, up = np.split(x, 2, axis=1)
        return self._numerics.rounded(self._numerics.between(gate / (1 + np.exp(-gate))) * up)
