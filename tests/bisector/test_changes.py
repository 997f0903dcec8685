"""Which settings differ, how each is given golden's value, and what cannot be changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tracereplay.bisector.changes import Told, configured, differences
from tracereplay.launch import Configured


def run(
    given: Mapping[str, Any] | None = None,
    resolved: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Told:
    """What a trace tells."""
    return Told(dict(given or {}), dict(resolved or {}), dict(environment or {}))


def engine(env: Mapping[str, str] | None = None) -> Configured:
    return Configured("v1", Path("python"), dict(env or {}), {})


def test_what_was_given_comes_before_defaults_that_differ() -> None:
    golden = run({"enforce_eager": True}, {"enforce_eager": True, "custom_ops": ["all"], "block_size": 16})
    theirs = run({"enforce_eager": False}, {"enforce_eager": False, "custom_ops": ["none"], "block_size": 128})
    changes, skipped = differences(golden, theirs, engine(), {"enforce_eager": False})
    assert [(c.name, c.value, c.given) for c in changes] == [
        ("enforce_eager", True, True), ("block_size", 16, False), ("custom_ops", ["all"], False),
    ]  # fmt: skip
    assert skipped == []


def test_an_argument_that_golden_did_not_have_gets_the_value_that_was_resolved_or_goes() -> None:
    golden, theirs = run({}, {"dtype": "bfloat16"}), run({}, {"dtype": "float16"})
    arguments = {"dtype": "float16", "quantization": "fp8"}
    changes, _ = differences(golden, theirs, engine(), arguments)
    assert {c.name: c.argument for c in changes} == {
        "dtype": '--set dtype="bfloat16"', "quantization": "no --set quantization",
    }  # fmt: skip
    assert configured(engine(), arguments, changes).settings == {"dtype": "bfloat16"}


def test_a_setting_that_is_a_key_of_an_argument_is_laid_into_it() -> None:
    golden, theirs = run({}, {"head_dtype": "float32"}), run({}, {"head_dtype": "bfloat16"})
    arguments = {"hf_overrides": {"rope_theta": 1.0}}
    changes, _ = differences(golden, theirs, engine(), {})
    assert [c.argument for c in changes] == ['--set hf_overrides={"head_dtype":"float32"}']
    settings = configured(engine(), arguments, changes).settings
    assert settings == {"hf_overrides": {"rope_theta": 1.0, "head_dtype": "float32"}}
    assert arguments == {"hf_overrides": {"rope_theta": 1.0}}


def test_what_follows_from_the_engine_is_skipped_and_what_changes_nothing_is_not_mentioned() -> None:
    golden = run({"load_format": "auto"}, {"engine_generation": "V0", "load_format": "AUTO"})
    theirs = run({"load_format": "dummy"}, {"engine_generation": "V1", "load_format": "DUMMY"})
    changes, skipped = differences(golden, theirs, engine(), {"load_format": "dummy"})
    assert changes == []
    assert [s.name for s in skipped] == ["engine_generation"]


def test_variables_are_set_unset_or_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_IN_THE_SHELL", "2")
    golden = run(environment={"VLLM_FLASH_ATTN_VERSION": "1", "VLLM_IN_THE_SHELL": "1"})
    theirs = run(environment={"VLLM_UNWANTED": "1", "VLLM_IN_THE_SHELL": "2", "NCCL_OF_THE_ENGINE": "0"})
    candidate = engine({"VLLM_UNWANTED": "1"})
    changes, skipped = differences(golden, theirs, candidate, {})
    assert {c.argument for c in changes} == {"env VLLM_FLASH_ATTN_VERSION=1", "env -u VLLM_UNWANTED"}
    assert configured(candidate, {}, changes).env == {"VLLM_FLASH_ATTN_VERSION": "1"}
    assert {s.name: s.reason for s in skipped} == {
        "environment.VLLM_IN_THE_SHELL": "it is set in the shell, which takes precedence",
        "environment.NCCL_OF_THE_ENGINE": "the engine sets it itself",
    }
