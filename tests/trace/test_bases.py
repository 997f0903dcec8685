"""A candidate is stored as its difference from golden row by row, however either of them was scheduled."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import second_reader

from tracereplay.engines import toy
from tracereplay.event import Site, make_rows
from tracereplay.trace import (
    PendingCall,
    SegmentWriter,
    TensorBytes,
    TraceDirectory,
    limits,
    open_trace,
    segment_path,
)
from tracereplay.trace.bases import Counterparts, by_name
from tracereplay.trace.dedup import PIECE
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.verify import values_of, verify

Key = tuple[int, int, int]
WIDTH = 1024  # numbers in a row


def row(key: Key, site: int = 0, width: int = WIDTH) -> np.ndarray:
    """Golden's row of a key: the bits of bfloat16 numbers between 1/2 and 2, and their negatives."""
    random = np.random.default_rng([*key, site])
    return (random.integers(0x3F00, 0x3FFF, width) | random.integers(0, 2, width) << 15).astype("<u2")


def rounded(key: Key, site: int = 0, width: int = WIDTH) -> np.ndarray:
    """The candidate's: every second number differs in its last place."""
    change = np.random.default_rng([*key, site, 1]).integers(0, 2, width).astype("<u2")
    return row(key, site, width) ^ change


def tensor(rows: Sequence[np.ndarray], padding: int = 0) -> TensorBytes:
    data = np.concatenate([np.stack(rows), np.full((padding, len(rows[0])), 0x4080, "<u2")])
    return TensorBytes("bfloat16", data.shape, (data.shape[1], 1), data.tobytes())


def made(path: Path, steps: Iterable[tuple[Sequence[Key], Sequence[TensorBytes]]]) -> Path:
    """A trace with these steps; site ``n`` has the nth tensor as its output."""
    directory = TraceDirectory(path, {"kind": "recording"})
    writer = SegmentWriter(segment_path(path, "record", 0), {"rank": 0})
    writer.sites([Site(f"site{n}", "Site", n, ("x",)) for n in range(3)])
    for number, (keys, tensors) in enumerate(steps):
        rows = make_rows(list(keys))
        calls = [PendingCall(n, 0, rows, rows, {}, {0: one}) for n, one in enumerate(tensors)]
        writer.step(number, rows, calls, [], [])
    writer.close({"ended": None, "dropped": 0})
    directory.complete()
    return path


def packed(candidate: Path, golden: Path, counterparts: Counterparts = by_name, level: int = 3) -> tuple[int, int]:
    """Bytes of the candidate's chunks packed alone and from golden; what is read from either is the same."""
    whole, base = open_trace(candidate), open_trace(golden)
    alone, rows = candidate.with_suffix(".alone"), candidate.with_suffix(".rows")
    pack_trace(whole, alone, level=level)
    pack_trace(whole, rows, level=level, base=base, counterparts=counterparts)
    found = open_trace(rows, base)
    assert contents(found) == contents(whole)
    assert found.digest() == whole.digest()
    assert {report.state for report in verify(found)} == {"complete"}
    independent = second_reader.Trace(rows, second_reader.Trace(golden))
    assert independent.digest() == whole.digest()
    sizes = [sum(n for _, n, _ in open_trace(p, base).part(whole.parts[0]).index.chunks) for p in (alone, rows)]
    return sizes[0], sizes[1]


def contents(trace: Any) -> list[bytes]:
    return [v.load() for key in trace.parts for step in trace.part(key).steps() for v in values_of(step)]


def batches(keys: Sequence[Key], size: int) -> list[Sequence[Key]]:
    return [keys[i : i + size] for i in range(0, len(keys), size)]


KEYS = [(request, 0, position) for position in range(12) for request in range(5)]
BY_REQUEST = sorted(KEYS)
GOLDEN = [(keys, [tensor([row(k) for k in keys])]) for keys in batches(KEYS, 5)]


@pytest.mark.parametrize(
    ("keys", "size"), [(KEYS, 5), (KEYS, 3), (BY_REQUEST, 12), (BY_REQUEST[::-1], 7), (KEYS, 60), (KEYS, 1)]
)
def test_rows_are_found_in_whatever_batches_they_were(tmp_path: Path, keys: list[Key], size: int) -> None:
    golden = made(tmp_path / "golden", GOLDEN)
    steps = [(part, [tensor([rounded(k) for k in part])]) for part in batches(keys, size)]
    alone, rows = packed(made(tmp_path / "candidate", steps), golden)
    assert rows < 0.4 * alone  # of 16 bits some 8.7 alone; 1 as a difference, and what names the rows


def test_rows_that_golden_has_not_and_padding_are_stored_all_the_same(tmp_path: Path) -> None:
    golden = made(tmp_path / "golden", GOLDEN)
    keys = [(0, 0, 3), (9, 9, 9), (4, 0, 3), (0, 0, -4), (1, 0, 3)]
    steps = [(keys, [tensor([rounded(k) if k in KEYS else row((7, 7, 7)) for k in keys], padding=2)])]
    alone, rows = packed(made(tmp_path / "candidate", steps), golden)
    assert rows < 0.9 * alone


def test_rows_of_other_tokens_are_stored_as_they_are(tmp_path: Path) -> None:
    """An engine that went on with another token computes rows that have nothing to do with golden's."""
    golden = made(tmp_path / "golden", GOLDEN)
    steps = [(keys, [tensor([row(k, site=5) for k in keys])]) for keys in batches(KEYS, 5)]
    alone, rows = packed(made(tmp_path / "candidate", steps), golden)
    assert rows < 1.02 * alone


def test_a_row_is_a_row_of_its_own_operator_and_dtype(tmp_path: Path) -> None:
    golden = made(
        tmp_path / "golden", [(k, [tensor([row(x, site) for x in k]) for site in (0, 1)]) for k, _ in GOLDEN]
    )
    steps = [(k, [tensor([rounded(x, site) for x in k]) for site in (0, 1, 2)]) for k in batches(KEYS, 4)]
    alone, rows = packed(made(tmp_path / "candidate", steps), golden)
    assert 0.33 * alone < rows < 0.7 * alone  # two of three sites are golden's
    short = [(k, [TensorBytes("int16", (len(k), WIDTH), (WIDTH, 1), t[0].data)]) for k, t in GOLDEN]
    alone, rows = packed(made(tmp_path / "short", short), golden)
    assert rows >= alone


def test_large_tensors_that_are_cut_are_paired_across_their_cuts(tmp_path: Path) -> None:
    width = PIECE // 5  # of 2 bytes: rows lie across the cuts
    keys = [(0, 0, position) for position in range(6)]
    golden = made(tmp_path / "golden", [(keys, [tensor([row(k, 0, width) for k in keys])])])
    moved = [keys[4], *keys[:4], keys[5]]
    candidate = made(tmp_path / "candidate", [(moved, [tensor([rounded(k, 0, width) for k in moved])])])
    alone, rows = packed(candidate, golden, level=1)
    assert rows < 0.65 * alone  # two of golden's six rows lie across its cuts


def test_rows_that_golden_has_as_a_view_are_found_in_what_it_views(tmp_path: Path) -> None:
    keys = KEYS[:20]
    whole = np.stack([np.concatenate([row(k), row(k, 1)]) for k in keys])
    viewed = np.ascontiguousarray(whole[:, WIDTH:])
    tensors = [
        TensorBytes("bfloat16", whole.shape, (2 * WIDTH, 1), whole.tobytes(), 0, 0),
        TensorBytes("bfloat16", viewed.shape, (2 * WIDTH, 1), viewed.tobytes(), 0, WIDTH),
    ]
    golden = made(tmp_path / "golden", [(keys, tensors)])
    steps = [(keys[::-1], [tensor([row((8, 8, 8))]), tensor([rounded(k, 1) for k in keys[::-1]])])]
    alone, rows = packed(made(tmp_path / "candidate", steps), golden)
    assert rows < 0.5 * alone


def test_a_difference_may_be_much_smaller_than_what_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a candidate asks for is accounted for by its base too."""
    monkeypatch.setitem(limits._ALLOWED, "chunks", (0, 1024))  # not 64 MiB in any case
    keys = [(0, 0, position) for position in range(3)]
    steps = [([key], [tensor([row(key, 0, PIECE // 2)])]) for key in keys]
    golden = made(tmp_path / "golden", steps)
    _, rows = packed(made(tmp_path / "candidate", steps), golden, level=1)
    assert rows * 1024 < 3 * PIECE


@pytest.mark.parametrize("max_rows", [None, 3])
def test_the_toys_candidate_is_smaller_whatever_its_schedule(
    golden: Path, tmp_path: Path, max_rows: int | None
) -> None:
    candidate = toy.replay(golden, tmp_path / "candidate.trace", rounding="truncate", max_rows=max_rows)
    alone, rows = packed(candidate, golden, level=19)
    assert rows < 0.5 * alone


def test_packing_takes_no_more_memory_for_a_longer_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracereplay.trace.reader.CACHED", 1 << 18)
    monkeypatch.setattr("tracereplay.trace.reader.CACHED_OF_LARGE", 1 << 18)
    monkeypatch.setattr("tracereplay.trace.packfile._BLOCK", 1 << 16)

    def peak(positions: int) -> tuple[int, int]:
        """Of packing, in bytes; and the steps of both traces."""
        keys = [(request, 0, position) for position in range(positions) for request in range(4)]
        there, mine = batches(keys, 4), batches(keys, 3)
        golden = made(tmp_path / f"g{positions}", ((k, [tensor([row(x) for x in k])]) for k in there))
        candidate = made(tmp_path / f"c{positions}", ((k, [tensor([rounded(x) for x in k])]) for k in mine))
        tracemalloc.start()
        pack_trace(open_trace(candidate), tmp_path / f"{positions}.pack", level=1, base=open_trace(golden))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, len(there) + len(mine)

    (few, short), (many, long) = peak(100), peak(500)
    assert (many - few) / (long - short) < 1024  # bytes a step; a golden step has 8 KiB of tensors
