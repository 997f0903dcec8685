"""Real vLLM V1 with small chunks: what batches, chunks, caches and samples do to rows; recording, to numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from engine_support import Engines, Running, greedy
from scheduling import check_repeats, workloads

pytestmark = pytest.mark.engine

WORKLOADS = workloads(top_p=0.9)


@pytest.fixture(scope="module")
def small_chunks(engines: Engines, single_process: Mapping[str, str]) -> Running:
    """Chunks of 64 tokens, so that longer prompts span several steps; blocks of 128 tokens can be cached."""
    return engines.start("v1", env=single_process, max_num_batched_tokens=64, max_model_len=1024)


@pytest.mark.parametrize("name", WORKLOADS)
def test_recording_changes_no_bit_and_a_replay_matches(small_chunks: Running, name: str) -> None:
    check_repeats(small_chunks, WORKLOADS[name])


def test_a_long_prompt_really_spans_steps(small_chunks: Running) -> None:
    golden = small_chunks.record(*greedy(150, 9))
    steps = [s for s in golden.steps("record") if any(r == 0 and p < 150 for r, _, p in s.rows.tolist())]
    assert len(steps) >= 3


def test_a_shared_prefix_is_really_cached_and_its_rows_are_found_by_prefix(small_chunks: Running) -> None:
    golden = small_chunks.record(*WORKLOADS["a prefix that is cached"])
    assert golden.results["record"]["requests"][1]["num_cached_tokens"] >= 128
    computed = {tuple(row) for s in golden.steps("record") for row in s.rows.tolist()}
    assert (1, 0, 0) not in computed  # the cache gave it
