"""Models of many architectures: an engine matches itself, between engines every call is compared, and a fault that
is planted in a place that few architectures have is named there.

CI runs a few families that differ in kind. All of them, in half an hour:

    TRACEREPLAY_ZOO=all pytest tests/engine/test_zoo.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from engine_support import FAULTS, ROOT, Engines, Running, greedy

from tracereplay.census import Census
from tracereplay.comparator import Policy, compare_traces
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict

sys.path.insert(0, str(ROOT / "fixtures"))
from families import FAMILIES
from make_random_model import PRESETS, write_model

pytestmark = pytest.mark.engine

ALL = os.environ.get("TRACEREPLAY_ZOO") == "all"
# In CI: latent attention that hands its operators down, a state space, experts and sinks.
ITSELF = ("deepseek_v3", "mamba2", "gpt_oss")
# Native in one engine and a model of transformers in the other.
ACROSS = ("phi",)

# LongRoPE: 0.8.5 takes the long factors where a step needs them, 0.32.0 always if `max_model_len` may.
# DeepSeek: the CPU kernel takes the wrong stride of keys that are a part of a wider tensor.
# Gemma 2 and 3: 0.8.5's attention on a CPU has a window in every layer, and leaves the cap on logits out.
DIFFERENT = {
    "phi3_longrope": {"rotary_emb"}, "deepseek_v3_dense": {"rotary_emb"}, "gemma2": {"attn"}, "gemma3": {"attn"},
}  # fmt: skip
# Models of transformers compute cosines once for all layers and rotate between operators, and multiply gate and up
# there too. Latent attention takes no expanded keys and values.
NO_COUNTERPART = {
    "gpt_neox": {"rotary_emb"}, "phi": {"rotary_emb"}, "starcoder2": {"rotary_emb"},
    "olmo2": {"rotary_emb"}, "glm": {"rotary_emb", "act_fn"}, "deepseek_v3_dense": {"attn", "kv_b_proj"},
}  # fmt: skip

# By family, faults of `faults/` and where each of them is.
PLANTED = {
    "qwen3": {
        "slight_q_norm": "model.layers.1.self_attn.q_norm", "q_norm_epsilon": "model.layers.1.self_attn.q_norm",
    },
    "gemma3": {"slight_q_norm": "model.layers.1.self_attn.q_norm"},
    "qwen3_moe": {
        "slight_q_norm": "model.layers.1.self_attn.q_norm", "slight_experts": "model.layers.1.mlp.experts",
    },
    "gemma2": {"no_cap": "model.layers.1.self_attn.attn"},
    "gpt_neox": {"quick_gelu": "model.layers.1.mlp.act"},
    "phi": {"quick_gelu_of_phi": "model.layers.1.mlp.activation_fn"},
    "phi3_longrope": {"short_factors": "model.layers.1.self_attn.rotary_emb"},
    "qwen2_moe": {"slight_experts": "model.layers.1.mlp.experts"},
    "deepseek_v3": {
        "slight_query": "model.layers.1.self_attn.q_b_proj",
        "slight_latent": "model.layers.1.self_attn.fused_qkv_a_proj",
    },
    "mamba2": {"slower_decay": "backbone.layers.1.mixer", "skipped_input": "backbone.layers.1.mixer"},
    "gpt_oss": {"slight_experts": "model.layers.1.mlp.experts"},
}  # fmt: skip

# GELU and its approximation by tanh lie 0.0005 apart at most: a rounding, in bfloat16. The place is seen, and
# blamed where every bit must match.
WITHIN_ROUNDING = {
    "gpt_neox": {"tanh_gelu": "model.layers.1.mlp.act"},
    "phi": {"exact_gelu": "model.layers.1.mlp.activation_fn"},
}

PROMPTS = greedy(24, 9, 1, max_tokens=6)
# Tokens and logprobs of these random models may differ where operators only round differently.
LOOSE = Policy(logprob_max_abs=1.0, differing_tokens=18)
STRICT = Policy().made_strict()


def families(some: tuple[str, ...], engines: tuple[str, ...]) -> list[str]:
    """Those of the table that run on all of ``engines``, or ``some`` of them."""
    return [name for name, family in FAMILIES.items() if set(engines) <= set(family.on)] if ALL else list(some)


def model_of(name: str, folder: Path) -> Path:
    write_model(name, folder / name, PRESETS["zoo"])
    return folder / name


def silent(trace: Trace) -> set[str]:
    """Last parts of the names of operators that did not run."""
    notes = [note for step in trace.steps("record") for note in step.notes]
    return {note.split(" ")[0].rpartition(".")[2] for note in notes if "did not run" in note}


def unobserved(side: Census | None) -> set[str]:
    """Modules that compute, or whose parameters are used, in no operator: the last parts of their names.

    What is used between operators (Gemma's normaliser) shows at the input of the next one.
    """
    assert side is not None
    between = {row.module for row in side.between}
    left = [p.name.rpartition(".")[0] for p in side.parameters if not p.users or not between.issuperset(p.users)]
    return {name.rpartition(".")[2] for name in (*left, *(row.module for row in side.unobserved))}


@dataclass(frozen=True)
class Case:
    """V1 that runs a family's model, and a recording of it: its own, or V0's."""

    name: str
    running: Running
    golden: Trace


@pytest.fixture(scope="module", params=families(ITSELF, ("v1",)))
def own(
    request: pytest.FixtureRequest, engines: Engines, v1_of: Callable[[Path], Running],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:  # fmt: skip
    running = v1_of(model_of(request.param, tmp_path_factory.mktemp("own")))
    return Case(request.param, running, running.record(*PROMPTS))


@pytest.fixture(scope="module", params=families(ACROSS, ("v0", "v1")))
def across(
    request: pytest.FixtureRequest, engines: Engines, v1_of: Callable[[Path], Running],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:  # fmt: skip
    model = model_of(request.param, tmp_path_factory.mktemp("across"))
    golden = engines.start("v0", model, {"VLLM_MLA_DISABLE": "1"}).record(*PROMPTS)
    return Case(request.param, v1_of(model), golden)


@pytest.fixture(scope="module")
def v1_of(engines: Engines, single_process: Mapping[str, str], fault_file: Path) -> Callable[[Path], Running]:
    """Starts V1 with a model of a family, and with faults that can be planted."""
    faults = {
        "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file), "TRACEREPLAY_TEST_FAULT_FAMILY": "1",
    }  # fmt: skip
    return lambda model: engines.start("v1", model, {**single_process, **faults})


def test_an_engine_matches_itself_operator_by_operator(own: Case) -> None:
    golden = own.golden
    assert silent(golden) == set()
    verdict = own.running.verdict(golden)
    assert verdict.verdict == "match", verdict.reasons
    assert [(o.site, o.error_class) for o in verdict.operators if o.error_class != "identical"] == []
    assert verdict.tokens.differing == 0
    assert verdict.coverage.not_compared == ()
    assert verdict.coverage.share == 1.0
    for side in (verdict.coverage.census.golden, verdict.coverage.census.candidate):
        assert unobserved(side) == set()


def named(verdict: Verdict) -> set[str]:
    """What a verdict blames: its first divergence, and all that is out of tolerance."""
    first = verdict.first_divergence
    places = {o.site for o in verdict.operators if o.error_class not in ("identical", "rounding")}
    places |= {f"into {e.site}" for e in verdict.edges if e.error_class not in ("identical", "rounding")}
    return places | ({first.site} if first is not None else set())


def test_a_planted_fault_is_named_where_it_is_and_nowhere_else(own: Case, plant: Callable[[str], None]) -> None:
    found = {}
    for fault in PLANTED.get(own.name, {}):
        plant(fault)
        verdict = own.running.verdict(own.golden)
        differing = {o.site for o in verdict.operators if o.error_class != "identical"}
        found[fault] = (verdict.verdict, verdict.cause, named(verdict), differing)
    assert found == {
        fault: ("diverged", "operator", {site}, {site}) for fault, site in PLANTED.get(own.name, {}).items()
    }


def test_a_fault_within_rounding_is_seen_where_it_is_and_named_where_bits_must_match(
    own: Case, plant: Callable[[str], None]
) -> None:
    found = {}
    for fault in WITHIN_ROUNDING.get(own.name, {}):
        plant(fault)
        candidate = own.running.replay(own.golden)
        verdict, strict = compare_traces(own.golden, candidate), compare_traces(own.golden, candidate, STRICT)
        differing = {(o.site, o.error_class) for o in verdict.operators if o.error_class != "identical"}
        found[fault] = (differing, strict.verdict, named(strict))
    assert found == {
        fault: ({(site, "rounding")}, "diverged", {site})
        for fault, site in WITHIN_ROUNDING.get(own.name, {}).items()
    }


def test_what_both_engines_run_is_compared_whatever_they_call_it(across: Case) -> None:
    name, golden = across.name, across.golden
    verdict = compare_traces(golden, across.running.replay(golden), LOOSE)
    beyond = {o.site for o in verdict.operators if o.error_class in ("exceeds", "nonfinite")}
    assert {site.rpartition(".")[2] for site in beyond} == DIFFERENT.get(name, set())
    assert [e.site for e in verdict.edges if e.error_class in ("exceeds", "nonfinite")] == []
    left_out = {left.site.rpartition(".")[2] for left in verdict.coverage.not_compared}
    assert left_out == NO_COUNTERPART.get(name, set())
    for side in (verdict.coverage.census.golden, verdict.coverage.census.candidate):
        assert unobserved(side) == set()


def test_a_planted_fault_is_named_over_what_the_engines_round_differently(
    across: Case, plant: Callable[[str], None]
) -> None:
    different = DIFFERENT.get(across.name, set())  # there a fault cannot be told from what is different in truth
    planted = {fault: site for fault, site in PLANTED.get(across.name, {}).items() if last(site) not in different}
    found = {}
    for fault in planted:
        plant(fault)
        verdict = compare_traces(across.golden, across.running.replay(across.golden), LOOSE)
        found[fault] = {site for site in named(verdict) if last(site) not in different}
    assert found == {fault: {site} for fault, site in planted.items()}


def last(site: str) -> str:
    return site.rpartition(".")[2]
