"""Real vLLM 0.8.5 with its V0 engine: recorded without changing a bit, and as a candidate."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from engine_support import Running, greedy, token_ids

from tracereplay.trace import Trace
from tracereplay.workload import Prompt

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


def test_the_committed_golden_trace_is_what_this_engine_records(v0: Running, committed: Trace) -> None:
    """To the bit where the processor has the same vector instructions; elsewhere kernels sum in another order."""
    verdict = v0.verdict(committed).as_dict()
    assert verdict["first_divergence"] is None
    assert {e["class"] for e in verdict["edges"]} == {"identical"}
    if v0.process.info["device"] == committed.run.engine["device"]:
        assert verdict["verdict"] == "match"
        assert {o["class"] for o in verdict["operators"]} == {"identical"}
