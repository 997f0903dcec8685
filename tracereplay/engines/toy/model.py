"""The toy's model: two decoder layers, called as an engine's Llama calls its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from tracereplay.engines.toy.attention import Attention, rotate
from tracereplay.engines.toy.flaws import Planted
from tracereplay.engines.toy.names import Names
from tracereplay.engines.toy.numerics import Array, Numerics
from tracereplay.engines.toy.recorder import Recorder
from tracereplay.engines.toy.schedule import Batch
from tracereplay.engines.toy.weights import HEAD, HEADS, INTERMEDIATE, KV_HEADS, LAYERS, VOCABULARY, Weights
from tracereplay.event import RowMap

__all__ = ["Model"]

EPS = 1e-6
PARTS = {  # the parts of projections that may be fused
    "qkv_proj": {"q_proj": HEADS * HEAD, "k_proj": KV_HEADS * HEAD, "v_proj": KV_HEADS * HEAD},
    "gate_up_proj": {"gate_proj": INTERMEDIATE, "up_proj": INTERMEDIATE},
}


class Model:
    """Embedding, layers and logits, each operator between its taps.

    Args:
        weights: may be replaced between steps.
        ranks: 1 or 2 tensor-parallel ranks.
        noise: largest relative size of an error that no two runs share, in every linear layer; evenly distributed,
            so that runs differ in their errors, not in how large the largest is.
        names: its operators' names, and which are fused.
    """

    def __init__(
        self, weights: Weights, numerics: Numerics, planted: Planted, ranks: int, noise: float, names: Names
    ) -> None:
        self._names = names
        self.weights, self._numerics, self._planted, self._ranks = weights, numerics, planted, ranks
        self._noise, self._random = noise, np.random.default_rng(time.perf_counter_ns())
        self.attention = Attention(numerics, planted, names)

    def decode(self, tap: Recorder, batch: Batch) -> Array:
        """The hidden state of each row after the final norm."""
        positions = batch.rows[:, 2].astype(np.int64)
        if self._planted.has("positions"):
            positions = positions + 1
        site = self._names("embed")
        ids = tap.feed(site, 0, batch.token_ids)
        hidden = tap.observe(site, 0, self._planted.flawed(site, self._embed(site, ids, batch), batch.rows))
        residual: Array | None = None
        for layer in self._order():
            hidden, residual = self._layer(tap, layer, hidden, residual, positions, batch)
        return self._norm(tap, self._names("norm"), self.weights.norm, hidden, residual, batch)[0]

    def logits(self, tap: Recorder, hidden: Array, picked: list[int], rows: RowMap) -> Array:
        """Logits of the ``picked`` rows of a step, whose places are ``rows``."""
        site = self._names("logits")
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
        weights, first, second = self.weights.layers[layer], "input_layernorm", "post_attention_layernorm"
        hidden, residual = self._norm(tap, self._names(first, layer), weights[first], hidden, residual, batch)
        hidden = self._attention(tap, layer, weights, hidden, positions, batch)
        hidden, residual = self._norm(tap, self._names(second, layer), weights[second], hidden, residual, batch)
        hidden = self._columns(tap, "gate_up_proj", layer, weights, hidden, batch)
        act = self._names("act", layer)
        gate_up = tap.feed(act, 0, self._planted.edge(act, 0, hidden))
        hidden = tap.observe(act, 0, self._planted.flawed(act, self._silu_and_mul(gate_up), batch.rows))
        down = self._names("down_proj", layer)
        return self._linear(tap, down, weights["down_proj"], hidden, batch, reduced=True), residual

    def _attention(
        self,
        tap: Recorder,
        layer: int,
        weights: Mapping[str, Array],
        hidden: Array,
        positions: Array,
        batch: Batch,
    ) -> Array:
        qkv = self._columns(tap, "qkv_proj", layer, weights, hidden, batch)
        q, k, v = np.split(qkv, [HEADS * HEAD, (HEADS + KV_HEADS) * HEAD], axis=1)
        rotary, attn = self._names("rotary", layer), self._names("attn", layer)
        where = tap.feed(rotary, 0, positions)
        q, k = tap.feed(rotary, 1, q), tap.feed(rotary, 2, k)
        if self._planted.sits("rotary", rotary):
            where = where + 1
        q = tap.observe(rotary, 0, self._planted.flawed(rotary, rotate(self._numerics, q, where), batch.rows))
        k = tap.observe(rotary, 1, rotate(self._numerics, k, where))
        q, k, v = tap.feed(attn, 0, q), tap.feed(attn, 1, k), tap.feed(attn, 2, self._planted.edge(attn, 2, v))
        mixed = self.attention.attend(attn, q, k, v, batch.rows)
        hidden = tap.observe(attn, 0, self._planted.flawed(attn, mixed, batch.rows))
        return self._linear(tap, self._names("o_proj", layer), weights["o_proj"], hidden, batch, reduced=True)

    # Operators. Each rounds its result; `between` marks where the other version also rounds.

    def _embed(self, site: str, ids: Array, batch: Batch) -> Array:
        if self._planted.sits("wrong_row", site):
            ids = np.where(batch.rows[:, 2] == 1, (ids + 1) % VOCABULARY, ids)
        found: Array = self.weights.embedding[ids]
        return found

    def _norm(
        self, tap: Recorder, site: str, weight: Array, hidden: Array, residual: Array | None, batch: Batch
    ) -> tuple[Array, Array]:
        if residual is not None and self._names.split:
            hidden, residual = self._numerics.rounded(hidden + residual), None
        x = tap.feed(site, 0, self._planted.edge(site, 0, hidden))
        if residual is not None:
            x = self._numerics.rounded(x + tap.feed(site, 1, self._planted.edge(site, 1, residual)))
        eps = 0.5 if self._planted.sits("eps", site) else EPS
        scaled = self._numerics.between(x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps))
        y = self._numerics.rounded(scaled * weight)
        normed = tap.observe(site, 0, self._planted.flawed(site, y, batch.rows))
        return normed, x if residual is None else tap.observe(site, 1, x)

    def _columns(
        self, tap: Recorder, fused: str, layer: int, weights: Mapping[str, Array], x: Array, batch: Batch
    ) -> Array:
        """Projections of one input, side by side: computed as one, or one by one."""
        weight, parts = weights[fused], PARTS[fused]
        if not self._names.split:
            return self._linear(tap, self._names(fused, layer), weight, x, batch)
        rows = np.split(weight, np.cumsum(list(parts.values()))[:-1])
        return np.concatenate(
            [self._linear(tap, self._names(n, layer), w, x, batch) for n, w in zip(parts, rows, strict=True)],
            axis=1,
        )

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
            y = self._numerics.rounded(y * (1 + self._noise * self._random.uniform(-1, 1, y.shape)))
        return tap.observe(site, 0, self._planted.flawed(site, y, batch.rows))

    def _silu_and_mul(self, x: Array) -> Array:
        gate, up = np.split(x, 2, axis=1)
        return self._numerics.rounded(self._numerics.between(gate / (1 + np.exp(-gate))) * up)
