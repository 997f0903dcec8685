"""Differences bit for bit: whose they are, and at how many rows in a call they begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tracereplay.comparator.judging.invariance import Compared, compare_runs, counts_of
from tracereplay.comparator.numbers.align import index_pass
from tracereplay.comparator.numbers.results import Rows
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.engines.toy import Flaw, record, replay, workload
from tracereplay.passes import RECORD, RERUN
from tracereplay.trace import open_trace
from tracereplay.trace.rows import RowFinder
from tracereplay.verdict.invariance import Count, RowCounts, flips_between


def compared(folder: Path, flaw: Flaw | None, **options: object) -> Compared:
    """A recording, and its rerun with a flaw."""
    golden = record(workload(), folder / "golden.trace")
    replay(golden, folder / "run.trace", flaw=flaw, **options)  # type: ignore[arg-type]
    with open_trace(golden) as base, open_trace(folder / "run.trace") as run:
        generation = read_generation(base, RECORD)
        finder = RowFinder(generation.tokens)
        mine = index_pass(base, RECORD, finder.add)
        return compare_runs(mine, index_pass(run, RERUN, finder.find), Rows(finder, generation.tokens))


def test_equal_runs_differ_nowhere(tmp_path: Path) -> None:
    found = compared(tmp_path, None)
    assert (found.own, found.differing, found.apart) == ((), 0, {})
    assert found.rows > 500


@pytest.mark.parametrize(
    ("site", "kind"),
    [
        ("model.embed_tokens", "wrong_row"),
        ("model.layers.0.self_attn.o_proj", "scale"),
        ("model.layers.1.post_attention_layernorm", "slight"),
        ("model.layers.0.self_attn.attn", "stale"),
        ("model.norm", "element"),
    ],
)
def test_a_fault_is_its_operators_own_and_what_follows_inherits_it(tmp_path: Path, site: str, kind: str) -> None:
    found = compared(tmp_path, Flaw(site, kind))
    assert [(own.key.site, own.kind) for own in found.own] == [(site, "operator")]
    assert found.own[0].rows.differing <= found.own[0].rows.of < found.differing


def test_a_fault_between_operators_is_an_edges_own(tmp_path: Path) -> None:
    found = compared(tmp_path, Flaw("model.layers.1.self_attn.attn", "scaled_edge", 2))
    first = found.own[0]
    assert (first.key.site, first.key.index, first.kind) == ("model.layers.1.self_attn.attn", 2, "edge")
    assert {own.kind for own in found.own} == {"edge"}


def test_two_ranks_blame_only_what_is_summed_over_them(tmp_path: Path) -> None:
    found = compared(tmp_path, None, tensor_parallel=2)
    assert {own.operator for own in found.own} == {"RowParallelLinear"}


def test_what_a_cache_was_filled_with_is_not_attentions_own(tmp_path: Path) -> None:
    """Rows behind wrong keys of another pass are inherited, though this pass's own inputs are all equal."""
    golden = record(workload(), tmp_path / "golden.trace")
    site = "model.layers.0.self_attn.attn"
    replay(golden, tmp_path / "run.trace", flaw=Flaw(site, "stale"))
    with open_trace(golden) as base, open_trace(tmp_path / "run.trace") as run:
        generation = read_generation(base, RECORD)
        finder = RowFinder(generation.tokens)
        passes = index_pass(base, RECORD, finder.add), index_pass(run, RERUN, finder.find)
        rows = Rows(finder, generation.tokens)
        every = passes[0].tables
        firsts = next(table.ids for key, table in every.items() if key.site == site and key.side == "in")
        found = compare_runs(*passes, rows, wrong_before={site: firsts})
    assert found.own == ()


# Calls of base and varied run; rows; how many differ.
THRESHOLD = [(300, 150, 300, 300), (150, 75, 150, 0), (1, 6, 40, 0)]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], None),
        (THRESHOLD, (150, 300)),
        ([*THRESHOLD, (200, 600, 200, 200)], (200, 300)),
        ([*THRESHOLD, (255, 257, 255, 9), (256, 257, 256, 0)], (255, 256)),
        ([(255, 768, 255, 20), (256, 768, 256, 0), (257, 768, 257, 0)], (255, 256)),
        # Two rows may agree by chance where few differ at all.
        ([(255, 768, 255, 20), (300, 768, 2, 0)], (255, 768)),
        ([(5, 5, 5, 5), *THRESHOLD], None),  # differs without another size
        ([(1, 2, 9, 9), (300, 150, 300, 300)], None),  # no one number explains both
        ([(100, 400, 100, 100), (200, 300, 200, 0)], None),  # below 201 or above 300
    ],
)
def test_the_number_of_rows_at_which_an_operator_flips(
    counts: Sequence[tuple[int, int, int, int]], expected: tuple[int, int] | None
) -> None:
    assert flips_between([Count(*count) for count in counts]) == expected


def test_only_neighbours_say_where_exactly() -> None:
    assert RowCounts((0, 0, 0), 1, 2, (), (255, 256)).flips_at == 256
    assert RowCounts((0, 0, 0), 1, 2, (), (150, 300)).flips_at is None


def test_counts_of_one_site_add_up() -> None:
    assert counts_of([[Count(1, 2, 3, 0)], [Count(1, 2, 4, 1), Count(1, 3, 5, 5)]]) == (
        Count(1, 2, 7, 1), Count(1, 3, 5, 5),
    )  # fmt: skip
