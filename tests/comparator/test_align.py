"""Row tables from calls as real engines make them: padding, repeats, second calls, rows along dimension 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tracereplay.columns.stacks import same_bytes
from tracereplay.comparator.numbers.align import index_pass
from tracereplay.comparator.numbers.tables import LANE, PassIndex, TableKey, gather, pair_rows
from tracereplay.event import RowMap, Site, make_rows
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes, TraceDirectory, open_trace, segment_path
from tracereplay.trace.codec import PLANES, ROWS
from tracereplay.trace.rows import RowFinder

Add = Callable[..., None]
KEY = TableKey("norm", "out", 0)


def tensor(x: npt.NDArray[np.generic]) -> TensorBytes:
    strides = tuple(s // x.itemsize for s in x.strides)
    return TensorBytes(x.dtype.name, x.shape, strides, np.ascontiguousarray(x).tobytes())


def rows(*positions: int, request: int = 0) -> RowMap:
    return make_rows([(request, 0, p) for p in positions])


def read(path: Path, steps: list[list[PendingCall]], finder: RowFinder | None = None) -> PassIndex:
    TraceDirectory(path, {})
    writer = SegmentWriter(segment_path(path, "record", 0), {})
    writer.sites([Site("norm", "RMSNorm", 1), Site("head", "LogitsProcessor", 2)])
    for number, calls in enumerate(steps):
        writer.step(number, calls[0].rows_in, calls, [], [])
    writer.close({})
    known = RowFinder({}) if finder is None else finder
    return index_pass(open_trace(path), "record", known.add if finder is None else known.find)


def call(x: npt.NDArray[np.generic], where: RowMap, number: int = 0, slot: int = 1) -> PendingCall:
    return PendingCall(slot, number, where, where, {}, {0: tensor(x)})


def test_rows_beyond_the_row_map_are_padding(tmp_path: Path) -> None:
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    table = read(tmp_path / "t", [[call(x, rows(0, 1, 2))]]).tables[KEY]
    assert len(table.ids) == 3
    assert (gather(table, np.arange(3)) == x[:3]).all()


def test_the_last_computation_of_a_row_stands(tmp_path: Path) -> None:
    first, again = np.zeros((3, 4), np.float32), np.ones((2, 4), np.float32)
    table = read(tmp_path / "t", [[call(first, rows(0, 1, 2))], [call(again, rows(1, 2))]]).tables[KEY]
    assert table.repeats == 2
    assert gather(table, np.argsort(table.ids))[:, 0].tolist() == [0, 1, 1]


def test_rows_may_lie_along_dimension_1(tmp_path: Path) -> None:
    long = np.arange(15).reshape(3, 5)
    short = np.arange(6).reshape(3, 2)  # three rows or fewer could be read both ways
    table = read(tmp_path / "t", [[call(long, rows(0, 1, 2, 3, 4))], [call(short, rows(5, 6))]]).tables[KEY]
    assert gather(table, np.arange(7)).tolist() == [*long.T.tolist(), *short.T.tolist()]


def test_a_tensor_with_too_few_rows_is_said_to_be_broken(tmp_path: Path) -> None:
    table = read(tmp_path / "t", [[call(np.zeros((2, 4), np.float32), rows(0, 1, 2, 3, 4))]]).tables[KEY]
    assert table.broken == "the tensor has fewer rows than its row map"
    assert len(table.ids) == 0


def test_a_second_call_with_other_rows_is_of_one_piece_with_the_first(tmp_path: Path) -> None:
    # V1 calls its logits processor again for prompt logprobs; V0 gives all rows in one call.
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    split = [[call(x[3:], rows(3), 0, slot=2), call(x[:3], rows(0, 1, 2), 1, slot=2)]]
    table = read(tmp_path / "t", split).tables[TableKey("head", "out", 0)]
    assert (gather(table, np.argsort(table.ids)) == x[[3, 0, 1, 2]]).all()
    assert table.ids.max() < LANE


def test_a_second_call_with_the_same_rows_is_compared_with_second_calls(tmp_path: Path) -> None:
    x = np.zeros((2, 4), np.float32)
    index = read(tmp_path / "t", [[call(x, rows(0, 1), 0), call(x + 1, rows(0, 1), 1)]])
    table = index.tables[KEY]
    assert table.repeats == 0
    assert sorted(table.ids // LANE) == [0, 0, 1, 1]


def test_batches_may_be_composed_differently(tmp_path: Path) -> None:
    finder = RowFinder({})
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    where = make_rows([(r, 0, p) for r in (0, 1) for p in (0, 1, 2)])
    TraceDirectory(tmp_path / "g", {})
    golden = _read_golden(tmp_path / "golden", [[call(x, where)]], finder)
    order = np.array([5, 0, 3, 1, 4, 2])
    parts = [[call(x[order[:2]], where[order[:2]])], [call(x[order[2:]], where[order[2:]])]]
    candidate = read(tmp_path / "candidate", parts, finder)
    pairs = pair_rows(golden.tables[KEY], candidate.tables[KEY])
    assert (gather(golden.tables[KEY], pairs.golden) == gather(candidate.tables[KEY], pairs.candidate)).all()
    assert len(pairs.golden) == 6


def _read_golden(path: Path, steps: list[list[PendingCall]], finder: RowFinder) -> PassIndex:
    read(path, steps)
    return index_pass(open_trace(path), "record", finder.add)


def test_rows_that_golden_never_computed_are_counted(tmp_path: Path) -> None:
    finder = RowFinder({})
    finder.add(rows(0, 1))
    index = read(tmp_path / "t", [[call(np.zeros((3, 4), np.float32), rows(0, 1, 2))]], finder)
    assert index.unknown == {"norm": 1}
    assert len(index.tables[KEY].ids) == 2


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 4)])
def test_rows_are_flattened(tmp_path: Path, shape: tuple[int, ...]) -> None:
    table = read(tmp_path / "t", [[call(np.zeros(shape, np.float32), rows(0, 1, 2))]]).tables[KEY]
    assert table.signature() == ("float32", 4)


def test_chunks_that_are_differences_are_not_taken_for_alike_by_their_bytes() -> None:
    """What they say is in their base, too."""
    folder = Path(__file__).parents[2] / "fixtures" / "format-2"
    for name, alike in (("golden.trace", True), ("rows.pack", False)):
        trace = open_trace(folder / name)
        segment = trace.part(trace.parts[0])
        frames = [(segment, number) for number in range(len(segment.index.chunks))]
        assert {segment.chunk_frame(number)[0].codec for _, number in frames} == {PLANES if alike else ROWS}
        assert same_bytes(frames, frames) is alike
