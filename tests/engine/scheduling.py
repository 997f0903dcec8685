"""Workloads that a scheduler cuts, batches, caches and samples in different ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine_support import Running, greedy, token_ids

from tracereplay.workload import Prompt


def workloads(**options: Any) -> dict[str, Sequence[Prompt]]:
    """By what they are for; with chunks of 64 tokens, a prompt of 150 takes three.

    Args:
        options: more sampling parameters of the one that is drawn at random.
    """
    drawn = {"n": 2, "temperature": 0.8, "seed": 7, "max_tokens": 8, "logprobs": 1, "ignore_eos": True}
    one = {"max_tokens": 8, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}
    return {
        "several lengths": greedy(20, 7, 33, 12),
        "a prompt of three chunks": greedy(150, 9),
        "prompt logprobs": greedy(20, 40, prompt_logprobs=1),
        "two seeded samples of a prompt": [Prompt(token_ids(20), None, {**drawn, **options}), *greedy(9)],
        "a prefix that is cached": [
            Prompt(token_ids(300), None, one), Prompt(token_ids(280) + token_ids(30, 5), None, one),
        ],
    }  # fmt: skip


def check_repeats(engine: Running, prompts: Sequence[Prompt]) -> None:
    """Recording changes no bit, and the engine's replay of its own recording matches, every operator identical."""
    plain = engine.generate(*prompts)
    golden = engine.record(*prompts)
    recorded = golden.results["record"]["requests"]
    for key in ("token_ids", "logprobs", "prompt_logprobs"):
        assert [r[key] for r in recorded] == [p[key] for p in plain]
    assert golden.complete
    assert golden.results["record"]["ranks"][0]["errors"] == {}
    found = engine.verdict(golden)
    assert (found.verdict, found.coverage.share) == ("match", 1.0), found.reasons
    verdict = found.as_dict()
    assert {o["class"] for o in verdict["operators"]} == {"identical"}
    assert {e["class"] for e in verdict["edges"]} == {"identical"}
