"""Which settings differ, and what that can change."""

from __future__ import annotations

from typing import Any

import pytest

from tracereplay.comparator.judging.settings import compare_settings, effect_of, explains
from tracereplay.comparator.kernels.compiled import compilation_of
from tracereplay.trace.run import Asked, Requested, Run
from tracereplay.verdict import SettingDifference


def run(
    weights: str | None = "w", versions: dict[str, str] | None = None, given: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None, **settings: Any,
) -> Run:  # fmt: skip
    engine = {"versions": versions or {"vllm": "1"}, "settings": settings, "device": "cpu", "environment": {}}
    described = engine if config is None else {**engine, "model_config": config}
    return Run(engine=described, weights=weights, requested=Requested(Asked("model", given or {}, ())))


def differ(golden: Run, candidate: Run) -> list[tuple[str, str]]:
    return [(d.name, d.effect) for d in compare_settings(golden, candidate)]


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("weights", "semantic"), ("logprobs_mode", "semantic"), ("dtype", "numeric"),
        ("kv_cache_dtype", "semantic"),
        ("versions.vllm", "numeric"), ("versions.python", "none"), ("attention_backend", "numeric"),
        ("enforce_eager", "numeric"), ("gpu_memory_utilization", "none"), ("max_num_batched_tokens", "numeric"),
        ("environment.OMP_NUM_THREADS", "numeric"), ("environment.VLLM_CACHE_ROOT", "none"),
        ("new_thing", "unknown"),
    ],
)  # fmt: skip
def test_effects_come_from_the_table(name: str, effect: str) -> None:
    assert effect_of(name) == effect


def test_what_changes_meaning_is_said_first() -> None:
    found = compare_settings(
        run("a", {"vllm": "0.8.5"}, dtype="bfloat16", logprobs_mode="raw_logprobs", swap_space=4),
        run("b", {"vllm": "0.32.0"}, dtype="bfloat16", logprobs_mode="processed_logprobs", unheard_of=1),
    )
    assert [(d.name, d.effect) for d in found] == [
        ("weights", "semantic"),
        ("logprobs_mode", "semantic"),
        ("versions.vllm", "numeric"),
        ("unheard_of", "unknown"),
        ("swap_space", "none"),
    ]
    assert (found[3].golden, found[3].candidate) == (None, 1)


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"enforce_eager": False, "compilation_mode": "DYNAMO_TRACE_ONCE"}, "compilation_mode DYNAMO_TRACE_ONCE"),
        ({"enforce_eager": False, "compilation_mode": 3}, "compilation_mode 3"),
        ({"enforce_eager": False, "compilation_mode": 0}, None),  # V0 without a compiler: CUDA graphs at most
        ({"enforce_eager": False, "compilation_mode": "NONE"}, None),
        ({"enforce_eager": True, "compilation_mode": 3}, None),
        ({}, None),
    ],
)
def test_a_compiled_engine_is_known_by_its_settings(settings: dict[str, Any], mode: str | None) -> None:
    assert compilation_of(run(**settings)) == mode
    assert compilation_of(Run()) is None


def test_equal_runs_do_not_differ() -> None:
    assert compare_settings(run(dtype="float16"), run(dtype="float16")) == ()
    assert compare_settings(Run(), Run()) == ()


def test_only_a_semantic_setting_explains_an_operator() -> None:
    def differs(name: str) -> SettingDifference:
        return SettingDifference(name, 1, 2, effect_of(name))

    assert explains(differs("logprobs_mode"), "sampler")
    assert not explains(differs("logprobs_mode"), "norm")
    assert not explains(differs("attention_backend"), "attention")
    assert not explains(differs("logprobs_mode"), "sampler", 0)  # which token is chosen
    assert explains(differs("logprobs_mode"), "sampler", 1)


def test_a_dtype_rounds_otherwise_and_explains_everything() -> None:
    dtype = SettingDifference("dtype", "float32", "bfloat16", "numeric")
    assert explains(dtype, "attention")
    assert explains(dtype, "", edge=True)
    fp8 = SettingDifference("quantization", None, "fp8", "semantic")
    assert explains(fp8, "linear")
    assert not explains(fp8, "linear", edge=True)


def test_one_value_under_two_names_is_no_difference() -> None:
    auto, said = run(dtype="bfloat16", kv_cache_dtype="auto"), run(dtype="bfloat16", kv_cache_dtype="bfloat16")
    assert differ(auto, said) == []
    assert differ(auto, run(dtype="bfloat16", kv_cache_dtype="fp8")) == [("kv_cache_dtype", "semantic")]
    assert differ(run(kv_cache_dtype="fp8"), run(kv_cache_dtype="fp8_e4m3")) == []
    both = run(dtype="float32", kv_cache_dtype="auto"), run(dtype="bfloat16", kv_cache_dtype="auto")
    assert differ(*both) == [("dtype", "numeric")]


def test_another_kernel_for_the_same_format_rounds_otherwise() -> None:
    assert differ(run(quantization="awq"), run(quantization="awq_marlin")) == [("quantization", "numeric")]
    assert differ(run(quantization="awq"), run(quantization="gptq_marlin")) == [("quantization", "semantic")]
    assert differ(run(), run(quantization="fp8")) == [("quantization", "semantic")]


@pytest.mark.parametrize("name", ["dtype", "kv_cache_dtype", "architecture"])
def test_nothing_follows_from_what_one_side_does_not_state(name: str) -> None:
    assert differ(run(), run(**{name: "x"})) == [(name, "unknown")]
    assert not explains(SettingDifference(name, None, "x", "unknown"), "norm")
    assert differ(run(weights=None), run()) == [("weights", "unknown")]


def test_the_length_matters_only_where_rotary_embeddings_are_scaled_by_it() -> None:
    def at(length: int, **config: Any) -> dict[str, Any]:
        return run(config={"hidden_size": 64, **config}, max_model_len=length)

    assert differ(at(512), at(2048)) == [("max_model_len", "numeric")]
    scaled = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    assert differ(at(512, **scaled), at(2048, **scaled)) == [("max_model_len", "semantic")]
    assert differ(run(max_model_len=1), run(max_model_len=2)) == [("max_model_len", "semantic")]  # not described


def test_the_models_configuration_is_compared_by_its_keys() -> None:
    mine = {"num_hidden_layers": 4, "rope_theta": 1e4, "eos_token_id": 2}
    theirs = {"num_hidden_layers": 3, "rope_theta": 1e6, "eos_token_id": 3}
    found = compare_settings(run(config=mine), run(config=theirs))
    assert [(d.name, d.effect) for d in found] == [
        ("model_config.rope_theta", "semantic"),
        ("model_config.num_hidden_layers", "semantic"),
        ("model_config.eos_token_id", "none"),
    ]
    rope, layers, _ = found
    assert explains(rope, "rotary")
    assert not explains(rope, "norm")
    assert explains(layers, "norm", edge=True)
    assert differ(run(), run(config=theirs)) == []  # recorded before models were described


def test_arguments_that_no_engine_describes_are_read_as_they_were_given() -> None:
    found = differ(
        run(), run(given={"hf_overrides": {"rope_theta": 5}, "gpu_memory_utilization": 0.5, "device": "x"})
    )
    assert found == [("hf_overrides.rope_theta", "semantic")]


def test_what_is_laid_over_a_models_configuration_explains_what_its_keys_do() -> None:
    def overridden(**keys: Any) -> SettingDifference:
        (found,) = compare_settings(run(), run(hf_overrides=keys))
        return found

    resolved = Run(engine={**run().engine, "hf_overrides": {"scale": 2}}, weights="w")  # as an engine describes it
    assert differ(run(given={"hf_overrides": {"scale": 2}}), resolved) == []
    head, rope, unknown = overridden(head_dtype="float32"), overridden(rope_theta=5), overridden(scale=2)
    assert (head.name, head.effect) == ("hf_overrides.head_dtype", "numeric")
    assert not explains(head, "norm")
    assert (explains(rope, "rotary"), explains(rope, "norm")) == (True, False)
    assert explains(unknown, "norm")


def resolved_run(fields: dict[str, Any], given: dict[str, Any] | None = None, **settings: Any) -> Run:
    found = run(given=given, **settings)
    return Run(engine={**found.engine, "resolved": fields}, weights=found.weights, requested=found.requested)


def test_every_field_that_both_engines_resolved_otherwise_is_listed() -> None:
    golden = resolved_run({"moe_backend": "auto", "seldom": 1, "mode": "NONE"}, dtype="bfloat16")
    candidate = resolved_run({"moe_backend": "triton", "of_newer_releases": 1, "mode": "none"}, dtype="bfloat16")
    assert differ(golden, candidate) == [("moe_backend", "unknown")]
    assert differ(golden, run(dtype="bfloat16")) == []  # a trace of before they were kept


def test_an_argument_whose_result_is_nowhere_stated_is_listed() -> None:
    golden = resolved_run({"block_size": 16}, given={"block_size": 16, "unheard_of": 1})
    candidate = resolved_run({"block_size": 16})
    assert differ(golden, candidate) == [("unheard_of", "unknown")]


def test_what_a_server_was_given_is_no_difference_from_a_replay_that_is_asked_for_it() -> None:
    found = resolved_run({"block_size": 16})
    given = {"unheard_of": 1, "host": "h", "config": {"asked": 1, "filled_in": 2}}
    golden = Run(engine={**found.engine, "arguments": given}, weights="w")
    for value, differences in ((1, []), (2, [("unheard_of", "unknown")])):
        asked = {"unheard_of": value, "config": {"asked": 1}}
        assert differ(golden, resolved_run({"block_size": 16}, given=asked)) == differences
