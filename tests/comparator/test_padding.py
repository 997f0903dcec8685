"""Steps in CUDA graphs, which pad a batch to the rows that they were captured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tracereplay.comparator import compare_traces
from tracereplay.engines import toy
from tracereplay.trace import SegmentWriter, open_trace


@pytest.mark.parametrize(
    ("candidate", "said"),
    [(4, None), (8, "computes 4 in golden, 8 in the candidate"), (0, "computes 4 in golden")],
)
def test_other_padding_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidate: int, said: str | None
) -> None:
    """A golden of other capture sizes, or an eager candidate: compared on real rows, which are all there."""
    commit, size = SegmentWriter.commit, 4

    def padded(*args: Any, **kwargs: Any) -> None:
        commit(*args, **kwargs, padded=size)

    monkeypatch.setattr(SegmentWriter, "commit", padded)
    golden = toy.record(toy.workload(max_tokens=5), tmp_path / "golden.trace")
    assert {step.padded for step in open_trace(tmp_path / "golden.trace").steps("record")} == {4}
    size = candidate
    verdict = compare_traces(golden, toy.replay(golden, tmp_path / "candidate.trace"))
    assert verdict.verdict == "match"
    notes = [note for note in verdict.notes if "pad batches otherwise" in note]
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]
