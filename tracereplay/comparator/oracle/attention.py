"""Attention in float64, over the keys and values recorded for the preceding rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.oracle.references import NoReference
from tracereplay.event import RowMap, Site

__all__ = ["Attention"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_BLOCK = 1 << 24  # scores held at once


class Attention:
    """One attention operator over a whole pass.

    Args:
        site: the operator; its configuration needs ``scale``, ``num_heads``, ``num_kv_heads``, ``head_size``.
        keys: which token each row is, ``[rows, 3]``.
        key, value: of all rows, ``[rows, kv heads x size]``.

    Raises:
        NoReference: it has an unsupported feature, or its scale was not recorded.
    """

    def __init__(self, site: Site, keys: RowMap, key: Floats, value: Floats) -> None:
        self._config = _checked(site.config)
        self._key, self._value = key, value
        self._sequences: dict[tuple[int, int], Ints] = {}
        for request, sequence in {(int(r), int(s)) for r, s, _ in keys}:
            at = np.flatnonzero((keys[:, 0] == request) & (keys[:, 1] == sequence))
            self._sequences[request, sequence] = at[np.argsort(keys[at, 2], kind="stable")]
        self._positions = keys[:, 2]

    def covered(self, keys: RowMap) -> npt.NDArray[np.bool_]:
        """Rows whose every earlier row was recorded, ``[rows]``; a prefix that was cached is not there."""
        whole = {
            name: len(at) > 0 and bool((self._positions[at] == np.arange(len(at))).all())
            for name, at in self._sequences.items()
        }
        return np.array([whole.get((int(r), int(s)), False) for r, s, _ in keys], bool)

    def rows(self, keys: RowMap, query: Floats) -> Floats:
        """Outputs of rows ``keys``, whose queries are ``[rows, heads x size]``."""
        config = self._config
        size, kv = config["head_size"], config["num_kv_heads"]
        group = config["num_heads"] // kv
        result = np.empty((len(query), config["num_heads"] * size))
        for i, (request, sequence, position) in enumerate(keys.tolist()):
            at = self._sequences[request, sequence][: position + 1]
            k, v = (x[at].reshape(len(at), kv, size) for x in (self._key, self._value))
            q = query[i].reshape(kv, group, size)
            scores = np.einsum("kgd,nkd->kgn", q, k) * config["scale"]
            scores = np.exp(scores - scores.max(axis=2, keepdims=True))
            shares = scores / scores.sum(axis=2, keepdims=True)
            result[i] = np.einsum("kgn,nkd->kgd", shares, v).reshape(-1)
        return result


def _checked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    missing = [n for n in ("scale", "num_heads", "num_kv_heads", "head_size") if n not in config]
    if missing:
        raise NoReference(f"its {missing[0]} was not recorded")
    if config.get("attn_type", "decoder") != "decoder":
        raise NoReference(f"it is attention of type {config['attn_type']!r}")
    for name in ("sliding_window", "logits_soft_cap", "alibi", "has_sink", "use_mla"):
        if config.get(name):
            raise NoReference(f"it has {name} = {config[name]!r}")
    if not math.isfinite(float(config["scale"])):
        raise NoReference("its scale is not finite")
    return config
