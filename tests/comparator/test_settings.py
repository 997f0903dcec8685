"""Which settings differ, and what that can change."""

from __future__ import annotations

from typing import Any

import pytest

from tracereplay.comparator.settings import compare_settings, effect_of, explains
from tracereplay.trace.run import Run
from tracereplay.verdict import SettingDifference


def run(weights: str = "w", versions: dict[str, str] | None = None, **settings: Any) -> Run:
    engine = {"versions": versions or {"vllm": "1"}, "settings": settings, "device": "cpu", "environment": {}}
    return Run(engine=engine, weights=weights)


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


def test_equal_runs_do_not_differ() -> None:
    assert compare_settings(run(dtype="float16"), run(dtype="float16")) == ()
    assert compare_settings(Run(), Run()) == ()


def test_only_a_semantic_setting_explains_an_operator() -> None:
    def differs(name: str) -> SettingDifference:
        return SettingDifference(name, 1, 2, effect_of(name))

    assert explains(differs("logprobs_mode"), "Sampler")
    assert not explains(differs("logprobs_mode"), "RMSNorm")
    assert not explains(differs("attention_backend"), "Attention")
