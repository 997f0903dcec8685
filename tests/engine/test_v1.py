"""Real vLLM V1 (0.32.0, eager, one process): recording, replaying, and planted faults named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_support import Running

from tracereplay.trace import Trace

pytestmark = pytest.mark.engine

# fault -> (kind, site, input of the edge); what is inside an operator is that operator's error
PLACES = {
    "scale": ("operator", "model.layers.1.input_layernorm"),
    "five_sigma": ("operator", "model.layers.3.mlp.down_proj"),
    "epsilon": ("operator", "model.layers.2.post_attention_layernorm"),
    "late_positions": ("operator", "model.layers.1.self_attn.rotary_emb"),
    "stale_key": ("operator", "model.layers.2.self_attn.attn"),
    "late_nan": ("operator", "model.layers.4.self_attn.o_proj"),
    "wrong_row": ("operator", "model.embed_tokens"),
    "rounded_logits": ("operator", "logits_processor"),
    "other_activation": ("operator", "model.layers.3.mlp.act_fn"),
    "soft_attention": ("operator", "model.layers.3.self_attn.attn"),
    "biased_keys": ("operator", "model.layers.0.self_attn.qkv_proj"),
    "coarse_weights": ("operator", "model.layers.2.mlp.gate_up_proj"),
    "final_norm": ("operator", "model.norm"),
    "second_choice": ("operator", "sampler"),
    # every error is below tolerance, and all lean one way
    "slight_product": ("operator", "model.layers.3.self_attn.o_proj"),
    "truncated_product": ("operator", "model.layers.1.mlp.down_proj"),
    "short_norm": ("operator", "model.layers.3.post_attention_layernorm"),
    # what attention gave arrives wrongly at the next norm
    "scaled_residual": ("edge", "model.layers.2.post_attention_layernorm"),
    # positions first arrive at the first rotary embedding
    "shifted_positions": ("edge", "model.layers.0.self_attn.rotary_emb"),
    # the layer that runs in the first place is the other one, which gets what was not meant for it
    "swapped_layers": ("edge", "model.layers.1.input_layernorm"),
}
BELOW_TOLERANCE = ("slight_product", "truncated_product", "short_norm")


def test_v0_to_v1_names_rounding_and_where_tokens_part(v1: Running, golden_v0: Trace) -> None:
    verdict = v1.verdict(golden_v0).as_dict()
    classes = {}
    for operator in verdict["operators"]:
        classes.setdefault(operator["operator"], set()).add(operator["class"])
    for linear in (
        "QKVParallelLinear",
        "RowParallelLinear",
        "MergedColumnParallelLinear",
        "VocabParallelEmbedding",
    ):
        assert classes[linear] == {"identical"}
    assert classes["RMSNorm"] == {"rounding"}
    assert {e["class"] for e in verdict["edges"]} == {"identical"}
    worst = max(verdict["operators"], key=lambda o: o["metrics"]["allowance_ratio"])
    assert worst["operator"] == "RMSNorm"
    assert verdict["first_divergence"] is None
    assert (verdict["verdict"], verdict["cause"]) == ("diverged", "rounding")
    parted = verdict["tokens"]["first_divergence"]
    assert parted is not None
    assert parted["golden"] != parted["candidate"]
    assert verdict["coverage"]["compared_calls"] == verdict["coverage"]["golden_calls"]


def test_the_same_version_matches_with_every_operator_identical(v1: Running, golden_v1: Trace) -> None:
    verdict = v1.verdict(golden_v1).as_dict()
    assert verdict["verdict"] == "match"
    assert {o["class"] for o in verdict["operators"]} == {"identical"}
    assert {e["class"] for e in verdict["edges"]} == {"identical"}
    assert verdict["tokens"]["logprob_abs_diff"]["max"] == 0


@pytest.mark.parametrize("fault", PLACES)
def test_a_fault_is_named_at_its_exact_place_and_nowhere_else(
    v1: Running, golden_v1: Trace, plant: Callable[[str], None], fault: str
) -> None:
    plant(fault)
    verdict = v1.verdict(golden_v1).as_dict()
    assert verdict["verdict"] == "diverged"
    first = verdict["first_divergence"]
    assert (first["kind"], first["site"]) == PLACES[fault]
    assert (first["class"] == "biased") == (fault in BELOW_TOLERANCE)
    guilty = {o["site"] for o in verdict["operators"] if o["class"] not in ("identical", "incomparable")}
    assert guilty == ({PLACES[fault][1]} if PLACES[fault][0] == "operator" else set())


@pytest.mark.parametrize("fault", PLACES)
def test_a_fault_is_named_among_the_honest_differences_to_v0(
    v1: Running, golden_v0: Trace, plant: Callable[[str], None], fault: str
) -> None:
    plant(fault)
    verdict = v1.verdict(golden_v0).as_dict()
    assert verdict["verdict"] == "diverged"
    first = verdict["first_divergence"]
    assert (first["kind"], first["site"]) == PLACES[fault]
    assert (first["class"] == "biased") == (fault in BELOW_TOLERANCE)
