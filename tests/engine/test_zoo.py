"""Models of many architectures: an engine matches itself, and between engines every call is compared.

CI runs a few families that differ in kind. All of them, in half an hour:

    TRACEREPLAY_ZOO=all pytest tests/engine/test_zoo.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_support import ROOT, Engines, greedy

from tracereplay.census import Census
from tracereplay.comparator import Policy, compare_traces
from tracereplay.trace import Trace

sys.path.insert(0, str(ROOT / "fixtures"))
from families import FAMILIES
from make_random_model import PRESETS, write_model

pytestmark = pytest.mark.engine

ALL = os.environ.get("TRACEREPLAY_ZOO") == "all"
# Latent attention that hands its operators down, a state space, windows and caps, experts beside a shared one,
# sinks.
ITSELF = ("deepseek_v3", "mamba2", "gemma2", "qwen2_moe", "gpt_oss")
# Native in one engine and a model of transformers in the other.
ACROSS = ("phi", "glm")

# LongRoPE: 0.8.5 takes the long factors where a step needs them, 0.32.0 always if `max_model_len` may.
# DeepSeek: the CPU kernel takes the wrong stride of keys that are a part of a wider tensor.
# Gemma 2 and 3: 0.8.5's attention on a CPU has a window in every layer, and leaves the cap on logits out.
DIFFERENT = {
    "phi3_longrope": {"rotary_emb"}, "deepseek_v3_dense": {"rotary_emb"}, "gemma2": {"attn"}, "gemma3": {"attn"},
}  # fmt: skip
# The engine's op for a short convolution takes the weights of a module that nobody calls.
SILENT = {"lfm2": {"conv"}}
UNOBSERVED = {"lfm2": {"conv", "short_conv"}}
# Models of transformers compute cosines once for all layers and rotate between operators, and multiply gate and up
# there too. The checkpoint of GPT-NeoX has q, k and v head by head. Latent attention takes no expanded keys and
# values.
NO_COUNTERPART = {
    "gpt_neox": {"rotary_emb", "query_key_value"}, "phi": {"rotary_emb"}, "starcoder2": {"rotary_emb"},
    "olmo2": {"rotary_emb"}, "glm": {"rotary_emb", "act_fn"}, "deepseek_v3_dense": {"attn", "kv_b_proj"},
}  # fmt: skip

PROMPTS = greedy(24, 9, 1, max_tokens=6)
# Tokens and logprobs of these random models may differ where operators only round differently.
LOOSE = Policy(logprob_max_abs=1.0, differing_tokens=18)


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


@pytest.mark.parametrize("name", families(ITSELF, ("v1",)))
def test_an_engine_matches_itself_operator_by_operator(
    engines: Engines, single_process: Mapping[str, str], tmp_path: Path, name: str
) -> None:
    running = engines.start("v1", model_of(name, tmp_path), single_process)
    golden = running.record(*PROMPTS)
    assert silent(golden) == SILENT.get(name, set())
    verdict = running.verdict(golden)
    assert verdict.verdict == "match", verdict.reasons
    assert [(o.site, o.error_class) for o in verdict.operators if o.error_class != "identical"] == []
    assert verdict.tokens.differing == 0
    assert verdict.coverage.not_compared == ()
    assert verdict.coverage.share == 1.0
    for side in (verdict.coverage.census.golden, verdict.coverage.census.candidate):
        assert unobserved(side) == UNOBSERVED.get(name, set())


@pytest.mark.parametrize("name", families(ACROSS, ("v0", "v1")))
def test_what_both_engines_run_is_compared_whatever_they_call_it(
    engines: Engines, single_process: Mapping[str, str], tmp_path: Path, name: str
) -> None:
    model = model_of(name, tmp_path)
    golden = engines.start("v0", model, {"VLLM_MLA_DISABLE": "1"}).record(*PROMPTS)
    candidate = engines.start("v1", model, single_process).replay(golden)
    verdict = compare_traces(golden, candidate, LOOSE)
    beyond = {o.site for o in verdict.operators if o.error_class in ("exceeds", "nonfinite")}
    assert {site.rpartition(".")[2] for site in beyond} == DIFFERENT.get(name, set())
    assert [e.site for e in verdict.edges if e.error_class in ("exceeds", "nonfinite")] == []
    left_out = {left.site.rpartition(".")[2] for left in verdict.coverage.not_compared}
    assert left_out == NO_COUNTERPART.get(name, set())
    for side in (verdict.coverage.census.golden, verdict.coverage.census.candidate):
        assert unobserved(side) == set()
