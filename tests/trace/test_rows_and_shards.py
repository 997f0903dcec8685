"""Rows are found again by place or by prefix; ranks' pieces are joined and cut without loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracereplay.event import Layout, make_rows, rejected
from tracereplay.trace.rows import RowFinder
from tracereplay.trace.shards import cut, join


def test_a_row_is_found_by_its_position() -> None:
    finder = RowFinder({(0, 0): [5, 6, 7]})
    assert finder.add(make_rows([(0, 0, 0), (0, 0, 1)])).tolist() == [0, 1]
    assert finder.find(make_rows([(0, 0, 1), (0, 0, 2), (3, 0, 0)])).tolist() == [1, -1, -1]


def test_a_rejected_draft_is_no_row_of_its_sequence() -> None:
    finder = RowFinder({(0, 0): [5, 6, 7]})
    rows = make_rows([(0, 0, 0), (0, 0, -2), (0, 0, 1)])
    assert rejected(rows).tolist() == [False, True, False]
    assert finder.add(rows).tolist() == [0, -1, 1]
    assert finder.find(rows).tolist() == [0, -1, 1]
    assert len(finder) == 2


def test_a_row_that_was_never_computed_is_found_by_its_prefix() -> None:
    finder = RowFinder({(0, 0): [5, 6, 7], (1, 0): [5, 6, 8], (0, 1): [5, 6, 7]})
    finder.add(make_rows([(0, 0, 0), (0, 0, 1), (0, 0, 2)]))
    assert finder.find(make_rows([(1, 0, 1), (1, 0, 2), (0, 1, 2)])).tolist() == [1, -1, 2]


def test_rows_with_equal_prefixes_share_a_number() -> None:
    finder = RowFinder({(0, 0): [5, 6], (0, 1): [5, 6]})
    finder.add(make_rows([(0, 0, 0), (0, 0, 1), (0, 1, 1)]))
    assert finder.alike().tolist() == [0, 1, 1]


@given(
    world=st.sampled_from([1, 2, 4]),
    unit=st.integers(1, 4),
    layout=st.sampled_from([((1,), (1,)), ((1, 1), (1, 1)), ((4, 1, 1), (1, 2, 2)), ((2, 1, 1), (1, 1, 1))]),
    dim=st.sampled_from([-1, -2]),
)
def test_cutting_undoes_joining(world: int, unit: int, layout: tuple[tuple[int, ...], ...], dim: int) -> None:
    parts, copies = layout
    if any(world % c for c in copies):
        return
    cut_up = Layout(dim, parts, copies)
    size = unit * sum(part * (world // c) for part, c in zip(parts, copies, strict=True))
    shape = (3, size) if dim == -1 else (size, 3)
    whole = np.arange(3 * size).reshape(shape)
    pieces = [cut(whole, cut_up, rank, world) for rank in range(world)]
    assert np.array_equal(join(pieces, cut_up), whole)


def test_refuses_a_tensor_that_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="cannot be cut for 2 ranks"):
        cut(np.zeros((1, 3)), Layout(-1, (1,), (1,)), 0, 2)
