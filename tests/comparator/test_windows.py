"""Where a pass is cut into windows: two passes that are compared are cut at the same steps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tracereplay.columns import store
from tracereplay.columns.store import Columns
from tracereplay.comparator import compare_traces
from tracereplay.comparator.numbers.blocks import fit
from tracereplay.engines import toy
from tracereplay.trace import SegmentReader, open_trace


def a_pass(size: int, prefill: int = 5000) -> Columns:
    """A pass with a step of ``prefill`` bytes, and 200 of ``size`` bytes."""
    segments: list[Any] = [None]
    columns = Columns(segments, block=1000)
    kinds = [columns.new_kind([]) for _ in range(2)]
    for kind, own in zip(kinds, (prefill, size), strict=True):
        kind.size, kind.block = own, np.zeros(1, np.int64)
    for number in range(201):
        record: Any = SimpleNamespace(number=number, chunk=number, elsewhere={})
        columns.add(kinds[number > 0], [record], [np.empty(0, np.int64)])
    return columns


def cuts(size: int) -> list[int]:
    """First steps of the windows of such a pass."""
    found: list[int] = a_pass(size).windows.tolist()
    return found


@pytest.mark.parametrize(("mine", "theirs"), [(30, 31), (30, 33), (62, 63), (100, 125), (1, 2)])
def test_steps_of_nearly_the_same_size_are_cut_at_the_same_steps(mine: int, theirs: int) -> None:
    """Else a window of the one lies in two of the other, and chunks are read again for every operator."""
    golden, candidate = cuts(mine), cuts(theirs)
    assert set(golden) <= set(candidate)
    assert len(candidate) <= 2 * len(golden)


@pytest.mark.parametrize("size", [30, 33, 62, 125, 999])
def test_a_window_is_no_larger_than_a_block_and_at_least_half_of_one(size: int) -> None:
    lengths = np.diff(cuts(size)[1:])[1:-1] * size
    assert lengths.max() <= 1000
    assert lengths.min() > 250


@pytest.mark.parametrize(("prefill", "scattered", "smaller"), [(5000, True, True), (100_000, False, False)])
def test_windows_grow_smaller_only_where_that_helps(prefill: int, scattered: bool, smaller: bool) -> None:
    """A prefill that is larger than all that is kept is a window by itself; to cut the others would not help."""
    columns = a_pass(30, prefill)
    before = len(columns.windows)
    column: Any = SimpleNamespace(columns=columns, windows=lambda picks: columns.blocks[1][picks])
    steps = np.arange(201)
    fit(column, steps, 0 * steps if scattered else columns.blocks[0])
    assert (len(columns.windows) > before) is smaller


@pytest.mark.program
def test_a_pass_that_was_batched_otherwise_is_decoded_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate takes one request after the other: what a few of golden's steps need is all over it."""
    prompts = [[7 * number + 3 * place + 1 for place in range(4)] for number in range(6)]
    golden = toy.record(toy.workload(prompts, max_tokens=24), tmp_path / "golden.trace")
    candidate = toy.replay(golden, tmp_path / "candidate.trace", rounding="truncate", max_rows=1)
    whole = compare_traces(golden, candidate).as_dict()
    del whole[
        "first_visible"
    ]  # the rerun is read no further than the block in which it first leaves the tolerance
    read, chunks = Counter[str](), SegmentReader.read_chunk

    def counted(reader: SegmentReader, number: int) -> Any:
        read[reader.name] += 1
        return chunks(reader, number)

    monkeypatch.setattr(store, "BLOCK", 1 << 16)
    monkeypatch.setattr(SegmentReader, "read_chunk", counted)
    found = compare_traces(golden, candidate).as_dict()
    assert {key: found[key] for key in whole} == whole
    for trace, name in ((golden, "record"), (candidate, "rerun"), (candidate, "injected")):
        segment = open_trace(trace).segment(name)
        assert read[segment.name] < 6 * len(segment.index.chunks)  # type: ignore[union-attr]
