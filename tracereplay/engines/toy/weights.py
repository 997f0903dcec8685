"""The toy's weights and sizes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tracereplay.engines.toy.numerics import Array

__all__ = [
    "HEAD", "HEADS", "HIDDEN", "INTERMEDIATE", "KV_HEADS", "LAYERS", "SHAPES", "VOCABULARY", "Update", "Weights",
    "drawn",
]  # fmt: skip

LAYERS = 2
VOCABULARY = 128
HIDDEN, HEADS, KV_HEADS, HEAD, INTERMEDIATE = 64, 4, 2, 16, 128


@dataclass(frozen=True)
class Update:
    """An update of the weights during generation, as by a trainer.

    Args:
        step: before which it happens.
        cleared: whether keys and values of the old weights are dropped and computed again.
    """

    step: int
    cleared: bool


def drawn(name: str) -> dict[str, Array]:
    """Random float64 weights derived from a name, by their names in a checkpoint."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    random = np.random.default_rng(seed)
    return {
        f"{key}.weight": mean + scale * random.standard_normal(shape) for key, shape, scale, mean in _drawing()
    }


def _drawing() -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Each tensor's name, shape, and its values' standard deviation and mean."""
    qkv, heads = (HEADS + 2 * KV_HEADS) * HEAD, HEADS * HEAD
    yield "model.embed_tokens", (VOCABULARY, HIDDEN), 1.0, 0.0
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm", (HIDDEN,), 0.1, 1.0
        yield at + "self_attn.qkv_proj", (qkv, HIDDEN), HIDDEN**-0.5, 0.0
        yield at + "self_attn.o_proj", (HIDDEN, heads), heads**-0.5, 0.0
        yield at + "post_attention_layernorm", (HIDDEN,), 0.1, 1.0
        yield at + "mlp.gate_up_proj", (2 * INTERMEDIATE, HIDDEN), HIDDEN**-0.5, 0.0
        yield at + "mlp.down_proj", (HIDDEN, INTERMEDIATE), 2 * INTERMEDIATE**-0.5, 0.0
    yield "model.norm", (HIDDEN,), 0.1, 1.0
    yield "lm_head", (VOCABULARY, HIDDEN), 2 * HIDDEN**-0.5, 0.0


SHAPES = {f"{key}.weight": shape for key, shape, *_ in _drawing()}
_OF_LAYER = {
    "input_layernorm": "input_layernorm", "qkv_proj": "self_attn.qkv_proj", "o_proj": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm", "gate_up_proj": "mlp.gate_up_proj",
    "down_proj": "mlp.down_proj",
}  # fmt: skip


class Weights:
    """A checkpoint's tensors as an engine holds them.

    Args:
        tensors: of the shapes of `SHAPES`.
        rounded: to the engine's dtype.
    """

    def __init__(self, tensors: Mapping[str, Array], rounded: Callable[[Array], Array]) -> None:
        self._rounded = rounded
        state = hashlib.blake2b(digest_size=16)
        for name in SHAPES:
            state.update(tensors[name].tobytes())  # unrounded, as in a checkpoint: it is the same for every dtype
        self.digest = state.hexdigest()

        def loaded(name: str) -> Array:
            return rounded(tensors[f"{name}.weight"])

        self.embedding = loaded("model.embed_tokens")
        self.layers = [
            {key: loaded(f"model.layers.{layer}.{name}") for key, name in _OF_LAYER.items()}
            for layer in range(LAYERS)
        ]
        self.norm = loaded("model.norm")
        self.head = loaded("lm_head")

    def updated(self) -> Weights:
        """These weights with one norm a quarter stronger."""
        found = copy.copy(self)
        found.layers = [dict(layer) for layer in self.layers]
        found.layers[0]["input_layernorm"] = self._rounded(self.layers[0]["input_layernorm"] * 1.25)
        return found
