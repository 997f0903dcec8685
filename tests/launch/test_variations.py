"""Variations are the opposite of what golden had, and what cannot be varied is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tracereplay.errors import UsageError
from tracereplay.launch import Configured
from tracereplay.launch.variations import NAMES, Variation, named_variation
from tracereplay.trace.run import RecordedPrompt, Run

ENGINE = Configured("v1", Path("python"), {"OMP_NUM_THREADS": "1", "X": "y"}, {"dtype": "float32"})


def golden(threads: int = 1, lengths: Sequence[int] = (31, 10, 24), **settings: Any) -> Run:
    prompts = tuple(RecordedPrompt(tuple(range(n)), None, {}) for n in lengths)
    return Run(engine={"settings": settings, "threads": threads}, prompts=prompts)


def test_the_batch_variation_runs_requests_alone_or_together() -> None:
    assert named_variation("batch", golden(max_num_seqs=8)).settings == {"max_num_seqs": 1}
    assert named_variation("batch", golden(max_num_seqs=1)).settings == {"max_num_seqs": 3}


def test_the_threads_variation_uses_a_different_number_of_threads() -> None:
    assert named_variation("threads", golden(1)).env == {"OMP_NUM_THREADS": "2"}
    assert named_variation("threads", golden(16)).env == {"OMP_NUM_THREADS": "1"}


def test_the_chunks_variation_cuts_prompts_or_leaves_them_whole() -> None:
    cut = {"enable_chunked_prefill": True, "max_num_batched_tokens": 15, "max_num_seqs": 8}
    assert named_variation("chunks", golden(max_num_batched_tokens=4096, max_num_seqs=8)).settings == cut
    assert named_variation("chunks", golden(max_num_seqs=256)).settings["max_num_seqs"] == 15
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": 512}
    assert named_variation("chunks", golden(max_num_batched_tokens=16, max_model_len=512)).settings == whole
    unset = named_variation("chunks", golden(max_num_batched_tokens=None, max_num_seqs=None))
    assert unset.settings["max_num_batched_tokens"] == 15


def test_a_variation_keeps_the_rest_of_the_engine_unchanged() -> None:
    started = named_variation("threads", golden()).applied(ENGINE)
    assert started == Configured("v1", Path("python"), {"OMP_NUM_THREADS": "2", "X": "y"}, {"dtype": "float32"})
    other = Configured("v0", Path("other"), {}, {})
    varied = Variation("also", {"max_num_seqs": 1}, {"A": "b"}, other)
    assert varied.applied(ENGINE) == Configured("v0", Path("other"), {"A": "b"}, {})
    assert varied.words(ENGINE) == "also: v0 max_num_seqs=1 A=b"


def test_refuses_a_variation_without_effect_with_the_reason() -> None:
    single = golden(lengths=[2])
    with pytest.raises(UsageError, match="Golden has 1 prompt; batches"):
        named_variation("batch", single).applied(ENGINE)
    with pytest.raises(UsageError, match="longest prompt has 2 tokens"):
        named_variation("chunks", single).applied(ENGINE)
    assert not named_variation("threads", single).idle


def test_a_variable_of_the_shell_cannot_be_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with pytest.raises(UsageError, match="OMP_NUM_THREADS is set in the shell"):
        named_variation("threads", golden()).applied(ENGINE)


def test_refuses_an_unknown_variation_and_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no variation 'weather'; there are repeat, batch"):
        named_variation("weather", golden())
    assert all(named_variation(name, golden()).name == name for name in NAMES)
