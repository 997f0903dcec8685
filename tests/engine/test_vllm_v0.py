"""Real vLLM 0.8.5 with its V0 engine: recorded without changing a bit, and as a candidate."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from engine_support import Engines, Running, greedy, token_ids

from tracereplay.trace import Trace
from tracereplay.workload import Prompt, Workload

pytestmark = pytest.mark.engine

WORKLOADS: dict[str, Sequence[Prompt]] = {
    "several lengths": greedy(20, 7, 33, 12),
    "prompt logprobs": greedy(20, 40, prompt_logprobs=1),
    "two seeded samples of a prompt": [
        Prompt(
            token_ids(20),
            None,
            {
                "n": 2,
                "temperature": 0.8,
                "top_p": 0.9,
                "seed": 7,
                "max_tokens": 8,
                "logprobs": 1,
                "ignore_eos": True,
            },
        ),
        *greedy(9),
    ],
}


@pytest.fixture
def v0(engines: Engines) -> Running:
    return engines.start("v0")


@pytest.mark.parametrize("name", WORKLOADS)
def test_recording_changes_no_bit_and_a_replay_matches(v0: Running, name: str) -> None:
    prompts = WORKLOADS[name]
    plain = v0.generate(*prompts)
    golden = v0.record(*prompts)
    recorded = golden.results["record"]["requests"]
    for key in ("token_ids", "logprobs", "prompt_logprobs"):
        assert [r[key] for r in recorded] == [p[key] for p in plain]
    verdict = v0.verdict(golden).as_dict()
    assert verdict["verdict"] == "match"
    assert {o["class"] for o in verdict["operators"]} == {"identical"}


def test_the_committed_golden_trace_is_what_this_engine_records(v0: Running, golden_v0: Trace) -> None:
    again = v0.record(*Workload.from_dict(golden_v0.run["workload"]).prompts)
    assert again.results["record"]["requests"] == golden_v0.results["record"]["requests"]


def test_a_v1_golden_replays_under_v0(v0: Running, recordings: dict[str, Trace]) -> None:
    if "v1" not in recordings:
        pytest.skip("the V1 golden is recorded by test_v1.py; run the whole folder")
    verdict = v0.verdict(recordings["v1"]).as_dict()
    assert verdict["first_divergence"] is None
    linears = [o for o in verdict["operators"] if o["operator"].endswith("Linear")]
    assert {o["class"] for o in linears} == {"identical"}
    assert (verdict["verdict"], verdict["cause"]) == ("diverged", "rounding")
