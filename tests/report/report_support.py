"""A verdict and its details of a model as large as one gets, without an engine."""

from __future__ import annotations

import numpy as np

from tracereplay.columns.tensors import TableKey
from tracereplay.comparator.details import Details, Digests, ErrorMap, Generated, Scale
from tracereplay.comparator.tokens.generation import Generation
from tracereplay.comparator.tokens.sampled import Places
from tracereplay.verdict import (
    EdgeFinding,
    Metrics,
    OperatorFinding,
    Source,
    TokenFinding,
    Tolerance,
    Verdict,
    Worst,
)

__all__ = ["LAYERS", "POSITIONS", "large"]

LAYERS, POSITIONS = 32, 1000
PARTS = {
    "input_layernorm": "RMSNorm", "self_attn.qkv_proj": "QKVParallelLinear",
    "self_attn.rotary_emb": "RotaryEmbedding", "self_attn.attn": "Attention",
    "self_attn.o_proj": "RowParallelLinear",
    "post_attention_layernorm": "RMSNorm", "mlp.gate_up_proj": "MergedColumnParallelLinear",
    "mlp.act_fn": "SiluAndMul", "mlp.down_proj": "RowParallelLinear",
}  # fmt: skip


def large() -> tuple[Verdict, Details]:
    """Of 32 layers and 1,000 tokens, whose errors are noise: nothing compresses less."""
    noise = np.random.default_rng(7)
    sites = {"model.embed_tokens": "VocabParallelEmbedding"}
    sites |= {f"model.layers.{n}.{part}": operator for n in range(LAYERS) for part, operator in PARTS.items()}
    sites |= {"model.norm": "RMSNorm", "lm_head": "LogitsProcessor", "sampler": "Sampler"}
    keys = np.array([(0, 0, position) for position in range(POSITIONS)])
    scale = Scale(keys, 1536)
    maps = ErrorMap(scale, ("out",)), ErrorMap(scale, ("in",))
    for site in sites:
        for each, side in zip(maps, ("out", "in"), strict=True):
            key = TableKey(site, side, 0)
            each.compared(key, np.arange(POSITIONS))
            ratio = 10 ** noise.normal(-1, 0.7, POSITIONS)
            each.differ(key, keys, ratio, ratio > 1)
    metrics = Metrics(0.5, 1.5, 0.02, 0.1, 3.0, 0.01, 0, Worst(0, 0, 3, 4, 1.0, 1.1, 0))
    tolerance = Tolerance(4.0, 4.0, "bfloat16")
    verdict = Verdict(
        verdict="diverged", mode="injected", cause="rounding", reasons=("Greedy tokens differ.",),
        golden=Source({"name": "v0"}, "golden.trace", "1" * 32),
        candidate=Source({"name": "v1"}, "new.trace", "2" * 32),
        operators=tuple(
            OperatorFinding(site, operator, "rounding", 1000, POSITIONS, metrics, 0, tolerance)
            for site, operator in sites.items()
        ),
        edges=tuple(
            EdgeFinding(site, 0, "rounding", POSITIONS, metrics, operator, tolerance)
            for site, operator in sites.items()
        ),
        tokens=TokenFinding(POSITIONS, None, 0.04, 0.01, POSITIONS),
    )  # fmt: skip
    tokens = tuple(noise.integers(0, 32000, POSITIONS + 1).tolist())
    generation = Generation(((tokens[0],),), (True,), {(0, 0): tokens}, {}, (None,), ({},))
    chosen = np.array(tokens[1:], np.int64)
    places = Places(
        np.array([(0, 0, n + 1) for n in range(POSITIONS)]), (chosen, chosen), (chosen, chosen),
        (noise.normal(size=POSITIONS), noise.normal(size=POSITIONS)), np.ones(POSITIONS, bool),
    )  # fmt: skip
    steps = np.arange(POSITIONS)
    return verdict, Details(
        pass_name="injected", scale=scale, outputs=maps[0], inputs=maps[1], sites=tuple(sites),
        steps=(steps, steps), inherited=dict.fromkeys(sites, metrics),
        digests={site: [Digests(0, "0" * 16, "1" * 16, 1)] for site in sites},
        generated=Generated(generation, generation, places, True),
    )  # fmt: skip
