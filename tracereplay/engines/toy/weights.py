"""The toy's weights and sizes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tracereplay.engines.toy.numerics import Array

__all__ = ["HEAD", "HEADS", "HIDDEN", "INTERMEDIATE", "KV_HEADS", "LAYERS", "VOCABULARY", "Update", "Weights"]

LAYERS = 2
VOCABULARY = 128
HIDDEN, HEADS, KV_HEADS, HEAD, INTERMEDIATE = 64, 4, 2, 16, 128


@dataclass(frozen=True)
class Update:
    """Weights that change while requests are under way, as a trainer's do.

    Args:
        step: before which they change.
        cleared: whether keys and values of the old weights are dropped and computed again.
    """

    step: int
    cleared: bool


class Weights:
    """Deterministic random weights named by the workload's model."""

    def __init__(self, name: str, rounded: Callable[[Array], Array]) -> None:
        self._rounded = rounded
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        random = np.random.default_rng(seed)
        state = hashlib.blake2b(digest_size=16)

        def draw(*shape: int, scale: float, mean: float = 0.0) -> Array:
            values = mean + scale * random.standard_normal(shape)
            state.update(values.tobytes())  # as in a checkpoint, which an engine of any dtype may load
            return rounded(values)

        qkv = (HEADS + 2 * KV_HEADS) * HEAD
        self.embedding = draw(VOCABULARY, HIDDEN, scale=1.0)
        self.layers = [
            {
                "input_layernorm": draw(HIDDEN, scale=0.1, mean=1.0),
                "qkv_proj": draw(qkv, HIDDEN, scale=HIDDEN**-0.5),
                "o_proj": draw(HIDDEN, HEADS * HEAD, scale=(HEADS * HEAD) ** -0.5),
                "post_attention_layernorm": draw(HIDDEN, scale=0.1, mean=1.0),
                "gate_up_proj": draw(2 * INTERMEDIATE, HIDDEN, scale=HIDDEN**-0.5),
                "down_proj": draw(HIDDEN, INTERMEDIATE, scale=2 * INTERMEDIATE**-0.5),
            }
            for _ in range(LAYERS)
        ]
        self.norm = draw(HIDDEN, scale=0.1, mean=1.0)
        self.head = draw(VOCABULARY, HIDDEN, scale=2 * HIDDEN**-0.5)
        self.digest = state.hexdigest()

    def updated(self) -> Weights:
        """These weights with one norm a quarter stronger."""
        found = copy.copy(self)
        found.layers = [dict(layer) for layer in self.layers]
        found.layers[0]["input_layernorm"] = self._rounded(self.layers[0]["input_layernorm"] * 1.25)
        return found
