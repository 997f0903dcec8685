"""Between versions of vLLM: the seed of this project (0.8.5 to 0.18.1), and one release to the next."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from engine_support import Engines, Running, prompts_of

from tracereplay.trace import Trace

pytestmark = pytest.mark.engine


def test_v0_to_0_18_is_rounding(engines: Engines, golden_v0: Trace, single_process: Mapping[str, str]) -> None:
    verdict = engines.start("v1-0.18", env=single_process).verdict(golden_v0).as_dict()
    assert verdict["first_divergence"] is None
    linears = [o for o in verdict["operators"] if o["operator"].endswith("Linear")]
    assert {o["class"] for o in linears} == {"identical"}
    assert (verdict["verdict"], verdict["cause"]) == ("diverged", "rounding")


def test_a_v1_golden_replays_under_v0(golden_v1: Trace, v0: Running) -> None:
    verdict = v0.verdict(golden_v1).as_dict()
    assert verdict["first_divergence"] is None
    linears = [o for o in verdict["operators"] if o["operator"].endswith("Linear")]
    assert {o["class"] for o in linears} == {"identical"}
    assert (verdict["verdict"], verdict["cause"]) == ("diverged", "rounding")


def test_0_31_to_0_32_matches(engines: Engines, committed: Trace, single_process: Mapping[str, str]) -> None:
    prompts = prompts_of(committed)
    golden = engines.start("v1-0.31", env=single_process).record(*prompts)
    verdict = engines.start("v1", env=single_process).verdict(golden).as_dict()
    assert verdict["verdict"] == "match"
    assert verdict["coverage"]["compared_calls"] == verdict["coverage"]["golden_calls"]
    versions = {d["name"]: (d["golden"], d["candidate"]) for d in verdict["settings_diff"]}
    assert versions["versions.vllm"] == ("0.31.0", "0.32.0")
