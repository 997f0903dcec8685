"""The toy's attention: rotary embedding, and the keys and values of each sample's earlier rows."""

from __future__ import annotations

import numpy as np

from tracereplay.engines.toy.flaws import Planted
from tracereplay.engines.toy.names import Names
from tracereplay.engines.toy.numerics import Array, Numerics
from tracereplay.engines.toy.weights import HEAD, HEADS, KV_HEADS, LAYERS
from tracereplay.event import RowMap

__all__ = ["Attention", "rotate"]


def rotate(numerics: Numerics, x: Array, positions: Array) -> Array:
    """Rotary embedding; pairs are the halves of a head."""
    half = HEAD // 2
    angles = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = (numerics.nearest(f(angles))[:, None, :] for f in (np.cos, np.sin))  # a precomputed table
    heads = x.reshape(len(x), -1, HEAD)
    first, second = heads[..., :half], heads[..., half:]
    left = numerics.between(first * cos) - numerics.between(second * sin)
    right = numerics.between(second * cos) + numerics.between(first * sin)
    return numerics.rounded(np.concatenate([left, right], axis=-1).reshape(x.shape))


class Attention:
    """Causal attention, with a cache of each sample's keys and values."""

    def __init__(self, numerics: Numerics, planted: Planted, names: Names) -> None:
        self._numerics, self._planted, self._names = numerics, planted, names
        self._cache: dict[tuple[str, int, int], tuple[Array, Array]] = {}

    def clear(self) -> None:
        self._cache.clear()

    def share(self, mine: tuple[int, int], theirs: tuple[int, int]) -> None:
        """Gives the sample ``theirs`` all rows of the sample ``mine``."""
        for layer in range(LAYERS):
            site = self._names("attn", layer)
            here, there = (site, *mine), (site, *theirs)
            self._cache[there] = self._cache[here]

    def attend(self, site: str, q: Array, k: Array, v: Array, rows: RowMap) -> Array:
        """The output of attention for a step's ``rows``."""
        out = np.empty_like(q)
        for i, (request, sequence, _) in enumerate(rows.tolist()):
            keys, values = self._remember(site, (request, sequence), k[i], v[i])
            out[i] = self._attend_one(site, q[i].reshape(HEADS, HEAD), keys, values)
        return self._numerics.rounded(out)

    def _remember(self, site: str, key: tuple[int, int], k: Array, v: Array) -> tuple[Array, Array]:
        new = k.reshape(1, KV_HEADS, HEAD), v.reshape(1, KV_HEADS, HEAD)
        place = (site, *key)
        old = self._cache.get(place)
        both = new if old is None else (np.concatenate([old[0], new[0]]), np.concatenate([old[1], new[1]]))
        self._cache[place] = both
        return both

    def _attend_one(self, site: str, q: Array, keys: Array, values: Array) -> Array:
        if self._planted.sits("stale", site) and len(keys) > 3:
            keys, values = keys.copy(), values.copy()
            keys[-2], values[-2] = keys[-3], values[-3]
        keys, values = (np.repeat(x, HEADS // KV_HEADS, axis=1) for x in (keys, values))
        scores = np.einsum("hd,nhd->hn", q, keys) * HEAD**-0.5
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        total = exponentials.sum(axis=1, keepdims=True)
        mixed: Array = np.einsum("hn,nhd->hd", self._numerics.between(exponentials), values) / total
        return mixed.reshape(-1)
